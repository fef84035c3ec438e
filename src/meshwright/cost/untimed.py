"""Graphs of which FLOPs and bytes are known and no times: what can be decided on them is where to cut."""

from __future__ import annotations

from typing import ClassVar

from ..cluster.model import Cluster, DeviceType
from ..errors import Unsupported
from ..graph.ir import Floats, Ints, Op, Phase
from .base import Collective, CostModel, Group, OpMemory

UNKNOWN = "this graph has FLOPs and bytes only, and no times"


class Untimed(CostModel):
    """Nothing has a price."""

    name: ClassVar[str] = "untimed"
    unit: ClassVar[str] = "bytes"

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        raise Unsupported(UNKNOWN)

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        raise Unsupported(UNKNOWN)

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        raise Unsupported(UNKNOWN)

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        raise Unsupported(UNKNOWN)

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        raise Unsupported(UNKNOWN)
