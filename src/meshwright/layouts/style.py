"""What of an expert layout decides how ops are lowered."""

from __future__ import annotations

from dataclasses import dataclass

DP, CP, EP, TP = "dp", "cp", "ep", "tp"
OUTER = "dpr"
"""Copies of what ZeRO cuts, where it cuts over a part of the replicas only (hybrid sharding)."""
CONTEXTS = ("ulysses", "gather", "halo")
NARROW = 4
"""A product that widens its input this many times or more has it gathered rather than its result summed: a low-rank factor."""


@dataclass(frozen=True, slots=True)
class Style:
    """What of a layout decides how ops are lowered; pipeline depth, replicas and micro-batch do not."""

    tp: int
    sequence: bool
    zero: int
    recompute: str
    """none, light (element-wise ops run again), full (whole blocks run again), attention, or other words of `again`."""
    cp: int = 1
    ep: int = 1
    context: str = "ulysses"
    """How attention sees all positions where cp > 1; one of `CONTEXTS`."""
    whole_experts: bool = False
    """ "tp" cuts experts as "ep" does, none inside."""
    replicate: int = 1
    """Groups of replicas that each hold all that ZeRO cuts (hybrid sharding: Zhao et al., arXiv 2304.11277, §3.2.2)."""
    reshard: bool = True
    """ZeRO-3 gathers weights again for the backward; False: a micro-batch keeps them until its backward."""

    @property
    def compute(self) -> tuple[int, bool, int, int, str, bool, bool, bool]:
        """What shardings and layouts of activations depend on."""
        context = self.context if self.cp > 1 else ""
        whole, kept = self.whole_experts and self.tp > 1, self.zero == 3 and not self.reshard
        return self.tp, self.sequence, self.cp, self.ep, context, whole, self.replicate > 1, kept

    @property
    def data(self) -> tuple[str, ...]:
        """Axes that cut samples of what is not an expert's, outer first."""
        return (*((OUTER,) if self.replicate > 1 else ()), DP, *((EP,) if self.ep > 1 else ()))

    @property
    def stored(self) -> tuple[str, ...]:
        """Axes over which ZeRO cuts."""
        return (DP, *((EP,) if self.ep > 1 else ()), *((CP,) if self.cp > 1 else ()))
