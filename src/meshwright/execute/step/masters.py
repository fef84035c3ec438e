"""Weights of one stage on one rank: masters (float32 or wider) that the optimizer updates, and the parts at rest that ops read.

Where both rest alike in float32 they are one piece of memory. Else the updated masters are cast and, where the optimizer's
state is cut further than the weight (ZeRO-1, 2), gathered: bucket by bucket, all under way at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from ...graph.ir import Graph
from ...lower.program import StageCode
from ..ops.params import Values, dtype_of
from ..ranks.mesh_groups import MeshView
from .buckets import Bucket, legs
from .rows import through


class Masters:
    def __init__(
        self,
        code: StageCode,
        buckets: Sequence[Bucket],
        graph: Graph,
        view: MeshView,
        values: Values,
        device: torch.device,
    ) -> None:
        self.params: dict[str, Tensor] = {}
        """Parts at rest."""
        self.masters: dict[str, nn.Parameter] = {}
        """Parts in the layout of their state, float32 or wider."""
        self._dtypes = {name: dtype_of(graph.tensor[name]) for b in buckets for name in b.names}
        self._buckets = [(b.names, legs(b.gathers, b, graph, view)) for b in buckets]
        for p in code.params:
            described, dtype = graph.tensor[p.name], self._dtypes[p.name]
            master = self.masters[p.name] = nn.Parameter(values.part(described, p.state, view).to(device))
            if p.rest == p.state and dtype == master.dtype:
                self.params[p.name] = master.detach()
            else:
                self.params[p.name] = values.part(described, p.rest, view).to(device, dtype)

    def publish(self, wanted: Collection[str] | None = None, *, fresh: bool = False) -> None:
        """Updated masters into the parts at rest. `fresh`: into new ones, those of before stay as they are.

        `wanted`: whole buckets; None: all.
        """
        wanted = self.params.keys() if wanted is None else wanted
        if fresh:
            self.params = {
                name: torch.empty(x.shape, dtype=x.dtype, device=x.device) if name in wanted else x
                for name, x in self.params.items()
            }
        with torch.no_grad():
            self._publish(wanted)

    def _publish(self, wanted: Collection[str]) -> None:
        under_way = []
        for names, way in self._buckets:
            if names[0] not in wanted:
                continue
            dtype = self._dtypes[names[0]]
            if not way:
                for name in names:
                    if not self._one(name):
                        self.params[name].copy_(self.masters[name])
                continue
            xs = through(way[:-1], [self.masters[name].to(dtype) for name in names], dtype)
            under_way.append((names, way[-1].start(xs, dtype)))
        for names, sent in under_way:
            sent.received(into=[self.params[name] for name in names])

    def _one(self, name: str) -> bool:
        return self.params[name].untyped_storage().data_ptr() == self.masters[name].untyped_storage().data_ptr()
