"""U-Net: convolutions down to a sixteenth of the image and up again, with the finer maps joined in on the way."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ._entry import Config, Entry, Inputs
from ._own import number, numbers, scaled
from ._shrink import Shrink

if TYPE_CHECKING:
    from torch import nn

# Ronneberger et al. 2015, figure 1: 64 to 1,024 channels on five levels, two classes. As in diffusion models (Ho et al.
# 2020, appendix B) the convolutions pad, and group norms of 8 groups and SiLU follow them; 3 colours, images of 256,
# and 128 of them a step.
CHANNELS, COLOURS, CLASSES, GROUPS, IMAGE, BATCH = (64, 128, 256, 512, 1024), 3, 2, 8, 256, 128


def config() -> Config:
    return {
        "model_type": "unet",
        "channels": list(CHANNELS),
        "colours": COLOURS,
        "classes": CLASSES,
        "groups": GROUPS,
        "image_size": IMAGE,
    }


def parameters() -> int:
    """Two convolutions of 3×3 a level, each with a bias and a norm; up again, one of 2×2 between two levels."""

    def level(source: int, out: int) -> int:
        return 9 * source * out + 9 * out**2 + 6 * out

    pairs = list(pairwise(CHANNELS))
    down = level(COLOURS, CHANNELS[0]) + sum(level(a, b) for a, b in pairs)
    up = sum(4 * b * a + a + level(2 * a, a) for a, b in pairs)
    return down + up + (CHANNELS[0] + 1) * CLASSES


def build(
    config: Config, batch: int, seq: int, dtype: str, device: str, shrink: Shrink | None = None
) -> tuple[nn.Module, Inputs]:
    import torch

    from ._unet_net import UNet

    channels, groups = numbers(config, "channels"), number(config, "groups")
    classes, image = number(config, "classes"), number(config, "image_size")
    if shrink is not None:
        # A norm over one channel would make the bias in front of it a parameter without a gradient.
        channels = scaled(channels, shrink.width, 2 * groups)
        classes, image = shrink.vocab or classes, shrink.image or image
    with torch.device(device):
        module = UNet(channels=channels, colours=number(config, "colours"), classes=classes, groups=groups)
        return module.to(getattr(torch, dtype)).train(), {
            "pixel_values": torch.zeros(batch, number(config, "colours"), image, image, dtype=getattr(torch, dtype)),
            "labels": torch.zeros(batch, image, image, dtype=torch.int64),
        }


def values(module: nn.Module, name: str) -> int:
    return int(module.head.out_channels)  # type: ignore[union-attr, arg-type]


ENTRIES = (Entry("unet", "unet", parameters(), BATCH, 1, "Ronneberger et al. 2015, figure 1", config()),)
