"""The module of DLRM, kept apart because it needs torch to be defined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from size to size, each followed by a rectifier."""
    return nn.Sequential(*(part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())))


class Dlrm(nn.Module):
    """One category of each feature a sample, so that a bag has one row."""

    later: Tensor
    earlier: Tensor

    def __init__(
        self, *, rows: Sequence[int], dense: int, width: int, bottom: Sequence[int], top: Sequence[int]
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in rows)
        for table, n in zip(self.tables, rows, strict=True):
            nn.init.uniform_(table.weight, -(n**-0.5), n**-0.5)  # type: ignore[arg-type]  # as in the reference code
        features = len(rows) + 1
        self.bottom = _layers((dense, *bottom, width))
        self.top = _layers((width + features * (features - 1) // 2, *top))
        self.out = nn.Linear(top[-1], 1)
        later, earlier = zip(*((i, j) for i in range(features) for j in range(i)))
        self.register_buffer("later", torch.tensor(later), persistent=False)
        self.register_buffer("earlier", torch.tensor(earlier), persistent=False)

    def forward(self, dense: Tensor, sparse: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """dense: [samples, numbers]; sparse: [samples, tables], rows of them; labels: [samples], 1 for a click."""
        x = self.bottom(dense)
        rows = [table(sparse[:, i : i + 1]) for i, table in enumerate(self.tables)]
        features = torch.stack([x, *rows], dim=1)
        products = torch.bmm(features, features.transpose(1, 2))[:, self.later, self.earlier]
        score = self.out(self.top(torch.cat([x, products], dim=1))).squeeze(-1)
        return {"loss": F.binary_cross_entropy_with_logits(score, labels.to(score.dtype)), "score": score}
