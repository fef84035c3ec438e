"""Who runs which action when: orders of the named schedules as arrays, and the fast path for the common ones.

`plan.schedules` says the same in rows of `Action`; half a million of those take a second to build, the arrays 20 ms.
Chunk c of rank r is stage c · p + r.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, Unsupported
from ..graph.ir import Floats
from ..plan.model import Row, Schedule
from ..plan.schedules.rows import GENERATORS, chunks_of, conditions, rows_of

FORWARD, BACKWARD, INPUT_GRAD, WEIGHT_GRAD = range(4)
KINDS = ("F", "B", "I", "W")
FAST = frozenset({"gpipe", "1f1b", "interleaved", "bfs"})
SPLIT = frozenset({"zb-h1"})
"""Backwards in two actions, with a fast path of their own."""
Index32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """Actions of all ranks, rank after rank, each in its order: rank_ptr[r]:rank_ptr[r + 1]."""

    kind: NDArray[np.int8]
    stage: Index32
    micro_batch: Index32
    task: Index32
    """Which task an action is part of: its own, or one task for the two of a joint pair."""
    task_rank: Index32
    """Rank of each task, ascending."""
    rank_ptr: NDArray[np.int64]
    stages: int
    micro_batches: int
    reduced: Index32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """Per stage: the task after which the sum of its gradients over its copies may begin, -1 = its rank's last; empty if no
    row says."""
    keep_last: Index32 = field(default_factory=lambda: np.zeros(0, np.int32))
    """Per stage: how many of the last micro-batches keep what others make again; empty if all are alike."""

    @property
    def rows(self) -> int:
        """Length of tables of what one micro-batch costs: a row a stage, and once more for micro-batches that keep."""
        return self.stages * (2 if len(self.keep_last) else 1)

    @property
    def row(self) -> Index32:
        """Per action: its row in such tables."""
        if not len(self.keep_last):
            return self.stage
        kept = self.micro_batch >= self.micro_batches - self.keep_last[self.stage]
        return np.where(kept, self.stage + self.stages, self.stage).astype(np.int32)

    @property
    def runs(self) -> NDArray[np.int64]:
        """Micro-batches [row] that run on a stage."""
        return np.bincount(self.row[self.kind == FORWARD], minlength=self.rows)

    @property
    def ranks(self) -> int:
        return len(self.rank_ptr) - 1

    @property
    def rank_of_action(self) -> Index32:
        return self.task_rank[self.task]


def orders(schedule: Schedule, stages: int, rows: tuple[Row, ...] = ()) -> Orders:
    """Of a schedule over `stages` stages.

    Raises:
        InputError: the number of stages or micro-batches does not suit the schedule.
        Unsupported: a name without arrays here and without rows.
    """
    m = schedule.micro_batches
    rows = rows or schedule.rows
    if rows:
        return from_rows(rows, stages, m)
    v = chunks(schedule, stages)
    p = stages // v
    name = schedule.name
    if name == "dataflow" and stages == 1:
        name = "1f1b"
    if name == "zb-h1":
        return _zero_bubble(p, m)
    if name in FAST:
        return _two_pass(p, v, m, warm_up(name, p, v, m, short(schedule)), breadth=name in ("gpipe", "bfs"))
    if name in GENERATORS:
        return from_rows(rows_of(schedule, stages), stages, m)
    raise Unsupported(
        f'schedule "{name}" over {stages} stages has no rows: give its rows, or use gpipe, 1f1b, interleaved, bfs or zb-h1'
    )


def chunks(schedule: Schedule, stages: int) -> int:
    """Stages per rank of a named schedule.

    Raises:
        InputError: stages or micro-batches for which the schedule is not defined.
    """
    v = chunks_of(schedule)
    if schedule.name == "dataflow":
        return 1
    if stages % v:
        raise InputError(f"schedule {schedule.name}: {stages} stages do not divide into v = {v} a rank")
    rest = {name: value for name, value in schedule.args.items() if name != "v"}
    problem = conditions(schedule.name, stages // v, schedule.micro_batches, v, rest)
    if problem:
        raise InputError(problem)
    return v


def short(schedule: Schedule) -> bool:
    """Whether interleaved steps of as many micro-batches as ranks warm up no longer than others."""
    return bool(schedule.args.get("short", 0))


def warm_up(name: str, p: int, v: int, m: int, short: bool) -> Index32:
    """Per rank: forwards before the first backward, less one."""
    rank = np.arange(p)
    if name in ("gpipe", "bfs"):
        return np.full(p, m * v, np.int32)
    if v == 1:
        return np.minimum(p - 1 - rank, m - 1).astype(np.int32)
    if m == p and not short:  # Megatron runs all forwards first
        return np.full(p, m * v, np.int32)
    return np.minimum(2 * (p - 1 - rank) + (v - 1) * p, m * v).astype(np.int32)


def pipeline_times(
    schedule: Schedule, forward: Floats, backward: Floats, lag_forward: Floats, lag_backward: Floats
) -> tuple[Floats, Floats]:
    """Per rank (start of its last backward, end), seconds: the simulator's answer without its tasks, for searches.

    Args:
        forward, backward: seconds [rank, chunk] of one micro-batch.
        lag_forward, lag_backward: seconds [rank, chunk] of the send that leaves the chunk.

    Raises:
        Unsupported: the schedule is not gpipe, 1f1b, interleaved or bfs.
    """
    from . import _pipeline_kernels

    p, v = forward.shape
    name = "1f1b" if schedule.name == "dataflow" and p * v == 1 else schedule.name
    if name not in FAST or schedule.rows:
        raise Unsupported(f'schedule "{schedule.name}" has no fast path: simulate its rows')
    chunks(schedule, p * v)
    m = schedule.micro_batches
    last, end = _pipeline_kernels.pipeline(
        forward,
        backward,
        lag_forward,
        lag_backward,
        warm_up(name, p, v, m, short(schedule)),
        m,
        int(name in ("gpipe", "bfs")),
    )
    return last, end


def split_times(
    schedule: Schedule, forward: Floats, backward: Floats, weight: Floats, lag_forward: Floats, lag_backward: Floats
) -> Floats:
    """End [rank], seconds: the same for zb-h1.

    Args:
        forward, backward, weight: seconds [rank] of one micro-batch; weight gradients are inside the backward.
        lag_forward, lag_backward: seconds [rank] of the send that leaves.

    Raises:
        Unsupported: another schedule.
    """
    from . import _pipeline_kernels

    if schedule.name not in SPLIT or schedule.rows:
        raise Unsupported(f'schedule "{schedule.name}" has no fast path: simulate its rows')
    chunks(schedule, len(forward))
    found: Floats = _pipeline_kernels.zero_bubble(
        forward, backward - weight, weight, lag_forward, lag_backward, schedule.micro_batches
    )
    return found


def _two_pass(p: int, v: int, m: int, warm: Index32, *, breadth: bool) -> Orders:
    """Ranks that run `warm` + 1 forwards, then one backward and one forward in turn, then the remaining backwards."""
    n = m * v
    k = np.arange(n)
    if breadth:
        chunk, micro = np.divmod(k, m)
        back_micro = m - 1 - micro
    elif v > 1:
        chunk, micro = (k % (p * v)) // p, k // (p * v) * p + k % p
        back_micro = micro
    else:
        chunk, micro = np.zeros(n, np.int64), k
        back_micro = micro
    ahead = np.minimum(warm.astype(np.int64), n)[:, None]
    forward_at = np.where(k < ahead, k, 2 * k - ahead)
    backward_at = np.where(k < n - ahead, ahead + 2 * k + 1, n + k)
    rank = np.arange(p)[:, None]
    kind = np.empty((p, 2 * n), np.int8)
    stage = np.empty((p, 2 * n), np.int32)
    micro_batch = np.empty((p, 2 * n), np.int32)
    for at, what, of, which in (
        (forward_at, FORWARD, chunk, micro),
        (backward_at, BACKWARD, v - 1 - chunk, back_micro),
    ):
        np.put_along_axis(kind, at, np.int8(what), axis=1)
        np.put_along_axis(stage, at, (of * p + rank).astype(np.int32), axis=1)
        np.put_along_axis(micro_batch, at, np.broadcast_to(which, at.shape).astype(np.int32), axis=1)
    return _singles(kind.ravel(), stage.ravel(), micro_batch.ravel(), np.full(p, 2 * n), p * v, m)


def _zero_bubble(p: int, m: int) -> Orders:
    """zb-h1: p − r − 1 forwards; then F if any, I(j), and W(j − r) from j = r on; then the remaining W."""
    kinds, stages, micros = [], [], []
    for r in range(p):
        warm = min(p - r - 1, m)
        row = [(FORWARD, j) for j in range(warm)]
        for j in range(m):
            if warm + j < m:
                row.append((FORWARD, warm + j))
            row.append((INPUT_GRAD, j))
            if j >= r:
                row.append((WEIGHT_GRAD, j - r))
        row += [(WEIGHT_GRAD, j) for j in range(max(0, m - r), m)]
        kinds += [k for k, _ in row]
        micros += [j for _, j in row]
        stages += [r] * len(row)
    return _singles(np.array(kinds, np.int8), np.array(stages), np.array(micros), np.full(p, 3 * m), p, m)


def _singles(
    kind: NDArray[np.int8],
    stage: NDArray[np.signedinteger],
    micro: NDArray[np.signedinteger],
    lengths: NDArray[np.int64],
    s: int,
    m: int,
) -> Orders:
    rank_ptr = np.concatenate([[0], np.cumsum(lengths)])
    return Orders(
        kind=kind,
        stage=np.asarray(stage, np.int32),
        micro_batch=np.asarray(micro, np.int32),
        task=np.arange(len(kind), dtype=np.int32),
        task_rank=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        rank_ptr=rank_ptr,
        stages=s,
        micro_batches=m,
    )


def from_rows(rows: tuple[Row, ...], stages: int, m: int) -> Orders:
    kind: list[int] = []
    stage: list[int] = []
    micro: list[int] = []
    task: list[int] = []
    task_rank: list[int] = []
    lengths: list[int] = []
    reduced = np.full(stages, -1, np.int32)
    for rank, row in enumerate(rows):
        before = len(kind)
        for entry in row.actions:
            together = entry if isinstance(entry, tuple) else (entry,)
            priced = [a for a in together if a.kind in KINDS]
            for a in priced:
                if not isinstance(a.on, int) or not 0 <= a.on < stages:
                    raise InputError(f"row {rank} runs {a.kind} on {a.on!r}, but the plan has stages 0 to {stages - 1}")
                if not 0 <= a.micro_batch <= m - a.span:
                    raise InputError(
                        f"row {rank} runs {a.on}{a.kind}{a.micro_batch}, but the schedule has micro-batches 0 to {m - 1}"
                    )
                for j in range(a.micro_batch, a.micro_batch + a.span):
                    kind.append(KINDS.index(a.kind))
                    stage.append(a.on)
                    micro.append(j)
                    task.append(len(task_rank))
            if priced:
                task_rank.append(rank)
            for a in together:
                if a.kind == "REDUCE" and isinstance(a.on, int) and len(kind) > before:
                    reduced[a.on] = len(task_rank) - 1
        lengths.append(len(kind) - before)
    return Orders(
        kind=np.array(kind, np.int8),
        stage=np.array(stage, np.int32),
        micro_batch=np.array(micro, np.int32),
        task=np.array(task, np.int32),
        task_rank=np.array(task_rank, np.int32),
        rank_ptr=np.concatenate([[0], np.cumsum(lengths)]),
        stages=stages,
        micro_batches=m,
        reduced=reduced if (reduced >= 0).any() else np.zeros(0, np.int32),
    )
