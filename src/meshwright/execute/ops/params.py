"""Parameters: where their first values come from, and this rank's parts of them.

A seeded value depends on the parameter's NAME and the element's GLOBAL index alone, so every plan starts equal and a rank
makes only its own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ...graph.ir import Tensor as Described
from ...plan.model import Layout
from ..ranks.mesh_groups import MeshView
from .randomness import global_index, normal, stream
from .site import own_part

Style = Literal["train", "uneven"]
"""train: ones and zeros for scales and biases, normal matrices. uneven: no two elements alike, so that nothing cancels."""
DEVIATION = 0.02
"""Of matrices and embeddings (Radford et al. 2019, section 2.3: N(0, 0.02))."""


def dtype_of(described: Described) -> torch.dtype:
    return getattr(torch, described.dtype)  # type: ignore[no-any-return]


def master_dtype(described: Described) -> torch.dtype:
    """Of what an optimizer updates, and of sums and statistics: float32, or what the tensor has if that is wider."""
    return torch.promote_types(dtype_of(described), torch.float32)


def seeded_part(described: Described, layout: Layout, view: MeshView, seed: int, style: Style = "train") -> Tensor:
    """float32 [local shape]: the part of a parameter that this rank holds under `layout`."""
    index = global_index(described.shape, layout, view, torch.device("cpu"))
    noise = normal(stream(described.name, seed), index)
    return _scaled(described, noise, style)


def seeded(described: Described, seed: int, style: Style = "train") -> Tensor:
    """float32: the whole parameter."""
    count = 1
    for n in described.shape:
        count *= n
    index = torch.arange(count, dtype=torch.int64).reshape(described.shape)
    return _scaled(described, normal(stream(described.name, seed), index), style)


def _scaled(described: Described, noise: Tensor, style: Style) -> Tensor:
    if len(described.shape) > 1:
        return noise * DEVIATION if style == "train" else noise * max(DEVIATION, described.shape[-1] ** -0.5)
    base = 0.0 if described.name.rpartition(".")[2] == "bias" else 1.0
    return torch.full_like(noise, base) + (0.0 if style == "train" else 0.1) * noise


class Values:
    """First values of parameters: given whole ones (a user's module, a checkpoint), else seeded."""

    def __init__(self, seed: int, style: Style = "train", given: Mapping[str, Tensor] | None = None) -> None:
        self.seed, self.style, self.given = seed, style, dict(given or {})

    def part(self, described: Described, layout: Layout, view: MeshView) -> Tensor:
        """[local shape], of `master_dtype`."""
        dtype = master_dtype(described)
        if described.name in self.given:
            return own_part(self.given[described.name].detach().to(dtype), layout, view).clone()
        return seeded_part(described, layout, view, self.seed, self.style).to(dtype)

    def whole(self, described: Described) -> Tensor:
        if described.name in self.given:
            return self.given[described.name].detach().to(master_dtype(described))
        return seeded(described, self.seed, self.style).to(master_dtype(described))
