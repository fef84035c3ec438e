"""The module of the wide residual networks, kept apart because it needs torch to be defined."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def _convolution(source: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Followed by a batch norm; the size stays, or is divided by the stride."""
    return [nn.Conv2d(source, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)]


class Block(nn.Module):
    """1×1 to the inner channels, 3×3, 1×1 back, and a shortcut around them."""

    def __init__(self, source: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(source, inner, 1),
            nn.ReLU(inplace=True),
            *_convolution(inner, inner, 3, stride),
            nn.ReLU(inplace=True),
            *_convolution(inner, out, 1),
        )
        same = source == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(source, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return F.relu_(y + self.shortcut(x))


class WideResNet(nn.Module):
    """Stage s has stem · 2^s · widen inner and 4 · stem · 2^s outer channels."""

    def __init__(self, *, depths: Sequence[int], widen: int, stem: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, stem, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        stages, source = [], stem
        for s, depth in enumerate(depths):
            inner, out = stem * 2**s * widen, 4 * stem * 2**s
            first = Block(source, inner, out, 1 if s == 0 else 2)
            stages.append(nn.Sequential(first, *(Block(out, inner, out, 1) for _ in range(depth - 1))))
            source = out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(source, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """pixel_values: [samples, 3, height, width]; labels: [samples]."""
        x = self.stages(self.stem(pixel_values))
        logits = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}
