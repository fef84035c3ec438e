"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): a model from a configuration whose weights are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..graph.ir import Graph
from ..graph.serial import digest_of
from ..graph.source import ConfigSource
from ..graph.zoo import Inputs, Shrink

if TYPE_CHECKING:
    from torch import nn

LEARNS = (".inner.weight", ".outer.weight")
"""Ends of the names of what learns."""


@dataclass(frozen=True, kw_only=True)
class AdapterSource(ConfigSource):
    """A configuration whose linear layers called one of `beside` get an adapter of `rank`; nothing else learns."""

    rank: int
    beside: tuple[str, ...]

    def identity(self) -> Mapping[str, object]:
        return {**super().identity(), "rank": self.rank, "beside": list(self.beside)}

    def build(
        self,
        batch: int = 0,
        seq: int = 0,
        dtype: str = "float32",
        *,
        device: str = "meta",
        shrink: Shrink | None = None,
        attention: str = "meshwright",
    ) -> tuple[nn.Module, Inputs]:
        module, inputs = super().build(batch, seq, dtype, device=device, shrink=shrink, attention=attention)
        module.requires_grad_(False)
        # Gradients flow into the first block as into the others, which are then captured alike.
        module.get_input_embeddings().requires_grad_(True)  # type: ignore[operator]
        for name, part in list(module.named_modules()):
            owner, _, last = name.rpartition(".")
            if last in self.beside:
                setattr(module.get_submodule(owner), last, _with_adapter(part, self.rank))
        return module, inputs

    def _capture(self, batch: int, seq: int, dtype: str, shrink: Shrink | None) -> Graph:
        """Capture takes what does not learn for constants, whole on every device; here they are weights, cut as such."""
        graph = super()._capture(batch, seq, dtype, shrink)
        module, _ = self.build(batch, seq, dtype, shrink=shrink)
        still = {name for name, _ in module.named_parameters() if not name.endswith(LEARNS)}
        frozen = tuple(replace(t, role="param", frozen=True) if t.name in still else t for t in graph.tensors)
        made = replace(graph, tensors=frozen)
        return replace(made, digest=digest_of(made))


def _with_adapter(base: Any, rank: int) -> nn.Module:
    from torch import Tensor, nn

    class Adapter(nn.Module):
        """base(x) + x · A · B."""

        def __init__(self) -> None:
            super().__init__()
            where = {"device": base.weight.device, "dtype": base.weight.dtype}
            self.base = base
            self.inner = nn.Linear(base.in_features, rank, bias=False, **where)
            self.outer = nn.Linear(rank, base.out_features, bias=False, **where)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.base(x) + self.outer(self.inner(x))
            return found

    return Adapter()
