"""From priced stages to the step: what each rank does per micro-batch and once a step, as arrays [rank, chunk].

`finish` ends every simulation; `estimate` is the same answer without tasks, events or plans, for searches over many
schedules of stages that are priced already: about 100 µs. Both doors are equal by test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..cluster.model import Cluster, Mesh
from ..cost.base import CostModel, Group
from ..errors import Unsupported
from ..graph.ir import Floats
from ..plan.model import Schedule
from .memory import STATIC, peaks
from .pipeline import SPLIT, Orders, orders, pipeline_times, short, split_times
from .price import KINDS, Pricer, StagePrice, exposed
from .tasks import Sends

Part = Literal["compute", "communication", "launch"]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One micro-batch size of a plan: per stage [stage], seconds and bytes of one device.

    What a micro-batch costs has a row [row] a stage, and one more each for the last micro-batches where some of them keep
    what others make again (`Orders.row`).
    """

    forward: Floats
    """Seconds [row, PARTS] of one micro-batch."""
    backward: Floats
    weight: Floats
    """Seconds [row] of weight gradients inside the backward."""
    sums: Floats
    """Seconds [stage, KINDS] once a step."""
    gathers: Floats
    optimizer: Floats
    static: Floats
    """Bytes [stage, STATIC]: weights, gradients, optimizer."""
    kept: Floats
    """Bytes [row, 2] of one micro-batch in flight: activations, loss."""
    buffers: Floats
    """Bytes [row, 2]: while a forward, while a backward runs."""
    boundary: Floats
    """Bytes [stage] of buffers for what arrives from and leaves for other stages."""
    workspace: float
    """Bytes of a device that are there whatever it computes."""
    tied: tuple[tuple[tuple[int, ...], float], ...]
    """(stages, seconds) of the sums of tied gradients."""
    gone: Floats | None = None
    """Bytes [row, 2, 2]: see `memory.deltas`."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """How a step ends: seconds per rank, before stragglers and fixed work."""

    sync: Floats
    """Exposed seconds [rank, KINDS] of gradient sums and gathers of updated parameters."""
    optimizer: Floats
    wait: Floats
    """Seconds [rank] that a rank waits for others that hold a copy of its tied parameters."""
    end: Floats
    seconds: float
    """Of the whole step, with stragglers and fixed work."""


def collect(
    prices: Sequence[StagePrice],
    column: int,
    meshes: Sequence[Mesh],
    sends: Sends,
    pricer: Pricer,
    last: Sequence[StagePrice] = (),
) -> Work:
    """Column `column` of the micro-batch sizes that `pricer` has priced, for the stages in order.

    `last`: prices of the last micro-batches of a step, of all stages, if some of them keep what others make again.
    """
    each = (*prices, *last)
    boundary = np.zeros(len(prices))
    if not pricer.cost.holds_all:
        np.add.at(boundary, sends.src, sends.forward_bytes + sends.backward_bytes)
        np.add.at(boundary, sends.dst, sends.forward_bytes + sends.backward_bytes)
    groups: dict[tuple[int, ...], float] = {}
    for p in prices:
        for stages, nbytes in p.tied:
            groups[stages] = max(groups.get(stages, 0.0), nbytes)
    return Work(
        forward=np.array([p.forward[column] for p in each]),
        backward=np.array([p.backward[column] for p in each]),
        weight=np.array([p.weight[column] for p in each]),
        sums=np.array([p.sums for p in prices]),
        gathers=np.array([p.gathers for p in prices]),
        optimizer=np.array([p.optimizer for p in prices]),
        static=np.array([(p.weights, p.gradients, p.state) for p in prices]),
        kept=np.array([(p.kept[column], p.loss[column]) for p in each]),
        buffers=np.array([p.buffers[column] for p in each]),
        boundary=boundary,
        workspace=pricer.workspace,
        tied=tuple((s, tied_seconds(s, b, meshes, pricer.cluster, pricer.cost)) for s, b in groups.items()),
        gone=np.array([p.gone[column] for p in each]),
    )


def tied_seconds(
    stages: tuple[int, ...], nbytes: float, meshes: Sequence[Mesh], cluster: Cluster, cost: CostModel
) -> float:
    """An all-reduce between devices of equal position of some stages; between meshes of other lengths each sends its own to
    every other."""
    if len({(meshes[s].axes, meshes[s].shape) for s in stages}) > 1:
        ends = [int(meshes[s].devices[0]) for s in stages]
        size = np.array([nbytes])
        return max(sum(float(cost.transfer(size, a, b, cluster)[0]) for b in ends) for a in ends)
    parts = [meshes[s].devices for s in stages]
    width = min(len(p) for p in parts)
    devices = tuple(d for p in parts for d in p[:width])
    mesh = Mesh(devices, ("stages", "position"), (len(parts), width))
    return float(cost.collective("all_reduce", np.array([nbytes]), Group(cluster, mesh, ("stages",)))[0])


def action_seconds(work: Work) -> Floats:
    """Seconds [kind, row] of the actions F, B, I, W."""
    forward, backward = work.forward.sum(axis=1), work.backward.sum(axis=1)
    return np.stack([forward, backward, backward - work.weight, work.weight])


def rank_of(orders: Orders) -> NDArray[np.int32]:
    """Rank of every stage."""
    found = np.zeros(orders.stages, np.int32)
    found[orders.stage] = orders.rank_of_action
    return found


def finish(
    work: Work,
    rank: NDArray[np.int32],
    end: Floats,
    share: float,
    overhead: tuple[float, float],
    ready: Floats | None = None,
) -> Step:
    """After the pipeline: gradient sums beside the last backward, the optimizer, gathers beside the next forward.

    Args:
        rank: of each stage.
        end: seconds [rank] at which a rank's last action ends.
        share: of the concurrent compute under which data-parallel communication can hide.
        overhead: `CostModel.step_overhead`.
        ready: seconds [stage] from which on its gradients may be summed over its copies, beside what its rank still does;
            None: from the rank's last action on.
    """
    p = len(end)

    def by_rank(values: Floats) -> Floats:
        out = np.zeros((p, *values.shape[1:]))
        np.add.at(out, rank, values)
        return out

    comm = by_rank(work.sums + work.gathers)
    total = comm.sum(axis=1)
    gathers = by_rank(work.gathers).sum(axis=1) > 0
    stages = len(work.static)
    first, last = work.forward[:stages].sum(axis=1), work.backward[-stages:].sum(axis=1)
    window = by_rank(last) + np.where(gathers, by_rank(first), 0.0)
    shown = exposed(total, window, share)
    sync = comm * np.divide(shown, total, out=np.zeros(p), where=total > 0)[:, None]
    wait, reduce = np.zeros(p), KINDS.index("all_reduce")
    at = end[rank] if ready is None else ready
    free = np.full(p, -np.inf)  # when a rank's last sum over copies ends
    for sharing, seconds in sorted(work.tied, key=lambda x: float(at[list(x[0])].max())):
        ranks = np.unique(rank[list(sharing)])
        begin = max(float(at[list(sharing)].max()), float(free[ranks].max()))
        done = begin + (seconds if len(ranks) > 1 else 0.0)
        since = np.maximum(end[ranks], free[ranks])
        wait[ranks] += np.maximum(0.0, begin - since)
        sync[ranks, reduce] += np.maximum(0.0, done - np.maximum(since, begin))
        free[ranks] = done
    start = np.maximum(end, free)
    optimizer = by_rank(work.optimizer)
    done = start + shown + optimizer
    return Step(sync, optimizer, wait, done, float(done.max()) * overhead[0] + overhead[1])


def lags(sends: Sends, p: int, v: int) -> tuple[Floats, Floats] | None:
    """Seconds [rank, chunk] of the send that leaves a chunk, where every stage sends to the next one only; else None."""
    s = p * v
    forward, backward = np.zeros(s), np.zeros(s)
    if len(sends.src) != s - 1 or (sends.dst != sends.src + 1).any() or not sends.gradient.all():
        return None
    forward[sends.src] = sends.forward
    backward[sends.dst] = sends.backward
    return forward.reshape(v, p).T, backward.reshape(v, p).T


def estimate(
    work: Work, schedule: Schedule, sends: Sends, v: int, share: float, overhead: tuple[float, float]
) -> tuple[float, Floats]:
    """(seconds of a step, peak bytes [rank]) of gpipe, 1f1b, interleaved, bfs or zb-h1 over a chain of stages.

    Raises:
        Unsupported: another schedule, or micro-batches that are not alike.
        ValueError: stages that do not form a chain.
    """
    stages = len(work.static)
    if len(work.forward) != stages:
        raise Unsupported("the last micro-batches keep what others make again (keep_last): simulate the plan")
    p = stages // v
    lag = lags(sends, p, v)
    if lag is None:
        raise ValueError("the stages are no chain: simulate the plan")
    forward, backward = work.forward.sum(axis=1), work.backward.sum(axis=1)
    if schedule.name in SPLIT:
        end = split_times(schedule, forward, backward, work.weight, lag[0].ravel(), lag[1].ravel())
    else:
        _, end = pipeline_times(schedule, forward.reshape(v, p).T, backward.reshape(v, p).T, *lag)
    rank = np.arange(stages, dtype=np.int32) % p
    step = finish(work, rank, end, share, overhead)
    order = _orders(schedule.name, schedule.micro_batches, v, stages, short(schedule))
    return step.seconds, peak_bytes(work, order)


def peak_bytes(work: Work, orders: Orders) -> Floats:
    """Bytes [rank]: the order of a rank's actions decides, not their times."""
    rank = rank_of(orders)
    fixed = np.full(orders.ranks, work.workspace)
    np.add.at(fixed, rank, work.static.sum(axis=1) + work.boundary)
    return fixed + peaks(orders, work.kept.sum(axis=1), work.buffers)


@lru_cache(maxsize=16)
def _orders(name: str, m: int, v: int, stages: int, short: bool) -> Orders:
    args = ({"v": v} if v > 1 else {}) | ({"short": 1} if short else {})
    return orders(Schedule(name, m, args), stages)


__all__ = ["STATIC", "Step", "Work", "collect", "estimate", "finish", "peak_bytes"]
