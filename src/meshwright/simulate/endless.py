"""Pipelines without a flush: the steady state, played on a table that is long enough to repeat itself.

    fill ──▶ transient ──▶ every c groups of micro-batches all starts move on by the same time: the period

A group is as many micro-batches as all replicas that take turns need to be back at the first one. An update belongs to the
backward that it follows: the optimizer, and what of the gradient sums is not hidden, by its share of each backward. Replicas
that take turns wait for each other's backward before they go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

import numpy as np

from ..errors import Unsupported
from ..graph.ir import ITEM_BYTES, Floats, Graph
from ..lower.program import Program
from ..plan.model import Plan, Row
from ..plan.problem import Problem
from ..plan.schedules.asynchronous import Worker, staleness, versions_alive
from ..plan.schedules.rows import workers
from .engine import relax
from .estimate import Step, Work, action_seconds, collect, rank_of
from .pipeline import BACKWARD, FORWARD, Orders, from_rows
from .price import KINDS, Pricer, exposed
from .result import Event, Simulation, step_time
from .sends import sends_of
from .tasks import Index32, PipelineTasks, Sends, pipeline_tasks
from .timeline import events

LONGEST = 16
"""Times that the table is doubled before the mean over its second half is taken for the period."""
SAME = 1e-9
"""Relative difference of moves that count as equal."""


@dataclass(frozen=True, slots=True, eq=False)
class Steady:
    """A table, and where it repeats itself."""

    order: Orders
    tasks: PipelineTasks
    start: Floats
    period: float
    """Seconds of one micro-batch."""
    first: float
    """When the micro-batch after the middle of the table enters."""


def table(crew: Sequence[Worker], m: int) -> Orders:
    """The first m micro-batches; worker e is stage e."""
    found = tuple(
        Row((e,), tuple(replace(a, on=e) for a in worker.table(m) if a.kind != "UPDATE"))
        for e, worker in enumerate(crew)
    )
    return from_rows(found, len(crew), m)


def steady(crew: Sequence[Worker], seconds: Floats, sends: Sends) -> Steady:
    """`seconds`: [kind, worker] as `estimate.action_seconds` gives them, with updates in the backwards."""
    group = lcm(*(w.replicas for w in crew))
    depth = max(w.warm_up for w in crew) + 2
    length = 4 * group * depth
    for attempt in range(LONGEST):
        order = table(crew, length)
        tasks = pipeline_tasks(order, seconds, sends, _together(crew, order))
        start = relax(tasks.fixed)
        rows = _starts(order, tasks, start, group)[: length // group - depth]
        found = _repeats(rows)
        if found or attempt + 1 == LONGEST or len(order.kind) > 200_000:
            break
        length *= 2
    half = len(rows) // 2
    period = (found or float((rows[-1] - rows[half]).max()) / (len(rows) - 1 - half)) / group
    return Steady(order, tasks, start, period, float(rows[half].min()))


def _starts(order: Orders, tasks: PipelineTasks, start: Floats, group: int) -> Floats:
    """[group of micro-batches, its forwards and backwards]."""
    at = start[tasks.action_task]
    keys = np.lexsort((order.stage, order.kind, order.micro_batch))
    found: Floats = at[keys].reshape(order.micro_batches // group, -1)
    return found


def _repeats(rows: Floats) -> float:
    """Seconds of a group, where all rows of the last third, and of a whole cycle, are those c groups before, all later by the
    same; else 0. Two rows would not do: 2.5, 2.5, 3 seconds in turn look alike twice in three."""
    n = len(rows)
    for c in range(1, n // 3):
        checked = max(c + 1, n // 3)
        moves = rows[n - checked :] - rows[n - checked - c : n - c]
        if moves.max() - moves.min() <= SAME * max(float(moves.max()), 1e-300):
            return float(moves.mean()) / c
    return 0.0


def _together(crew: Sequence[Worker], order: Orders) -> tuple[Index32, Index32]:
    """(before, after): a replica's next forward waits for the backwards of its round on all the others."""
    before: list[int] = []
    after: list[int] = []
    task = {
        (int(k), int(e), int(j)): int(t)
        for k, e, j, t in zip(order.kind, order.stage, order.micro_batch, order.task, strict=True)
    }
    for e, worker in enumerate(crew):
        if worker.replicas == 1:
            continue
        others = [f for f, other in enumerate(crew) if other.stage == worker.stage and f != e]
        for i in range(order.micro_batches // worker.replicas):
            if (i + 1) % worker.update_every:
                continue
            follows = task.get((FORWARD, e, worker.own(i + worker.warm_up + 1)))
            follows = task.get((BACKWARD, e, worker.own(i + 1))) if follows is None else follows
            for f in others:
                made = task.get((BACKWARD, f, crew[f].own(i)))
                if made is not None and follows is not None:
                    before.append(made)
                    after.append(follows)
    return np.array(before, np.int32), np.array(after, np.int32)


def endless(
    problem: Problem, graph: Graph, plan: Plan, program: Program, pricer: Pricer, *, detail: bool
) -> Simulation:
    """The period of `plan.samples` samples, its parts, and memory with all weight versions.

    Raises:
        Unsupported: weights change without a flush under a schedule that has no updates.
    """
    from . import simulator

    weights = plan.schedule.weights
    crew = workers(plan.schedule, len(plan.stages))
    if not crew or weights.flush:
        raise Unsupported(
            f"schedule {plan.schedule.name} and flush = {str(weights.flush).lower()} contradict each other: pipedream and 2bw "
            "change weights without a flush, all others with one"
        )
    m = max(1, plan.schedule.micro_batches)
    prices = [pricer.stage(code, [program.micro_batch]) for code in program.stages]
    meshes = [code.mesh for code in program.stages]
    sends = sends_of(program, pricer)
    work = collect(prices, 0, meshes, sends, pricer)
    updates, sync = _updates(work, crew, plan, problem.cost.overlap("data"))
    work = replace(work, static=_versions(problem, work, program, crew, plan))
    seconds = action_seconds(work)
    seconds[BACKWARD] += updates + sync.sum(axis=1)
    devices = sum(len(x.devices) for x in meshes)
    turns = problem.cluster.turns(devices)
    played = steady(crew, seconds * turns, sends)
    free = replace(sends, forward=0 * sends.forward, backward=0 * sends.backward)
    unsent = steady(crew, seconds * turns, free).period if len(sends.src) else played.period
    own = np.array([m / w.replicas for w in crew])
    overhead = problem.cost.step_overhead(devices)
    total = step_time(played.period * m * overhead[0] + overhead[1])
    rank = rank_of(played.order)
    busy = own * (seconds[FORWARD] + seconds[BACKWARD]) * turns
    slow = int(np.argmax(busy))

    def parts_of(e: int) -> dict[str, float]:
        """Where a worker's period goes; adds up to it."""
        found = simulator.named_parts(own[e] * turns * (work.forward + work.backward)[e])
        for kind, x in zip(KINDS, own[e] * turns * sync[e], strict=True):
            if x:
                found[kind] = found.get(kind, 0.0) + float(x)
        found["optimizer"] = float(own[e] * turns * updates[e])
        left = max(0.0, played.period * m - float(busy[e]))
        found["send"] = min(left, max(0.0, (played.period - unsent) * m))
        found["bubble"] = left - found["send"]
        found["idle"] = max(0.0, total - sum(found.values()))
        return found

    by = parts_of(slow)
    calls, moved = (
        np.rint(own[slow]) * per + own[slow] / crew[slow].update_every * step
        for per, step in (
            (prices[slow].calls, prices[slow].step_calls),
            (prices[slow].nbytes[0], prices[slow].step_bytes),
        )
    )
    lanes = tuple(simulator.lane_of(problem.cluster, program, rank, e) for e in range(len(crew)))
    held = simulator.memory_of(
        played.order, played.start, played.start + played.tasks.fixed.duration, work, rank, detail=detail
    )
    if detail:
        held = held.window(played.first, total)
    step = _ends(len(crew))
    shown: tuple[Event, ...] = ()
    if detail:
        shown = _window(
            events(played.order, played.tasks, played.start, work, prices, sends, step, rank, 1.0),
            played.first,
            played.period * m,
        )
    entry = crew[0]
    return Simulation(
        step_seconds=total,
        samples_per_second=plan.samples / total,
        mfu=simulator.mfu_of(problem, graph, plan, program, total),
        bubble=float(np.average(np.maximum(0.0, played.period * m - busy) / total, weights=[x.devices for x in lanes])),
        exposed_communication=sum(by.get(k, 0.0) for k in (*KINDS, "send")),
        lanes=lanes,
        peak=held.peak,
        peak_by=held.peak_by,
        memory_at=held.times,
        memory=held.tables,
        seconds_by=by,
        events=shown,
        calls_by={k: round(float(n)) for k, n in zip(KINDS, calls, strict=True) if n},
        bytes_by={k: float(b) for k, b in zip(KINDS, moved, strict=True) if b},
        lane_seconds=tuple(
            simulator.by_phase(parts_of(e), work.forward[e, 0] * own[e] * turns, work.backward[e, 0] * own[e] * turns)
            for e in range(len(crew) if detail else 0)
        ),
        staleness=max(staleness(weights.reads, w, entry) for w in crew),
        priced_by=problem.cost.name,
    )


def _updates(work: Work, crew: Sequence[Worker], plan: Plan, share: float) -> tuple[Floats, Floats]:
    """Of each worker, by its share of one backward: seconds of the optimizer, exposed seconds [worker, KINDS] of sums.

    A sum hides beside the last backward before its update; 2BW's, whose result is read a batch later, beside a whole batch.
    """
    comm = work.sums + work.gathers
    every = np.array([w.update_every for w in crew], np.float64)
    for stages, seconds in work.tied:
        comm[list(stages), KINDS.index("all_reduce")] += seconds
    back, both = work.backward.sum(axis=1), (work.forward + work.backward).sum(axis=1)
    window = every * both if plan.schedule.weights.reads == "previous" else back
    total = comm.sum(axis=1)
    shown = exposed(total, window, share)
    sync = comm * np.divide(shown, total, out=np.zeros(len(crew)), where=total > 0)[:, None]
    return work.optimizer / every, sync / every[:, None]


def _versions(problem: Problem, work: Work, program: Program, crew: Sequence[Worker], plan: Plan) -> Floats:
    """Bytes [worker, STATIC] with every weight version, and a master copy beside them."""
    recipe, static = problem.recipe, work.static.copy()
    rule = plan.schedule.weights
    for e, (worker, code) in enumerate(zip(crew, program.stages, strict=True)):
        static[e, 0] *= versions_alive(rule.reads, rule.stash, worker, crew[0])
        if recipe.param_dtype == recipe.compute_dtype:  # a version is no master: it stays as it was
            own = sum(p.count * p.elements[2] for p in code.params if p.elements[0] == p.elements[2])
            static[e, 2] += own * ITEM_BYTES[recipe.param_dtype]
    return static


def _ends(ranks: int) -> Step:
    """Nothing happens at the end of a step that never ends."""
    none = np.zeros(ranks)
    return Step(np.zeros((ranks, len(KINDS))), none, none, none, 0.0)


def _window(events: Sequence[Event], first: float, length: float) -> tuple[Event, ...]:
    """What begins in this stretch of time, from its beginning on."""
    return tuple(replace(e, start=e.start - first) for e in events if first <= e.start < first + length * (1 - SAME))
