"""Tesseract (Wang et al., arXiv 2105.14500): d layers of q × q devices, each with its share of the tokens, 1 ≤ d ≤ q.

Each layer runs the 2D products of `summa_2d` on tokens / d; matrices are copies over the layers, so their gradients are
summed over the depth. The public code leaves that sum to the trainer; here it is part of the program, once a step.

Faithful: p = q² d; d = 1 is 2D, d = q is full; rows of the grid are neighbours, layers lie furthest apart. Copies of the
whole ("data") are outside of the paper: they differ from depth in name only.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import InputError
from ._checked import whole
from ._grids import GridPlanner
from ._products import Scheme
from ._schemes import Judge
from .registry import register
from .types import Info


@register
class Tesseract(GridPlanner):
    """A d × q × q grid, and copies of it.

    Args:
        q: side of a layer; None = the best.
        d: depth, 1 to q; None = the best.
        data: copies of the grid; None = devices over q² d, and as few as can be.
        micro_batch: samples of a micro-batch on one part; None = the best power of two.
        recompute: "none", "light" or "full"; None = the best.
        judge: "step" (simulated seconds of a step) or "volume" (elements that a rank receives in it).
    """

    info = Info(
        name="tesseract_2_5d",
        title="2.5-dimensional Distributed Model Training (Tesseract)",
        year=2021,
        reference="arXiv 2105.14500",
        decides=frozenset({"shards", "replicas", "recompute"}),
        handles=frozenset({"memory", "dag"}),
        goals=frozenset({"time"}),
        family="tensor",
    )

    def __init__(
        self,
        *,
        q: int | None = None,
        d: int | None = None,
        data: int | None = None,
        micro_batch: int | None = None,
        recompute: str | None = None,
        judge: Judge = "step",
    ) -> None:
        whole("tesseract_2_5d", "micro_batch", micro_batch)
        super().__init__(q=q, data=data, micro_batch=micro_batch, recompute=recompute, judge=judge)
        if d is not None and d < 1:
            raise InputError(f"tesseract_2_5d: d = {d} must be 1 or more")
        if d is not None and q is not None and d > q:
            raise InputError(f"tesseract_2_5d: the depth d = {d} must be 1 to q = {q}")
        self.d = d

    def schemes(self, devices: int) -> Iterator[Scheme]:
        for q in range(2, int(devices**0.5) + 1):
            for d in range(q, 0, -1) if self.d is None else (self.d,):  # of equals the deeper one
                if d <= q and q * q * d <= devices:
                    yield Scheme("2.5d", q, d)

    def rule(self) -> str:
        return "q² d devices, q of 2 or more and d of 1 to q" + ("" if self.d is None else f", here d = {self.d}")
