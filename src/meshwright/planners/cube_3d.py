"""3D tensor parallelism (Bian et al., arXiv 2105.14450): every matrix of a transformer on a cube of q × q × q devices.

On device (i, j, l): X rests cut in rows over i then j, in columns over l; W in rows over l then i, in columns over j. A
product gathers X over j and W over i, multiplies, and scatters the sum over l into the rows: Y has j and l exchanged, so
products in a row alternate; a block of a transformer ends as it began. All of it follows from where tensors rest, by the
rule of lowering.

Faithful: storage is cut over the whole cube (KN / q³ a device); six collectives a product; the layout of every product is
explicit, and follows execution. Whole sequences are dealt over i × j, heads over the features' axis; vocabulary-parallel
embedding and loss. Copies of the cube that share the samples ("data") are outside of the paper.
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
class Cube3D(GridPlanner):
    """A q × q × q cube, and copies of it.

    Args:
        q: side of the cube; None = the best.
        data: copies of the cube; None = devices over q³.
        keep: gathered operands stay until the backward, as in the paper; else they are gathered again for it.
        micro_batch: samples of a micro-batch on one part; None = the best power of two.
        recompute: "none", "light" or "full"; None = the best.
        judge: "step" (simulated seconds of a step) or "volume" (elements that a rank receives in it).
    """

    info = Info(
        name="cube_3d",
        title="Maximizing Parallelism in Distributed Training for Huge Neural Networks (3D)",
        year=2021,
        reference="arXiv 2105.14450",
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
        keep: bool = True,
        micro_batch: int | None = None,
        recompute: str | None = None,
        judge: Judge = "step",
    ) -> None:
        whole("cube_3d", "micro_batch", micro_batch)
        super().__init__(q=q, data=data, micro_batch=micro_batch, recompute=recompute, judge=judge)
        self.keep = keep

    def schemes(self, devices: int) -> Iterator[Scheme]:
        return (Scheme("3d", q, keeps=self.keep) for q in range(2, devices + 1) if q**3 <= devices)

    def rule(self) -> str:
        return "q³ devices, q of 2 or more"
