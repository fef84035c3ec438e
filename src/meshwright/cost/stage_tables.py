"""Prices of whole stages: an interval of layers on a submesh in one of several configurations, from a profiler or a search."""

from __future__ import annotations

from typing import ClassVar

from ..cluster.model import Cluster, DeviceType
from ..errors import Unsupported
from ..graph.ir import Floats, Ints, Op, Phase
from .base import Collective, CostModel, Group, OpMemory

_WHOLE = "recorded prices of stages speak of whole stages only"


class StageTables(CostModel):
    """No part of a stage can be priced: whoever plans on it takes stages whole."""

    name: ClassVar[str] = "stage-tables"
    unit: ClassVar[str] = "s"

    def __init__(self, seconds: Floats, following: Ints, submeshes: tuple[tuple[int, int], ...]) -> None:
        """seconds: [first layer, last layer, submesh, configuration], inf = impossible; following: greatest number of
        stages after such a stage, −1 = does not fit; submeshes: (hosts, devices of each)."""
        self.seconds, self.following, self.submeshes = seconds, following, submeshes

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        raise Unsupported(_WHOLE)

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        raise Unsupported(_WHOLE)

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        raise Unsupported(_WHOLE)

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        raise Unsupported(_WHOLE)

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        raise Unsupported(_WHOLE)
