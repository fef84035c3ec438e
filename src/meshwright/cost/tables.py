"""Prices of a cost graph that came from elsewhere: each op has numbered options, each with its price, each edge a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..cluster.model import Cluster, DeviceType
from ..errors import Unsupported
from ..graph.ir import Floats, Ints, Op, Phase
from .base import Collective, CostModel, Group, OpMemory


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """Of one op: a name (unique in the op), a price and bytes of each option."""

    names: tuple[str, ...]
    price: Floats
    memory: Floats


class Tables(CostModel):
    """A recorded cost graph. An option is a variant of its op: `OpSharding.variant` names it.

    No shard can be priced: whoever plans on tables takes them whole (`options`, `pairs`).
    """

    name: ClassVar[str] = "tables"

    def __init__(
        self,
        options: Mapping[str, Options],
        pairs: Sequence[tuple[str, str, Floats]],
        *,
        unit: str = "s",
        live: Sequence[Sequence[str]] = (),
    ) -> None:
        """pairs: (op, op, float64[options of the first, of the second]); parallel ones add up; inf = forbidden.

        live: ops whose bytes are held at a time, for each time; () = those of all ops, at all times.
        """
        self.options = dict(options)
        self.live = tuple(map(tuple, live))
        self.pairs = tuple(pairs)
        self.unit = unit  # type: ignore[misc]  # of this recording

    def variants(self, op: Op, sizes: Ints) -> tuple[str, ...]:
        return self.options[op.name].names

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        """The whole price of an option is that of its forward."""
        options = self.options[op.name]
        price = options.price[options.names.index(variant)] if phase == "forward" else 0.0
        return np.full(len(sizes), price)

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        raise Unsupported("a recorded cost graph prices its own options only")

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        options = self.options[op.name]
        static = np.full(len(sizes), options.memory[options.names.index(variant)])
        return OpMemory(static, np.zeros(len(sizes)), np.zeros(len(sizes)))

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        raise Unsupported("a recorded cost graph prices its own options only")

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        raise Unsupported("a recorded cost graph prices its own options only")
