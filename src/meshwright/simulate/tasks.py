"""From orders and prices to tasks: actions on ranks, and the sends between them, as arrays for `engine.relax`.

    rank r      F0  F1  B0  …            one resource per rank
    sends of r    F0→ F1→                one stream per rank and direction, in the order of the producers
    returns of r        ←B0

A send of a stage to itself or to a stage of the same rank takes no time and is an edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.ir import Floats
from .engine import FixedOrder, fixed_order
from .pipeline import BACKWARD, FORWARD, INPUT_GRAD, WEIGHT_GRAD, Orders

Index32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Sends:
    """What flows between stages, per micro-batch: arrays over pairs (src stage, dst stage)."""

    src: Index32
    dst: Index32
    forward: Floats
    """Seconds from src to dst."""
    backward: Floats
    """Seconds of the gradient back."""
    gradient: NDArray[np.bool_]
    """Whether one comes back."""
    forward_bytes: Floats
    backward_bytes: Floats


@dataclass(frozen=True, slots=True, eq=False)
class PipelineTasks:
    fixed: FixedOrder
    actions: int
    """Tasks 0 … actions − 1 are actions, the rest are sends."""
    action_task: Index32
    """Per action of the orders: its task."""
    send_pair: Index32
    """Per send: its pair."""
    send_micro_batch: Index32
    send_back: NDArray[np.bool_]
    """Per send: whether it carries a gradient."""


def chain(p: int, v: int, lag_forward: Floats, lag_backward: Floats, nbytes: float = 0.0) -> Sends:
    """Stage s sends to s + 1 only; lags [rank, chunk] of the stage that the send leaves."""
    s = p * v
    stage = np.arange(s - 1, dtype=np.int32)
    rank, chunk = stage % p, stage // p
    after, after_chunk = (stage + 1) % p, (stage + 1) // p
    size = np.full(s - 1, nbytes)
    return Sends(
        stage,
        stage + 1,
        np.asarray(lag_forward, np.float64)[rank, chunk],
        np.asarray(lag_backward, np.float64)[after, after_chunk],
        np.ones(s - 1, bool),
        size,
        size,
    )


def pipeline_tasks(
    orders: Orders, seconds: Floats, sends: Sends, after: tuple[Index32, Index32] | None = None
) -> PipelineTasks:
    """All tasks of one step.

    Args:
        seconds: [kind, row] of one micro-batch, kinds as in `pipeline.KINDS`, rows as in `Orders`.
        after: pairs of tasks of which the second waits for the first, besides what values flow between.
    """
    stages, m = orders.stages, orders.micro_batches
    n = len(orders.task_rank)
    duration = np.bincount(orders.task, seconds[orders.kind, orders.row], minlength=n)
    forward = _table(orders, FORWARD)
    weight = _table(orders, WEIGHT_GRAD)
    backward = np.maximum(_table(orders, BACKWARD), _table(orders, INPUT_GRAD))
    rank_of_stage = np.zeros(stages, np.int32)
    rank_of_stage[orders.stage] = orders.rank_of_action
    sources: list[NDArray[np.int32]] = []
    targets: list[NDArray[np.int32]] = []

    def edge(source: NDArray[np.int32], target: NDArray[np.int32]) -> None:
        """Where both exist; the two actions of one joint task need no edge."""
        there = (source >= 0) & (target >= 0) & (source != target)
        sources.append(source[there])
        targets.append(target[there])

    if after is not None:
        edge(*after)
    # A stage whose gradient comes from elsewhere has its backward after its forward by that way.
    ends = np.ones(stages, bool)
    ends[sends.src[sends.gradient]] = False
    for s in np.flatnonzero(ends):
        edge(forward[s], backward[s])
    if (weight >= 0).any():
        edge(backward.ravel(), weight.ravel())

    durations = [duration]
    resources = [orders.task_rank]
    pairs, micros, backs = [], [], []
    next_task = n
    for back in (False, True):
        table = backward if back else forward
        source_stage, target_stage = (sends.dst, sends.src) if back else (sends.src, sends.dst)
        use = np.flatnonzero(sends.gradient) if back else np.arange(len(sends.src))
        remote = rank_of_stage[source_stage[use]] != rank_of_stage[target_stage[use]]
        for k in use[~remote]:
            edge(table[source_stage[k]], table[target_stage[k]])
        use = use[remote]
        producer = table[source_stage[use]]
        consumer = table[target_stage[use]]
        pair = np.repeat(use.astype(np.int32), m)
        micro = np.tile(np.arange(m, dtype=np.int32), len(use))
        producer, consumer = producer.ravel(), consumer.ravel()
        there = (producer >= 0) & (consumer >= 0)
        order = np.argsort(producer[there], kind="stable")
        producer, consumer = producer[there][order], consumer[there][order]
        pair, micro = pair[there][order], micro[there][order]
        task = np.arange(next_task, next_task + len(producer), dtype=np.int32)
        next_task += len(producer)
        edge(producer, task)
        edge(task, consumer)
        durations.append((sends.backward if back else sends.forward)[pair])
        resources.append(orders.task_rank[producer] + orders.ranks * (1 + back))
        pairs.append(pair)
        micros.append(micro)
        backs.append(np.full(len(pair), back))
    fixed = fixed_order(
        np.concatenate(durations),
        np.concatenate(resources).astype(np.int32),
        np.concatenate(sources),
        np.concatenate(targets),
        resources=3 * orders.ranks,
    )
    return PipelineTasks(fixed, n, orders.task, np.concatenate(pairs), np.concatenate(micros), np.concatenate(backs))


def _table(orders: Orders, kind: int) -> NDArray[np.int32]:
    """task [stage, micro-batch] of one kind of action, −1 = none."""
    table = np.full((orders.stages, orders.micro_batches), -1, np.int32)
    here = orders.kind == kind
    table[orders.stage[here], orders.micro_batch[here]] = orders.task[here]
    return table
