"""Optimus (Xu and You, arXiv 2104.05343): every matrix of a transformer on a grid of q × q devices, products by SUMMA.

X and W rest in blocks, X (tokens over rows, features over columns), W (K over rows, N over columns); a product fetches the
blocks of a row and of a column in q steps (lower/summa.py), twice more in the backward. Whole sequences are dealt over the
rows, heads over the columns, so attention is local; norms and the loss sum their statistics over columns.

Faithful: storage is cut over the whole grid; broadcasts and sums are those of Algorithms 1 to 3, and counted; rows of the
grid are neighbours, so that a row lies inside of a node where it can; the next step's blocks come while this one's are
multiplied. Copies of the grid that share the samples ("data") are outside of the paper. A vocabulary or feature that q
does not divide is cut into unequal parts. The tied classifier does not use the paper's third form of SUMMA: rows and
columns change places for it, so that the table rests as the embedding has it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ._checked import whole
from ._grids import GridPlanner
from ._products import Scheme
from ._schemes import Judge
from .registry import register
from .types import Info


@register
class Summa2D(GridPlanner):
    """A q × q grid, and copies of it.

    Args:
        q: side of the grid; None = the best.
        data: copies of the grid; None = devices over q².
        micro_batch: samples of a micro-batch on one part; None = the best power of two.
        recompute: "none", "light" or "full"; None = the best.
        judge: "step" (simulated seconds of a step) or "volume" (elements that a rank receives in it).
    """

    info = Info(
        name="summa_2d",
        title="An Efficient 2D Method for Training Super-Large Deep Learning Models (Optimus)",
        year=2021,
        reference="arXiv 2104.05343",
        decides=frozenset({"shards", "replicas", "recompute"}),
        handles=frozenset({"memory", "dag"}),
        goals=frozenset({"time"}),
        family="tensor",
    )

    def __init__(
        self,
        *,
        q: int | None = None,
        data: int | None = None,
        micro_batch: int | None = None,
        recompute: str | None = None,
        judge: Judge = "step",
    ) -> None:
        whole("summa_2d", "micro_batch", micro_batch)
        super().__init__(q=q, data=data, micro_batch=micro_batch, recompute=recompute, judge=judge)

    def schemes(self, devices: int) -> Iterator[Scheme]:
        return (Scheme("2d", q) for q in range(2, int(devices**0.5) + 1))

    def rule(self) -> str:
        return "q² devices, q of 2 or more"
