"""Plans without rows: every op is ready when what it reads is there, and runs when its devices are free.

    F(op, j) ──▶ F(reader, j)          on one device: an edge; between devices: a transfer, once per value and device,
    B(op, j) ◀── B(reader, j)          on the sender's outgoing stream

A graph whose backward is written out ("explicit") runs its ops once; otherwise each forward op has a backward, in reverse.
Lower priority number first: micro-batch by micro-batch, in program order, backwards before forwards of later ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..cost.recorded import Recorded
from ..errors import Unsupported
from ..graph.ir import ITEM_BYTES, Floats, Graph, Ints, Op
from ..plan.lookup import stage_ops
from ..plan.model import Plan
from ..plan.problem import Problem
from .engine import Dispatched, dispatch, task_graph
from .result import CATEGORIES, Event, Lane, Simulation, TaskGraph, step_time
from .simulator import model_flops

_DYNAMIC = CATEGORIES.index("activations")


class _What(NamedTuple):
    kind: str
    """F, B, U (update), send."""
    name: str
    device: int
    target: int
    """Of a send; otherwise the device itself."""
    micro_batch: int
    nbytes: float = 0.0


@dataclass(slots=True)
class _Tasks:
    """Task lists under construction."""

    seconds: list[float] = field(default_factory=list)
    resources: list[tuple[int, ...]] = field(default_factory=list)
    priority: list[int] = field(default_factory=list)
    memory: list[tuple[int, int, float, float]] = field(default_factory=list)
    edges: set[tuple[int, int]] = field(default_factory=set)
    what: list[_What] = field(default_factory=list)

    def add(self, seconds: float, resource: int, priority: int, what: _What) -> int:
        self.seconds.append(seconds)
        self.resources.append((resource,))
        self.priority.append(priority)
        self.what.append(what)
        return len(self.seconds) - 1

    def graph(self) -> TaskGraph:
        return task_graph(
            np.array(self.seconds),
            self.resources,
            sorted(self.edges),
            priority=np.array(self.priority, np.float64),
            memory=self.memory,
        )


def dataflow(problem: Problem, graph: Graph, plan: Plan, *, detail: bool = True) -> Simulation:
    """Places single ops on single devices.

    Raises:
        Unsupported: a stage on several devices, or one that runs ops again; give the plan rows.
    """
    for k, stage in enumerate(plan.stages):
        if stage.recompute:
            raise Unsupported(
                f"stage {k} runs {min(stage.recompute)} again, which is not simulated where ops run as soon as they can: leave "
                "recompute empty, or name a schedule such as 1f1b"
            )
        if len(stage.mesh.devices) != 1:
            raise Unsupported(
                f"stage {k} has {len(stage.mesh.devices)} devices and the plan no schedule: dataflow runs stages of one "
                "device, so name a schedule such as 1f1b"
            )
    place = {i: int(stage.mesh.devices[0]) for stage in plan.stages for i in stage_ops(graph, stage)}
    devices = sorted(set(place.values()))
    lane_of = {d: k for k, d in enumerate(devices)}
    micro = -(-plan.samples // plan.schedule.micro_batches)
    tasks = _build(problem, graph, place, lane_of, micro, plan.schedule.micro_batches)
    if (turns := problem.cluster.turns(len(devices))) > 1.0:  # devices that share cores: as if all were always at work
        tasks.seconds = [turns * seconds for seconds in tasks.seconds]
    run = dispatch(tasks.graph())
    return _simulation(problem, graph, plan, place, devices, tasks, run, detail)


def _build(
    problem: Problem, graph: Graph, place: dict[int, int], lane_of: dict[int, int], micro: int, m: int
) -> _Tasks:
    tasks, n, lanes = _Tasks(), len(graph.ops), len(lane_of)
    scale = micro / graph.samples
    forward, backward, kept = _op_prices(problem, graph, place, micro)
    flows = graph.training == "derived"
    grad = _needs_grad(graph)

    def move(
        tensor: str, source: int, target: int, a: int, b: int, sent: dict[tuple[str, int], int], kind: str, j: int
    ) -> None:
        """An edge from task a to task b, by way of a transfer if they are on different devices."""
        if source == target:
            tasks.edges.add((a, b))
            return
        key = (tensor, target)
        if key not in sent:
            nbytes = graph.tensor[tensor].nbytes * scale
            seconds = float(
                problem.cost.transfer(np.array([nbytes]), source, target, problem.cluster, tensor=tensor)[0]
            )
            name = f"{kind}{j} {tensor} {source}→{target}"
            sent[key] = tasks.add(
                seconds, lanes + lane_of[source], tasks.priority[a], _What("send", name, source, target, j, nbytes)
            )
        tasks.edges.add((a, sent[key]))
        tasks.edges.add((sent[key], b))

    for j in range(m):
        base = 2 * j * n
        first: dict[int, int] = {}
        sent: dict[tuple[str, int], int] = {}
        for i, op in enumerate(graph.ops):
            lane = lane_of[place[i]]
            kind = "F" if op.phase == "forward" else "B" if op.phase == "backward" else "U"
            first[i] = tasks.add(forward[i], lane, base + i, _What(kind, op.name, place[i], place[i], j))
            for t in op.inputs:
                p = graph.producer.get(t)
                if p is not None:
                    move(t, place[p], place[i], first[p], first[i], sent, "F", j)
            for name in op.after:
                p = graph.position[name]
                tasks.edges.add((first[p], first[i]))
        if not flows:
            continue
        second: dict[int, int] = {}
        back: dict[tuple[str, int], int] = {}
        for i in reversed(range(n)):
            op = graph.ops[i]
            if not any(t in grad for t in op.outputs):
                continue
            lane = lane_of[place[i]]
            second[i] = tasks.add(backward[i], lane, base + 2 * n - 1 - i, _What("B", op.name, place[i], place[i], j))
            tasks.edges.add((first[i], second[i]))
            tasks.memory.append((first[i], lane, kept[i], 0.0))
            tasks.memory.append((second[i], lane, 0.0, -kept[i]))
            for t in op.outputs:
                for reader, _ in graph.consumers.get(t, ()):
                    if reader in second:
                        # Gradients of one value from readers on one device are summed there and sent once.
                        move(t, place[reader], place[i], second[reader], second[i], back, "B", j)
    return tasks


def _op_prices(
    problem: Problem, graph: Graph, place: dict[int, int], micro: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds forward, seconds backward, bytes kept, per op at `micro` samples."""
    forward, backward, kept = [], [], []
    for i, op in enumerate(graph.ops):
        device = problem.cluster.type_of(place[i])
        sizes = _whole(op, micro, graph.samples)
        phase = op.phase if graph.training == "explicit" else "forward"
        forward.append(float(problem.cost.compute(op, sizes, device, phase)[0]))
        derived = graph.training == "derived"
        backward.append(float(problem.cost.compute(op, sizes, device, "backward")[0]) if derived else 0.0)
        kept.append(float(problem.cost.memory(op, sizes).kept[0]) if derived else 0.0)
    return forward, backward, kept


def _whole(op: Op, micro: int, samples: int) -> Ints:
    return np.array([[-(-f.size * micro // samples) if f.samples else f.size for f in op.rule.factors]], np.int64)


def _needs_grad(graph: Graph) -> frozenset[str]:
    """Activations that depend on a parameter through floating tensors."""
    found: set[str] = set()
    for op in graph.ops:
        if any(t in found or graph.tensor[t].role == "param" for t in op.inputs):
            found.update(t for t in op.outputs if "float" in graph.tensor[t].dtype)
    return frozenset(found)


def _simulation(
    problem: Problem,
    graph: Graph,
    plan: Plan,
    place: dict[int, int],
    devices: list[int],
    tasks: _Tasks,
    run: Dispatched,
    detail: bool,
) -> Simulation:
    recipe, lanes = problem.recipe, len(devices)
    lane_of = {d: k for k, d in enumerate(devices)}
    use, grads, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
    copy = master if recipe.param_dtype != recipe.compute_dtype else 0
    rest = np.zeros((lanes, len(CATEGORIES)))
    held = np.zeros(lanes)
    for name, k in sorted({(t, lane_of[place[i]]) for i, op in enumerate(graph.ops) for t in op.inputs}):
        tensor = graph.tensor[name]
        if tensor.role == "param":
            held[k] += tensor.nbytes / ITEM_BYTES.get(tensor.dtype, 4)
    derived = graph.training == "derived"
    rest[:, 0] = held * use
    if isinstance(problem.cost, Recorded):  # what a profile says about an op besides its parameters
        for i, op in enumerate(graph.ops):
            sizes = np.array([[f.size for f in op.rule.factors]], np.int64)
            rest[lane_of[place[i]], 0] += float(problem.cost.memory(op, sizes).static[0])
    if derived:
        rest[:, 1], rest[:, 2] = held * grads, held * (copy + recipe.state_bytes)
    moved = held * (grads + 2 * ((copy or use) + recipe.state_bytes) + (use if copy else 0))
    optimizer = (
        np.array(
            [float(problem.cost.traffic(np.array([b]), problem.cluster.type_of(d))[0]) for b, d in zip(moved, devices)]
        )
        * derived
        * (turns := problem.cluster.turns(len(devices)))
    )
    seconds = np.array(tasks.seconds)
    resource = np.array([r[0] for r in tasks.resources])
    end = run.start + seconds
    busy = np.bincount(resource, seconds, minlength=2 * lanes)[:lanes]
    ended = np.zeros(lanes)
    np.maximum.at(ended, resource[resource < lanes], end[resource < lanes])
    factor, fixed = problem.cost.step_overhead(lanes)
    total = step_time(float((ended + optimizer).max()) * factor + fixed)
    slow = int(np.argmax(ended + optimizer))
    send = _waits(tasks, run, end, devices[slow], float(ended[slow]))
    parts = {
        "compute": float(busy[slow]),
        "send": send,
        "bubble": max(0.0, float(ended[slow] - busy[slow]) - send),
        "optimizer": float(optimizer[slow]),
    }
    parts["idle"] = max(0.0, total - sum(parts.values()))
    active = np.zeros(lanes)
    active[: len(run.peak)] = run.peak[:lanes]
    at_peak = [
        dict(zip(CATEGORIES, map(float, row + (np.arange(len(CATEGORIES)) == _DYNAMIC) * a)))
        for row, a in zip(rest, active)
    ]
    dtype = recipe.matmul_dtype or recipe.compute_dtype
    peak = sum(problem.cluster.type_of(d).peak.get(dtype, float("nan")) for d in devices)
    curves = [_curve(tasks, run, end, k, rest[k]) for k in range(lanes)] if detail else []
    return Simulation(
        step_seconds=total,
        samples_per_second=plan.samples / total,
        mfu=model_flops(graph, plan.samples, recipe.attention_share) * turns / (peak * total),
        bubble=float(np.mean((ended.max() - busy) / total)),
        exposed_communication=send,
        lanes=tuple(
            Lane(
                f"{problem.cluster.type_of(d).kind} {d}",
                1,
                d,
                tuple(s for s, x in enumerate(plan.stages) if x.mesh.devices[0] == d),
            )
            for d in devices
        ),
        peak=rest.sum(axis=1) + active,
        peak_by=tuple(at_peak),
        memory_at=tuple(t * factor for t, _ in curves),
        memory=tuple(table for _, table in curves),
        seconds_by=parts,
        events=_events(plan, tasks, run, lane_of, factor) if detail else (),
        priced_by=problem.cost.name,
    )


def _curve(tasks: _Tasks, run: Dispatched, end: Floats, lane: int, rest: Floats) -> tuple[Floats, Floats]:
    """Step function of one lane; ends come before starts of the same time."""
    steps = sorted(
        [(float(run.start[t]), 1, b) for t, k, b, _ in tasks.memory if k == lane and b]
        + [(float(end[t]), 0, b) for t, k, _, b in tasks.memory if k == lane and b]
    )
    times = np.array([0.0, *(s[0] for s in steps)])
    table: Floats = np.tile(rest, (len(times), 1))
    table[:, _DYNAMIC] += np.cumsum([0.0, *(s[2] for s in steps)])
    return times, table


def _waits(tasks: _Tasks, run: Dispatched, end: Floats, device: int, until: float) -> float:
    """Seconds before `until` in which a device runs nothing while something is on its way to it."""
    changes: list[tuple[float, int, int]] = []  # time, change of (running, arriving)
    for t, what in enumerate(tasks.what):
        if device in (what.device, what.target):
            running, arriving = (0, 1) if what.kind == "send" else (1, 0)
            if arriving and what.target != device:
                continue
            changes += [(float(run.start[t]), running, arriving), (float(end[t]), -running, -arriving)]
    total, last, now, coming = 0.0, 0.0, 0, 0
    for time, running, arriving in sorted(changes):
        if not now and coming:
            total += min(time, until) - min(last, until)
        last, now, coming = time, now + running, coming + arriving
    return total


def _events(plan: Plan, tasks: _Tasks, run: Dispatched, lane_of: dict[int, int], factor: float) -> tuple[Event, ...]:
    stage_of = {int(s.mesh.devices[0]): k for k, s in enumerate(plan.stages)}
    found = []
    for t, what in enumerate(tasks.what):
        begin, length = float(run.start[t]) * factor, tasks.seconds[t] * factor
        ends = [("send", what.device), ("recv", what.target)] if what.kind == "send" else [("compute", what.device)]
        for stream, device in ends:
            found.append(
                Event(
                    lane_of[device], stream, what.name, what.kind, stage_of[device], what.micro_batch,
                    begin, length, what.nbytes,
                )
            )  # fmt: skip
    found.sort(key=lambda e: (e.lane, e.stream, e.start, -e.duration))
    return tuple(found)
