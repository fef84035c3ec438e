"""Preset "distir": the simulator of DistIR (Santhanam et al. 2021, arXiv 2111.05426, section 4) on the lowered program.

One clock a device. Calls run in the order of ONE program; a call on several devices first sets their clocks to the latest.
So nothing overlaps, sends block both ends, links are never shared. The order of the program: in each step of time every
rank runs its next action if what it needs was made in an earlier step, then what was made is sent; after the last
micro-batch come the gradient sums, then the update.

Memory is what is alive (`explicit`), parameters and the data of all micro-batches all the time. The most is taken after
the results of a call are there and before what it read last is freed.

All devices of a pipeline rank do alike, so a lane stands for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from ..cluster.model import Mesh
from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Floats, Graph
from ..lower import STAGES, Program, lower, unrolled
from ..plan.model import Action, Plan, Row
from ..plan.problem import Problem
from ..plan.schedules import pipes, rows_of
from .call_prices import Prices
from .explicit import Call, StageCalls, stage_calls
from .result import CATEGORIES, Event, Lane, Simulation, step_time

Charge = Literal["all", "last"]
"""Weights whose update is paid for: all of a device, or the last one, as the original does by mistake."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the simulator finds."""

    clock: Floats
    """Seconds [rank] at the end; the step takes the largest."""
    peak: Floats
    """Bytes [rank]."""
    rest: Floats
    """Bytes [rank] of weights, optimizer state and data."""
    ops: int
    """Calls of the explicit program on all devices."""
    compute: Floats
    """Seconds [rank] of local work, without the update; `communication`, `update` likewise."""
    communication: Floats
    update: Floats
    events: tuple[Event, ...] = ()


def distir_step(problem: Problem, plan: Plan, *, charge: Charge = "all", detail: bool = False) -> Step:
    """Plays one step.

    Raises:
        Unsupported: stages without rows, several pipes, backwards in two parts, no flush, or `keep_last`.
    """
    if any(stage.deal for stage in plan.stages):
        raise Unsupported("DistIR's simulator has no replicas that take turns (deal): simulate without its preset")
    graph = plan.rewritten or problem.graph
    program = unrolled(lower(graph, plan, problem.recipe), graph)
    if any(code.keep_last for code in program.stages):
        raise Unsupported(
            "DistIR's simulator plays all micro-batches alike: set keep_last = 0, or simulate without its preset"
        )
    return _Player(problem, plan, graph, program, charge, detail).run()


def distir(problem: Problem, plan: Plan, *, detail: bool = True) -> Simulation:
    """The same as a `Simulation`."""
    step = distir_step(problem, plan, detail=detail)
    total = step_time(float(step.clock.max()))
    slow = int(np.argmax(step.clock))
    table = rows_of(plan.schedule, len(plan.stages))
    ranks = _ranks(table)
    lanes = []
    for stages in ranks:
        mesh = plan.stages[stages[0]].mesh
        lanes.append(
            Lane(f"stage {', '.join(map(str, stages))}", len(mesh.devices), int(mesh.devices[0]), tuple(stages))
        )
    parts = {
        "compute": float(step.compute[slow]),
        "send": float(step.communication[slow]),
        "optimizer": float(step.update[slow]),
    }
    parts["bubble"] = max(0.0, total - sum(parts.values()))
    busy = step.compute + step.communication + step.update
    changing = step.peak - step.rest
    at_peak = tuple(
        dict(zip(CATEGORIES, (float(a), 0.0, 0.0, float(b), 0.0, 0.0), strict=True))
        for a, b in zip(step.rest, changing, strict=True)
    )
    return Simulation(
        step_seconds=total,
        samples_per_second=plan.samples / total,
        mfu=float("nan"),
        bubble=float(np.mean(1.0 - busy / total)),
        exposed_communication=float(step.communication[slow]),
        lanes=tuple(lanes),
        peak=step.peak,
        peak_by=at_peak,
        memory_at=(),
        memory=(),
        seconds_by=parts,
        events=step.events,
        priced_by=problem.cost.name,
    )


def _ranks(table: Sequence[Row]) -> list[list[int]]:
    """Stages of each row."""
    return [sorted({int(a.on) for a in row.actions if isinstance(a, Action)}) for row in table]


@dataclass(frozen=True, slots=True, eq=False)
class _Phase:
    """A forward or a backward of a stage as arrays over its calls; micro-batch j > 0 costs (later + j · slope) bytes."""

    local: tuple[float, float]
    """Seconds of local work of the first micro-batch, of a later one."""
    communication: float
    first: tuple[Floats, Floats]
    """Bytes made by each call, and freed after it."""
    later: tuple[Floats, Floats]
    slope: tuple[Floats, Floats]
    ops: int

    def bytes(self, j: int) -> tuple[Floats, Floats]:
        if j == 0:
            return self.first
        return self.later[0] + j * self.slope[0], self.later[1] + j * self.slope[1]


class _Player:
    def __init__(
        self, problem: Problem, plan: Plan, graph: Graph, program: Program, charge: Charge, detail: bool
    ) -> None:
        self.problem, self.plan, self.graph, self.program = problem, plan, graph, program
        self.charge, self.detail = charge, detail
        self.cost, self.cluster, self.recipe = problem.cost, problem.cluster, problem.recipe
        self.m = plan.schedule.micro_batches
        self.table = _table(plan)
        self.rank = {int(a.on): r for r, row in enumerate(self.table) for a in row.actions if isinstance(a, Action)}
        self.prices = Prices(self.cost, self.cluster, graph, program.micro_batch)
        self.stages = [stage_calls(program, graph, self.recipe, s) for s in range(len(program.stages))]
        self.last = [_last_reads(calls, self.m) for calls in self.stages]
        self.phases = [[self._phase(s, forward) for forward in (True, False)] for s in range(len(self.stages))]
        n = len(self.table)
        self.clock, self.live, self.peak = np.zeros(n), np.zeros(n), np.zeros(n)
        self.compute, self.communication, self.update = np.zeros(n), np.zeros(n), np.zeros(n)
        self.ops = 0
        self.events: list[Event] = []

    def run(self) -> Step:
        for s, calls in enumerate(self.stages):
            self.live[self.rank[s]] += self._at_rest(calls)
        rest = self.live.copy()
        self.peak[:] = self.live
        for ran in self._steps():
            for r, action in ran:
                self._act(r, action)
            for _, action in ran:
                self._send(action)
        self._sums()
        self._updates()
        return Step(
            self.clock, self.peak, rest, self.ops, self.compute, self.communication, self.update, tuple(self.events)
        )

    # ---- the order of the program

    def _steps(self) -> Iterator[list[tuple[int, Action]]]:
        """Per step of time the actions that run in it, by rank."""
        before: dict[int, list[int]] = {}
        after: dict[int, list[int]] = {}
        for t in self.program.transfers:
            before.setdefault(t.dst, []).append(t.src)
            if t.grad:
                after.setdefault(t.src, []).append(t.dst)
        done: set[tuple[str, int, int]] = set()
        at = [0] * len(self.table)
        while any(at[r] < len(row.actions) for r, row in enumerate(self.table)):
            ran = []
            for r, row in enumerate(self.table):
                action = row.actions[at[r]] if at[r] < len(row.actions) else None
                if not isinstance(action, Action):
                    continue
                s, j = int(action.on), action.micro_batch
                needs = [("F", x, j) for x in before.get(s, ())]
                if action.kind == "B":
                    needs = [("F", s, j), *(("B", x, j) for x in after.get(s, ()))]
                if all(key in done for key in needs):
                    ran.append((r, action))
            if not ran:
                raise InputError("no order of actions can run this table: ranks wait for each other")
            for r, action in ran:
                at[r] += 1
                done.add((action.kind, int(action.on), action.micro_batch))
            yield ran

    def _act(self, r: int, action: Action) -> None:
        s, j = int(action.on), action.micro_batch
        phase = self.phases[s][action.kind == "B"]
        made, freed = phase.bytes(j)
        if len(made):
            net = np.cumsum(made - freed)
            before = np.concatenate([[0.0], net[:-1]])
            self.peak[r] = max(self.peak[r], self.live[r] + float((before + made).max()))
            self.live[r] += float(net[-1])
        seconds = phase.local[j > 0] + phase.communication
        self._event(r, "compute", action.kind, s, j, float(self.clock[r]), seconds)
        self.clock[r] += seconds
        self.compute[r] += phase.local[j > 0]
        self.communication[r] += phase.communication
        self.ops += phase.ops

    def _send(self, action: Action) -> None:
        s, j = int(action.on), action.micro_batch
        calls, last = self.stages[s], self.last[s]
        sends = calls.sends if action.kind == "F" else calls.returns
        base = len(calls.forward) if action.kind == "F" else last.end - len(calls.returns)
        for k, call in enumerate(sends):
            r, q = self.rank[s], self.rank[call.peer]
            there = self.stages[call.peer]
            number = call.inputs[0]
            nbytes = there.nbytes[there.arrivals[call.on]]
            if r != q:
                start = max(self.clock[r], self.clock[q])
                seconds = self.prices.send(call.nbytes, calls.code.mesh, there.code.mesh)
                for rank, stream in ((r, "send"), (q, "recv")):
                    self.communication[rank] += seconds
                    self.clock[rank] = start + seconds
                    self._event(rank, stream, "send", s, j, float(start), seconds, call.nbytes)
                self.ops += len(calls.code.mesh.devices)
            self.live[q] += nbytes
            self.peak[q] = max(self.peak[q], self.live[q])
            if last.read.get(number) == base + k:
                self.live[r] -= calls.nbytes[number]

    def _sums(self) -> None:
        """Gradients over replicas and over stages that hold a copy."""
        for s, calls in enumerate(self.stages):
            r, mesh = self.rank[s], calls.code.mesh
            for i in calls.code.update:
                if i.kind != "collective":
                    continue
                ranks = [r]
                if STAGES in i.axes:
                    shared = next(p.shared for p in calls.code.params if p.name == i.on)
                    if s > min(shared):  # once for all that hold it
                        continue
                    ranks = [self.rank[x] for x in sorted({s, *shared})]
                    mesh = Mesh(
                        [self.program.stages[x].mesh.devices[0] for x in sorted({s, *shared})], (STAGES,), (len(ranks),)
                    )
                seconds = self.prices.collective(i, i.nbytes, mesh)
                start = float(self.clock[ranks].max())
                for q in ranks:
                    self._event(q, "dp", "all_reduce", s, 0, start, seconds, i.nbytes)
                    self.clock[q] = start + seconds
                    self.communication[q] += seconds
                    self.peak[q] = max(self.peak[q], self.live[q] + i.nbytes)
                self.ops += len(calls.code.mesh.devices) // prod(mesh.size(a) for a in i.axes if a in mesh.axes)
                mesh = calls.code.mesh

    def _updates(self) -> None:
        for s, calls in enumerate(self.stages):
            r = self.rank[s]
            device = self.cluster.type_of(int(calls.code.mesh.devices[0]))
            params = [p for p in calls.code.params if p.elements[2]]
            params = params[-1:] if self.charge == "last" else params
            item = ITEM_BYTES[self.recipe.grad_dtype] + ITEM_BYTES[self.recipe.param_dtype] + self.recipe.state_bytes
            seconds = sum(float(self.cost.traffic(np.array([item * p.elements[2]]), device)[0]) for p in params)
            self._event(r, "optimizer", "UPDATE", s, 0, float(self.clock[r]), seconds)
            self.clock[r] += seconds
            self.update[r] += seconds
            self.ops += len(calls.code.mesh.devices)

    def _event(
        self, r: int, stream: str, kind: str, s: int, j: int, start: float, seconds: float, nbytes: float = 0.0
    ) -> None:
        if self.detail:
            self.events.append(Event(r, stream, f"{kind}{j}", kind, s, j, start, seconds, nbytes))

    # ---- prices and bytes of one stage

    def _at_rest(self, calls: StageCalls) -> float:
        use, master = ITEM_BYTES[self.recipe.compute_dtype], ITEM_BYTES[self.recipe.param_dtype]
        copy = master if self.recipe.param_dtype != self.recipe.compute_dtype else 0
        state = sum(p.elements[2] for p in calls.code.params)
        data = sum(nbytes * (self.m if name in self.prices.grows else 1) for name, nbytes in calls.data.items())
        return sum(calls.weights.values()) * use + state * (copy + self.recipe.state_bytes) + data

    def _phase(self, s: int, forward: bool) -> _Phase:
        calls, last, mesh = self.stages[s], self.last[s], self.stages[s].code.mesh
        own = calls.forward if forward else calls.backward
        base = 0 if forward else len(calls.forward) + len(calls.sends)
        local, communication, ops = [0.0, 0.0], 0.0, 0
        many = self.m > 1
        bytes_ = np.zeros((3, 2, len(own)))  # first, later, slope; made, freed
        for k, call in enumerate(own):
            for number in call.outputs:
                if number in last.read or number in last.results:
                    bytes_[:2, 0, k] += calls.nbytes[number]
            for number in set(call.inputs):
                if last.read.get(number) == base + k:
                    bytes_[:2, 1, k] += calls.nbytes[number]
            if call.kind == "gather":
                size = calls.nbytes[call.inputs[0]]
                if many:
                    bytes_[:2, 0, k] += size
                    bytes_[1, 1, k] += 0.0 if call.joins else size
                    bytes_[2, :, k] += size if call.joins else 0.0
                    local[1] += self.prices.gather(call, size, mesh)
                    ops += len(mesh.devices)
                continue
            seconds = self.prices.call(call, mesh)
            if call.kind == "collective":
                communication += seconds
                ops += len(mesh.devices) // prod(mesh.size(a) for a in call.axes)
            else:
                local[0] += seconds
                local[1] += seconds
                ops += len(mesh.devices)
        # What dies unread is there only for its own call.
        first, later, slope = ((x[0], x[1]) for x in bytes_)
        return _Phase((local[0], local[1]), communication, first, later, slope, ops)


@dataclass(frozen=True, slots=True)
class _Last:
    """Of one stage: value -> position of the call that reads it last, in one list of all calls of a micro-batch."""

    read: dict[int, int]
    results: frozenset[int]
    """Values that stay to the end of the step."""
    end: int


def _last_reads(calls: StageCalls, micro_batches: int) -> _Last:
    everything: list[Call] = [*calls.forward, *calls.sends, *calls.backward, *calls.returns]
    read: dict[int, int] = {}
    results: set[int] = set()
    for k, call in enumerate(everything):
        if call.kind == "gather" and micro_batches == 1:
            results.update(call.inputs)
        read.update(dict.fromkeys(call.inputs, k))
    for number in results:
        read.pop(number, None)
    return _Last(read, frozenset(results), len(everything))


def _table(plan: Plan) -> tuple[Row, ...]:
    schedule = plan.schedule
    if not schedule.weights.flush or pipes(schedule) > 1:
        raise Unsupported(f"preset distir plays steps of one pipe with a flush: schedule {schedule.name} has others")
    table = rows_of(schedule, len(plan.stages))
    if not table and len(plan.stages) == 1:
        table = (Row((0,), tuple(Action(k, 0, j) for j in range(schedule.micro_batches) for k in ("F", "B"))),)
    if not table:
        raise Unsupported(
            "preset distir runs stages in the order of a schedule: this plan has none, so name one such as 1f1b"
        )
    if any(not isinstance(a, Action) or a.kind not in ("F", "B") or a.span > 1 for row in table for a in row.actions):
        raise Unsupported(
            f"preset distir plays whole forwards and backwards, one at a time: schedule {schedule.name} has others"
        )
    return table
