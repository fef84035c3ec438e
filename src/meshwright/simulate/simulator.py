"""The front door: a plan on its cluster, priced by the problem's cost model, played through its schedule.

    lower -> price stages -> actions and sends -> relax -> sums, optimizer -> Simulation

Replicas and tensor shards do the same at the same time, so one lane stands for all devices of a pipeline rank: 1,024
replicas cost what one costs. Plans that place single ops on single devices go to `dataflow` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..cluster.model import Cluster, Mesh
from ..cost.choices import Profile
from ..errors import InputError, Unsupported
from ..graph.ir import Floats, Graph
from ..lower.program import Program
from ..lower.summa import SUMMA
from ..plan.model import Plan
from ..plan.problem import Problem
from ..plan.schedules.dealt import DEALT
from ..plan.schedules.rows import workers
from .crowded import share_cores, slowed
from .engine import relax
from .estimate import Step, Work, action_seconds, collect, rank_of
from .memory import curve, deltas, peaks
from .pipeline import Orders
from .play import devices_of, durations, ending, ends, is_free, ordered, priced
from .price import KINDS, PARTS, Pricer, StagePrice
from .result import CATEGORIES, Lane, Simulation, step_time
from .sends import sends_of
from .tasks import PipelineTasks, Sends, pipeline_tasks
from .timeline import events

Preset: TypeAlias = Literal["default", "distir"]

__all__ = ["model_flops", "simulate"]


def simulate(
    problem: Problem,
    plan: Plan,
    *,
    preset: Preset = "default",
    detail: bool = True,
    program: Program | None = None,
    pricer: Pricer | None = None,
) -> Simulation:
    """One optimizer step of `plan`.

    Args:
        preset: "distir" plays the program as DistIR's simulator does, see `distir`.
        detail: also events and memory curves; the figures are the same without.
        program: the lowered plan, if it is there already.
        pricer: prices of earlier plans of the same problem, to be used again.

    Raises:
        InputError: rows that wait for each other, or a schedule that does not suit the stages.
        Unsupported: a plan that nothing here can play.
    """
    if preset == "distir":
        from .distir import distir

        return distir(problem, plan, detail=detail)
    if preset != "default":
        raise InputError(f'no preset "{preset}" of the simulator: there are default and distir')
    if isinstance(problem.cost, Profile):
        problem, plan = _as_chosen(problem, problem.cost, plan)
    graph = plan.rewritten or problem.graph
    _refuse(problem, graph, plan)
    if is_free(plan) and (graph.training != "derived" or all(len(s.mesh.devices) == 1 for s in plan.stages)):
        from .dataflow import dataflow

        return dataflow(problem, graph, plan, detail=detail)
    if program is None:
        from ..lower import lower

        program = lower(graph, plan, problem.recipe)
    pricer = pricer or Pricer(graph, problem.cluster, problem.cost, problem.recipe)
    if not plan.schedule.weights.flush or workers(plan.schedule, len(plan.stages)):
        from .endless import endless

        return endless(problem, graph, plan, program, pricer, detail=detail)
    order = ordered(plan, program)
    prices, last = priced(order, program, pricer)
    meshes = [code.mesh for code in program.stages]
    sends = sends_of(program, pricer)
    work = collect(prices, 0, meshes, sends, pricer, last)
    rank = rank_of(order)
    tasks = pipeline_tasks(order, durations(work, sends, rank), sends)
    devices = len(devices_of(program))
    if problem.cluster.turns(devices) > 1.0:
        tasks, work = _in_turns(problem.cluster, tasks, work, meshes, rank, devices)
    start = relax(tasks.fixed)
    step = ending(order, tasks, start, work, rank, problem.cost, devices)
    return _report(
        problem, graph, plan, program, order, tasks, start, work, prices, last, sends, step, rank, devices, detail
    )


def _as_chosen(problem: Problem, cost: Profile, plan: Plan) -> tuple[Problem, Plan]:
    """A profile with configurations prices recomputation in them: each op as the plan runs it, and none computed again."""
    stages, chosen, again = [], dict[str, str](), set[str]()
    for stage in plan.stages:
        chosen |= {name: sharding.variant for name, sharding in stage.shardings.items() if sharding.variant}
        again |= stage.recompute
        shardings = {name: replace(sharding, variant="") for name, sharding in stage.shardings.items()}
        stages.append(replace(stage, shardings=shardings, recompute=frozenset()))
    running = cost.running(chosen, again - set(chosen))
    return replace(problem, cost=running), replace(plan, stages=tuple(stages))


def _in_turns(
    cluster: Cluster,
    tasks: PipelineTasks,
    work: Work,
    meshes: Sequence[Mesh],
    rank: NDArray[np.int32],
    devices: int,
) -> tuple[PipelineTasks, Work]:
    """The same where devices share cores."""
    ranks = int(rank.max()) + 1
    lane = np.zeros(ranks)
    np.maximum.at(lane, rank, [len(m.devices) for m in meshes])
    fixed = share_cores(tasks.fixed, np.tile(lane, 3), cluster.at_once)
    own = tasks.fixed.resource[: tasks.actions]
    alone, shared = (np.bincount(own, f.duration[: tasks.actions], minlength=ranks) for f in (tasks.fixed, fixed))
    stretch = np.divide(shared, alone, out=np.ones(ranks), where=alone > 0)
    rows = np.tile(rank, len(work.forward) // len(rank))
    return replace(tasks, fixed=fixed), slowed(work, stretch[rows], cluster.turns(devices))


def _refuse(problem: Problem, graph: Graph, plan: Plan) -> None:
    """What a plan can say and this simulator would silently ignore."""
    for stage in plan.stages:
        for name, sharding in stage.shardings.items():
            if sharding.variant:
                op = graph.ops[graph.position[name]]
                usual = problem.cost.variants(op, np.array([[f.size for f in op.rule.factors]], np.int64))[0]
                if sharding.variant not in (usual, SUMMA):
                    raise Unsupported(
                        f'{name} runs as "{sharding.variant}", but each op is simulated as its first configuration, "{usual}"'
                    )
    for k, stage in enumerate(plan.stages):
        if stage.offload:
            raise Unsupported(
                f"stage {k} swaps activations to the host (offload), which is not simulated: leave offload empty"
            )
        if stage.deal and plan.schedule.name not in (*DEALT, "pipedream"):
            raise Unsupported(
                f"stage {k} deals micro-batches to replicas (deal) under schedule {plan.schedule.name}: that is simulated under "
                f"{', '.join(DEALT)} and pipedream only, so cut the samples instead"
            )


def model_flops(graph: Graph, samples: int, attention_share: float = 1.0) -> float:
    """FLOPs of one step by the usual convention: three forwards, causal attention at half, nothing counted twice.

    Of attention only the share that packed documents leave counts.
    """
    total = 0.0
    for op in graph.ops:
        if op.phase == "forward" and op.flops:
            left = attention_share if "attention" in op.kind else 1.0
            total += op.flops * left * (0.5 if _causal(op.kind, op.args, dict(op.kwargs)) else 1.0)
    return (3.0 if graph.training != "none" else 1.0) * total * samples / graph.samples


def _causal(kind: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    """`is_causal` is argument 5 of scaled_dot_product_attention."""
    if kind != "scaled_dot_product_attention":
        return False
    return kwargs.get("is_causal") is True or (len(args) > 5 and args[5] is True)


def _report(
    problem: Problem,
    graph: Graph,
    plan: Plan,
    program: Program,
    order: Orders,
    tasks: PipelineTasks,
    start: Floats,
    work: Work,
    prices: list[StagePrice],
    last: list[StagePrice],
    sends: Sends,
    step: Step,
    rank: NDArray[np.int32],
    devices: int,
    detail: bool,
) -> Simulation:
    p, runs, each = order.ranks, order.runs, [*prices, *last]
    row_rank = np.tile(rank, order.rows // order.stages)
    duration = tasks.fixed.duration
    busy: Floats = np.bincount(order.task_rank, duration[: tasks.actions], minlength=p).astype(np.float64)
    ended = ends(order, tasks, start)
    slow = int(np.argmax(step.end))
    seconds = _breakdown(problem, order, work, sends, step, rank, slow, busy, ended)
    lanes = tuple(lane_of(problem.cluster, program, rank, r) for r in range(p))
    scale = problem.cost.step_overhead(devices)[0]
    held = memory_of(order, start * scale, (start + duration) * scale, work, rank, detail=detail)
    here, rows_here = np.flatnonzero(rank == slow), np.flatnonzero(row_rank == slow)
    calls = sum((prices[s].step_calls for s in here), np.zeros(len(KINDS), np.int64))
    calls = sum((runs[x] * each[x].calls for x in rows_here), calls)
    moved = sum((prices[s].step_bytes for s in here), np.zeros(len(KINDS)))
    moved = sum((runs[x] * each[x].nbytes[0] for x in rows_here), moved)
    total = step_time(step.seconds)
    waits = float(np.average((ended.max() - busy) / total, weights=[x.devices for x in lanes]))
    kinds = [*KINDS, "send"]
    return Simulation(
        step_seconds=total,
        samples_per_second=plan.samples / total,
        mfu=mfu_of(problem, graph, plan, program, total),
        bubble=waits,
        exposed_communication=sum(seconds.get(k, 0.0) for k in kinds),
        lanes=lanes,
        peak=held.peak,
        peak_by=held.peak_by,
        memory_at=held.times,
        memory=held.tables,
        seconds_by=seconds,
        events=events(order, tasks, start, work, each, sends, step, rank, scale) if detail else (),
        priced_by=problem.cost.name,
        calls_by={k: int(n) for k, n in zip(KINDS, calls, strict=True) if n},
        bytes_by={k: float(b) for k, b in zip(KINDS, moved, strict=True) if b},
        lane_seconds=tuple(
            by_phase(
                _breakdown(problem, order, work, sends, step, rank, r, busy, ended),
                *((runs * x[:, 0])[row_rank == r].sum() for x in (work.forward, work.backward)),
            )
            for r in range(p if detail else 0)
        ),
    )


def by_phase(seconds: Mapping[str, float], forward: float, backward: float) -> dict[str, float]:
    """The parts of a lane's step with its compute told apart by phase."""
    return {
        "forward": float(forward),
        "backward": float(backward),
        **{k: v for k, v in seconds.items() if k != "compute"},
    }


def _breakdown(
    problem: Problem,
    order: Orders,
    work: Work,
    sends: Sends,
    step: Step,
    rank: NDArray[np.int32],
    slow: int,
    busy: Floats,
    ended: Floats,
) -> dict[str, float]:
    """Where the step of lane `slow` goes; the parts add up to the step.

    Without the time of its sends the same order of actions would end earlier: that difference is "send". What it still
    waits is the bubble. The host, stragglers and fixed work are "idle".
    """
    here = np.tile(rank == slow, order.rows // order.stages)
    seconds = named_parts((order.runs[:, None] * (work.forward + work.backward))[here].sum(axis=0))
    for kind, x in zip(KINDS, step.sync[slow], strict=True):
        if x:
            seconds[kind] = seconds.get(kind, 0.0) + float(x)
    free = Sends(
        sends.src, sends.dst, 0 * sends.forward, 0 * sends.backward, sends.gradient, sends.forward_bytes, sends.backward_bytes
    )  # fmt: skip
    if len(sends.src):
        tasks = pipeline_tasks(order, action_seconds(work), free)
        without = min(float(ended[slow]), float(ends(order, tasks, relax(tasks.fixed))[slow]))
        seconds["send"] = float(ended[slow]) - without
    else:
        without = float(ended[slow])
    seconds["bubble"] = max(0.0, without - float(busy[slow])) + float(step.wait[slow])
    seconds["optimizer"] = float(step.optimizer[slow])
    idle = step.seconds - sum(seconds.values())
    seconds["idle"] = max(0.0, idle)
    return seconds


def named_parts(parts: Floats) -> dict[str, float]:
    """Seconds [PARTS] by name."""
    return {name: float(x) for name, x in zip(PARTS[:-1], parts[:-1], strict=True) if x or name == "compute"}


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Memory of all lanes."""

    peak: Floats
    peak_by: tuple[Mapping[str, float], ...]
    times: tuple[Floats, ...] = ()
    tables: tuple[Floats, ...] = ()

    def window(self, first: float, length: float) -> Held:
        """The curves over this stretch of time, from its beginning on."""
        times, tables = [], []
        for when, table in zip(self.times, self.tables, strict=True):
            at = max(0, int(np.searchsorted(when, first, side="right")) - 1)
            end = int(np.searchsorted(when, first + length, side="left"))
            times.append(np.maximum(when[at:end] - first, 0.0))
            tables.append(table[at:end])
        return Held(self.peak, self.peak_by, tuple(times), tuple(tables))


def memory_of(order: Orders, start: Floats, end: Floats, work: Work, rank: NDArray[np.int32], *, detail: bool) -> Held:
    """What each lane holds. `start`, `end`: seconds of all action tasks; `detail`: the curves, too."""
    p = order.ranks
    rest = np.zeros((p, len(CATEGORIES)))
    for column, name in enumerate(("weights", "gradients", "optimizer")):
        np.add.at(rest[:, CATEGORIES.index(name)], rank, work.static[:, column])
    rest[:, CATEGORIES.index("buffers")] = work.workspace
    np.add.at(rest[:, CATEGORIES.index("buffers")], rank, work.boundary)
    peak = rest.sum(axis=1) + peaks(order, work.kept.sum(axis=1), work.buffers)
    changes = deltas(order, work.kept, work.buffers, work.gone)
    at_peak, times, tables = [], [], []
    for r in range(p):
        when, table = curve(order, r, start, end, changes, rest[r])
        at_peak.append(dict(zip(CATEGORIES, map(float, table[int(np.argmax(table.sum(axis=1)))]), strict=True)))
        if detail:
            times.append(when)
            tables.append(table)
    return Held(peak, tuple(at_peak), tuple(times), tuple(tables))


def lane_of(cluster: Cluster, program: Program, rank: NDArray[np.int32], r: int) -> Lane:
    stages = tuple(int(s) for s in np.flatnonzero(rank == r))
    mesh = program.stages[stages[0]].mesh
    first, n = int(mesh.devices[0]), len(mesh.devices)
    if len(program.stages) == 1:
        kind = cluster.type_of(first).kind
        name = f"{kind} {first}" if n == 1 else f"{kind}s {first}-{int(mesh.devices[-1])}"
    else:
        name = f"stage {stages[0]}" if len(stages) == 1 else f"stages {', '.join(map(str, stages))}"
    return Lane(name, n, first, stages)


def mfu_of(problem: Problem, graph: Graph, plan: Plan, program: Program, seconds: float) -> float:
    """NaN where a device has no peak for the dtype that it computes in."""
    recipe, cluster = problem.recipe, problem.cluster
    dtype = recipe.matmul_dtype or recipe.compute_dtype
    devices = devices_of(program)
    if cluster.homogeneous:
        peak = cluster.types[0].peak.get(dtype, float("nan")) * len(devices)
    else:
        peak = sum(cluster.type_of(d).peak.get(dtype, float("nan")) for d in devices)
    return model_flops(graph, plan.samples, recipe.attention_share) * cluster.turns(len(devices)) / (peak * seconds)
