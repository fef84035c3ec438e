"""Versions of weights of one stage on one rank. A version is never changed: an update makes a new one beside it.

    version v = the weights after v updates since the pipeline began

An old version lives as long as a micro-batch between its forward and its backward reads it, or a later forward will.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ...errors import ExecutionError
from ...plan.model import Weights
from ...plan.schedules.asynchronous import Worker, version_read, versions_alive
from .masters import Masters


class Versions:
    def __init__(
        self,
        masters: Masters,
        rule: Weights,
        worker: Worker,
        entry: Worker,
        names: Collection[str],
    ) -> None:
        """`names`: of the weights that are meant. `worker`: of the stage whose updates make their versions.

        `entry`: a worker of the input stage, whose newest version counts under `reads="entry"`.
        """
        self._masters, self._rule, self._worker, self._entry = masters, rule, worker, entry
        self._names = frozenset(names)
        self.most = versions_alive(rule.reads, rule.stash, worker, entry)
        """Versions that may be there at once."""
        self.begin()

    def begin(self) -> None:
        """The pipeline begins: the weights as they are become version 0."""
        self.number = 0
        """Of the newest."""
        self._kept: dict[int, Mapping[str, Tensor]] = {0: self._published()}
        self._reading: dict[int, int] = {}
        self._forwards = 0

    @property
    def newest(self) -> Mapping[str, Tensor]:
        return self._kept[self.number]

    @property
    def alive(self) -> frozenset[int]:
        """Numbers of the versions that are in memory."""
        return frozenset((*self._kept, *self._reading.values()))

    def take(self, i: int) -> Mapping[str, Tensor]:
        """What the i-th micro-batch of the worker reads; its forward begins."""
        number = self._wanted(i)
        if number not in self._kept:
            raise ExecutionError(
                f"micro-batch {self._worker.own(i)} reads version {number} of stage {self._worker.stage}, which has "
                f"{sorted(self._kept)}: the schedule is damaged"
            )
        self._forwards = i + 1
        if self._rule.stash:
            self._reading[i] = number
        weights = self._kept[number]
        self._discard()
        return weights

    def give_back(self, i: int) -> None:
        """The backward of the i-th is over."""
        self._reading.pop(i, None)

    def update(self) -> None:
        """The masters have changed."""
        self.number += 1
        self._kept[self.number] = self._published()
        self._discard()
        if len(self.alive) > self.most:
            raise ExecutionError(
                f"stage {self._worker.stage} holds {len(self.alive)} weight versions, its schedule needs {self.most}"
            )

    def _published(self) -> Mapping[str, Tensor]:
        self._masters.publish(self._names, fresh=True)
        return {name: x for name, x in self._masters.params.items() if name in self._names}

    def _wanted(self, i: int) -> int:
        return version_read(self._rule.reads, self._worker, self._entry, i)

    def _discard(self) -> None:
        """What no later forward reads."""
        newest = self._rule.reads == "newest"
        first = self.number if newest else min(self._wanted(self._forwards), self.number)
        self._kept = {n: weights for n, weights in self._kept.items() if n >= first}
