"""One layout of a whole cluster in the words that people use: degrees, what rests cut, micro-batch, schedule."""

from __future__ import annotations

from dataclasses import dataclass

from ..cluster.model import Mesh
from .style import CP, DP, EP, OUTER, TP, Style

MARKS = {"ulysses": "+ul", "gather": "+kv", "halo": "+halo"}


@dataclass(frozen=True, slots=True)
class Point:
    """One layout of the whole cluster."""

    dp: int
    tp: int
    pp: int
    sequence: bool
    chunks: int
    micro_batch: int
    """Samples of one micro-batch on one replica."""
    zero: int
    recompute: str
    schedule: str
    cp: int = 1
    ep: int = 1
    context: str = "ulysses"
    """Says nothing where cp is 1."""
    whole_experts: bool = False
    """Experts are cut over tp as over ep, none inside: not tried by the grid itself."""
    replicate: int = 1
    """Of the dp replicas, groups that each hold all that ZeRO cuts: not tried by the grid itself."""
    reshard: bool = True
    """ZeRO-3 gathers weights again for the backward: False is not tried by the grid itself."""

    @property
    def style(self) -> Style:
        return Style(
            self.tp, self.sequence, self.zero, self.recompute, self.cp, self.ep, self.context, self.whole_experts,
            self.replicate, self.reshard,
        )  # fmt: skip

    @property
    def replicas(self) -> int:
        """Parts into which a micro-batch is cut."""
        return self.dp * self.ep

    @property
    def size(self) -> int:
        """Devices of one stage."""
        return self.dp * self.ep * self.cp * self.tp

    def mesh(self, rank: int) -> Mesh:
        """Devices of a pipeline rank; axes of length 1 other than dp and tp are left out."""
        outer = [(OUTER, self.replicate)] if self.replicate > 1 else []
        inner = [(a, n) for a, n in ((EP, self.ep), (CP, self.cp)) if n > 1]
        axes = [*outer, (DP, self.dp // self.replicate), *inner, (TP, self.tp)]
        devices = range(rank * self.size, (rank + 1) * self.size)
        return Mesh(devices, tuple(a for a, _ in axes), tuple(n for _, n in axes))

    def words(self) -> str:
        parts = [f"dp{self.dp}"] if self.dp > 1 or self.size * self.pp == 1 else []
        parts += [f"ep{self.ep}"] if self.ep > 1 else []
        parts += [f"cp{self.cp}" + MARKS[self.context]] if self.cp > 1 else []
        parts += [f"tp{self.tp}" + ("+sp" if self.sequence else "")] if self.tp > 1 else []
        parts += [f"pp{self.pp}" + (f"×{self.chunks}" if self.chunks > 1 else "")] if self.pp > 1 else []
        within = f"/{self.dp // self.replicate}" if self.replicate > 1 else ""
        parts += [f"z{self.zero}{within}" + ("" if self.reshard else "+keep")] if self.zero else []
        return " ".join(parts)
