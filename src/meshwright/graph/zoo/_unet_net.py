"""The module of U-Net, kept apart because it needs torch to be defined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Level i works on the image divided by 2^i, with channels[i] channels."""

    def __init__(self, *, channels: Sequence[int], colours: int, classes: int, groups: int) -> None:
        super().__init__()

        def level(source: int, out: int) -> nn.Sequential:
            sizes = ((source, out), (out, out))
            return nn.Sequential(
                *(
                    part
                    for a, b in sizes
                    for part in (nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(groups, b), nn.SiLU())
                )
            )

        pairs = list(pairwise(channels))
        self.down = nn.ModuleList([level(colours, channels[0]), *(level(a, b) for a, b in pairs)])
        self.widen = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.up = nn.ModuleList(level(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(channels[0], classes, 1)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """pixel_values: [samples, colours, height, width]; labels: [samples, height, width]."""
        x = self.down[0](pixel_values)
        finer = []
        for level in self.down[1:]:
            finer.append(x)
            x = level(F.max_pool2d(x, 2))
        for widen, level in zip(self.widen, self.up, strict=True):
            x = level(torch.cat([widen(x), finer.pop()], dim=1))
        logits = self.head(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}
