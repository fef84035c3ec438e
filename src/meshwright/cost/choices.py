"""Recorded prices that depend on how an op is run: its tensor-parallel degree and one of several configurations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..cluster.model import DeviceType
from ..errors import InputError
from ..graph.ir import Floats, Ints, Op, Phase
from .base import OpMemory
from .recorded import OpRecord, Recorded, TransferRecord


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run one layer on t devices (a TMPC)."""

    name: str
    seconds: float
    """Forward and backward of one micro-batch."""
    weights: float
    """Bytes on each device; what data parallelism has to synchronise."""
    stashed: float
    """Bytes on each device per micro-batch in flight (A)."""
    fixed: float
    """Bytes on each device besides (B)."""
    arriving: Mapping[str, float] = field(default_factory=dict)
    """Producer -> extra bytes when the edge from it is cut."""
    leaving: Mapping[str, float] = field(default_factory=dict)
    """Reader -> extra bytes when the edge to it is cut."""


RECOMPUTES = "recomp"
"""Part of the name of a configuration that computes its activations again."""


def _suits(choice: Choice, wanted: str) -> bool:
    return choice.name == wanted if wanted else RECOMPUTES in choice.name


class Profile(Recorded):
    """Recorded prices that depend on the tensor-parallel degree and on the configuration (`OpSharding.variant`).

    choices: op -> degree -> its configurations, the first being the plain one. The second factor of every op is that of its
    parts; the first one its samples.
    """

    name: ClassVar[str] = "recorded"

    def __init__(
        self,
        choices: Mapping[str, Mapping[int, tuple[Choice, ...]]],
        transfers: Mapping[tuple[str, str], TransferRecord],
    ) -> None:
        super().__init__({op: OpRecord() for op in choices}, transfers)
        self.choices = choices

    @property
    def holds_all(self) -> bool:
        return True

    def running(self, chosen: Mapping[str, str], again: Collection[str] = ()) -> Profile:
        """The same with configurations chosen: they come first, at every degree that has them.

        Args:
            chosen: op -> name of its configuration.
            again: other ops, which are computed again: as the configuration that says so, where there is one.

        Raises:
            InputError: an op has no configuration of that name.
        """
        choices = dict(self.choices)
        for name, wanted in chosen.items():
            if not any(c.name == wanted for own in choices[name].values() for c in own):
                raise InputError(f'{name} has no configuration "{wanted}"', where=name)
        for name in {*chosen, *again}:
            choices[name] = {
                t: tuple(sorted(own, key=lambda c, name=name: not _suits(c, chosen.get(name, ""))))  # type: ignore[misc]
                for t, own in choices[name].items()
            }
        return Profile(choices, self.transfers)

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        """Seconds of n shards. A profile has one figure for forward and backward; it counts as backward."""
        if phase != "backward":
            return np.zeros(len(sizes))
        return self._share(op, np.asarray(sizes, np.float64), skip=(1,)) * self._of(op, sizes, variant, "seconds")

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        """Bytes of n shards."""
        share = self._share(op, np.asarray(sizes, np.float64), skip=(1,))
        return OpMemory(
            self._of(op, sizes, variant, "fixed"),
            share * self._of(op, sizes, variant, "stashed"),
            np.zeros(len(sizes)),
        )

    def gradients(self, op: Op, sizes: Ints) -> Floats:
        """Bytes of n shards: all weights of the first configuration."""
        return self._of(op, sizes, "", "weights")

    def variants(self, op: Op, sizes: Ints) -> tuple[str, ...]:
        """Names of the configurations at the first shard's degree."""
        return tuple(c.name for c in self._choices(op, int(np.asarray(sizes)[0][1])))

    def _choices(self, op: Op, part: int) -> tuple[Choice, ...]:
        degree = max(1, round(op.rule.factors[1].size / max(part, 1)))
        found = self.choices[op.name].get(degree)
        if found is None:
            known = ", ".join(map(str, sorted(self.choices[op.name])))
            raise InputError(f"{op.name} was not recorded in {degree} parts: recorded are {known}", where=op.name)
        return found

    def _of(self, op: Op, sizes: Ints, variant: str, what: str) -> Floats:
        values = []
        for row in np.asarray(sizes).tolist():
            choices = self._choices(op, row[1])
            named = next((c for c in choices if c.name == variant), None) if variant else choices[0]
            if named is None:
                raise InputError(f'{op.name} has no configuration "{variant}"', where=op.name)
            values.append(float(getattr(named, what)))
        return np.array(values)
