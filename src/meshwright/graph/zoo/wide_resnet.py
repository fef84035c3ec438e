"""Wide residual networks: ResNet-50 and -101 whose 3×3 convolutions have twice and eight times the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._entry import Config, Entry, Inputs
from ._own import number, numbers
from ._shrink import Shrink

if TYPE_CHECKING:
    from torch import nn

# Zagoruyko and Komodakis 2016, table 8 (50 layers, twice as wide); 101 layers at eight times the width are our choice of
# a network as large as those of Zheng et al. 2022 (Alpa), section 8.1. 256 images a step as for ResNet-50.
SIZES = {"wrn-50-2": ((3, 4, 6, 3), 2), "wrn-101-8": ((3, 4, 23, 3), 8)}
STEM, CLASSES, IMAGE, BATCH = 64, 1000, 224, 256


def config(depths: tuple[int, ...], widen: int) -> Config:
    return {
        "model_type": "wide-resnet",
        "depths": list(depths),
        "widen": widen,
        "stem": STEM,
        "classes": CLASSES,
        "image_size": IMAGE,
    }


def parameters(depths: tuple[int, ...], widen: int) -> int:
    """A block is 1×1, 3×3 and 1×1, each with two numbers a channel of batch norm; the first of a stage has a fourth."""
    total, before = 3 * STEM * 49 + 2 * STEM, STEM
    for stage, depth in enumerate(depths):
        inner, outer = STEM * 2**stage * widen, 4 * STEM * 2**stage
        for block in range(depth):
            source = before if block == 0 else outer
            total += source * inner + 9 * inner**2 + inner * outer + 2 * (2 * inner + outer)
            total += before * outer + 2 * outer if block == 0 else 0
        before = outer
    return total + (before + 1) * CLASSES


def build(
    config: Config, batch: int, seq: int, dtype: str, device: str, shrink: Shrink | None = None
) -> tuple[nn.Module, Inputs]:
    import torch

    from ._wide_resnet_net import WideResNet

    depths, stem = numbers(config, "depths"), number(config, "stem")
    classes, image = number(config, "classes"), number(config, "image_size")
    if shrink is not None:
        depths = [min(depth, shrink.blocks + 1) if shrink.blocks else depth for depth in depths]
        stem = max(2, shrink.width >> len(depths) + 1) if shrink.width else stem
        classes, image = shrink.vocab or classes, shrink.image or image
    with torch.device(device):
        module = WideResNet(depths=depths, widen=number(config, "widen"), stem=stem, classes=classes)
        return module.to(getattr(torch, dtype)).train(), {
            "pixel_values": torch.zeros(batch, 3, image, image, dtype=getattr(torch, dtype)),
            "labels": torch.zeros(batch, dtype=torch.int64),
        }


def values(module: nn.Module, name: str) -> int:
    return int(module.head.out_features)  # type: ignore[union-attr, arg-type]


ENTRIES = tuple(
    Entry(name, "wide-resnet", parameters(*size), BATCH, 1, source, config(*size))
    for (name, size), source in zip(
        SIZES.items(),
        ("Zagoruyko and Komodakis 2016, table 8", "Zheng et al. 2022, section 8.1 (as large as theirs)"),
        strict=True,
    )
)
