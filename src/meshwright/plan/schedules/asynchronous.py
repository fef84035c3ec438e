"""Pipelines without a flush: PipeDream (SOSP 2019, DOI 10.1145/3341301.3359646) and PipeDream-2BW (arXiv 2006.09503).

Each worker runs a stage without end: some forwards to warm up, then one forward and one backward in turn, and an update of
its weights after so many backwards (`Worker`). A table is the first micro-batches of that, with the drain at the end.

Version v of a stage's weights is what v updates made. Which one a micro-batch reads (`version_read`):

    newest      what its stage has when its forward begins
    previous    2BW: max(⌊k / m⌋ − 1, 0), one update behind the batch that it belongs to
    entry       vertical sync: what the input stage had when the micro-batch entered there
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeAlias

from ..model import Action

Reads: TypeAlias = Literal["newest", "previous", "entry"]


def warm_up(replicas: Sequence[int], s: int) -> int:
    """Forwards of each replica of stage s before it alternates; it keeps one weight version more than that."""
    return (sum(replicas) - 1 - sum(replicas[:s])) // replicas[s]


@dataclass(frozen=True, slots=True)
class Worker:
    """One replica of one stage; its micro-batches are `replica`, `replica` + `replicas`, …"""

    stage: int
    warm_up: int
    replica: int = 0
    replicas: int = 1
    update_every: int = 1
    """Own backwards from update to update."""

    def actions(self) -> Iterator[Action]:
        """Without end."""
        for i in count():
            yield Action("F", self.stage, self.own(i))
            if i >= self.warm_up:
                yield from self._backward(i - self.warm_up)

    def drain(self, forwards: int) -> Iterator[Action]:
        """What is left to do after so many forwards, if no other comes."""
        for i in range(max(forwards - self.warm_up, 0), forwards):
            yield from self._backward(i)

    def table(self, m: int) -> tuple[Action, ...]:
        """The first m micro-batches of the pipeline, and the drain."""
        own = len(range(self.replica, m, self.replicas))
        found: list[Action] = []
        forwards = 0
        for action in self.actions():
            if action.kind == "F":
                if forwards == own:
                    break
                forwards += 1
            found.append(action)
        return (*found, *self.drain(own))

    def own(self, i: int) -> int:
        """The i-th micro-batch of this worker."""
        return self.replica + i * self.replicas

    def done(self, i: int) -> int:
        """Updates before the forward of its i-th micro-batch."""
        return max(i - self.warm_up, 0) // self.update_every

    def _backward(self, i: int) -> Iterator[Action]:
        yield Action("B", self.stage, self.own(i))
        if (i + 1) % self.update_every == 0:
            yield Action("UPDATE", self.stage, self.own(i) if self.update_every == 1 else i // self.update_every)


def pipedream_workers(replicas: Sequence[int], update_every: int = 1) -> tuple[Worker, ...]:
    """The replicas of stage 0, then those of stage 1, and so on."""
    return tuple(
        Worker(s, warm_up(replicas, s), replica, n, update_every)
        for s, n in enumerate(replicas)
        for replica in range(n)
    )


def double_buffered_workers(p: int, m: int) -> tuple[Worker, ...]:
    """2BW: an update after every m-th backward, stages at different times."""
    return tuple(Worker(r, p - 1 - r, update_every=m) for r in range(p))


def pipedream(m: int, replicas: Sequence[int]) -> tuple[tuple[Action, ...], ...]:
    """Actions of all workers for m mini-batches."""
    return tuple(worker.table(m) for worker in pipedream_workers(replicas))


def double_buffered(p: int, m: int, r: int, batches: int) -> tuple[Action, ...]:
    """Actions of rank r of 2BW for some batches of m micro-batches."""
    return double_buffered_workers(p, m)[r].table(m * batches)


def version(k: int, m: int) -> int:
    """The weight version that micro-batch k of 2BW uses, forward and backward: never older than one update."""
    return max(k // m - 1, 0)


def version_read(reads: Reads, worker: Worker, entry: Worker, i: int) -> int:
    """The version that a worker's i-th micro-batch reads.

    `entry`: the worker of the input stage that had the same micro-batch. Versions of stages with other numbers of replicas
    are compared by the micro-batches that made them.
    """
    if reads == "previous":
        return version(i, worker.update_every)
    newest = worker.done(i)
    if reads == "newest":
        return newest
    seen = entry.done(worker.own(i) // entry.replicas) * entry.update_every * entry.replicas
    return min(newest, seen // (worker.update_every * worker.replicas))


def staleness(reads: Reads, worker: Worker, entry: Worker) -> int:
    """Updates between the weights that a gradient is of and those that it changes, once the pipeline is full."""
    every = worker.update_every
    late = range(4 * (worker.warm_up + entry.warm_up + 2) * every, 6 * (worker.warm_up + entry.warm_up + 2) * every)
    return max(i // every - version_read(reads, worker, entry, i) for i in late)


def versions_alive(reads: Reads, stash: bool, worker: Worker, entry: Worker) -> int:
    """Weight versions that a worker holds at most, the newest among them. `entry`: see `version_read`."""
    if reads == "previous":
        return 2
    if not stash and reads == "newest":
        return 1
    ahead = max(worker.warm_up, entry.warm_up) if reads == "entry" else worker.warm_up
    every = worker.update_every
    return ahead // every + 1 + (every > 1)
