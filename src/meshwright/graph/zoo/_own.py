"""Families that are plain torch modules of ours: how each is built, and which inputs it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias, cast

from ._entry import Config, Inputs
from ._shrink import Shrink

if TYPE_CHECKING:
    from torch import Tensor, nn

Build: TypeAlias = "Callable[[Config, int, int, str, str, Shrink | None], tuple[nn.Module, Inputs]]"
"""(config, batch, seq, dtype, device, shrink) -> the module in training mode and inputs of zeros."""


@dataclass(frozen=True, slots=True)
class Own:
    build: Build
    values: Callable[[nn.Module, str], int]
    """(module, name of an integer input) -> how many values it may take."""
    text: Callable[[Tensor], Inputs] | None = None
    """Inputs that train on tokens[samples, seq + 1]; None for a model that reads no text."""


@cache
def own() -> Mapping[str, Own]:
    """By `model_type`; reading it loads no torch."""
    from . import dlrm, gnmt, gpt_moe, unet, user, wide_resnet

    return {
        "user-net": Own(user.build, user.values, user.text),
        "wide-resnet": Own(wide_resnet.build, wide_resnet.values),
        "dlrm": Own(dlrm.build, dlrm.values),
        "gpt-moe": Own(gpt_moe.build, gpt_moe.values, gpt_moe.text),
        "gnmt": Own(gnmt.build, gnmt.values, gnmt.text),
        "unet": Own(unet.build, unet.values),
    }


def number(config: Config, name: str) -> int:
    return cast(int, config[name])


def numbers(config: Config, name: str) -> list[int]:
    return list(cast("list[int]", config[name]))


def scaled(sizes: list[int], wanted: int, divisor: int = 1) -> list[int]:
    """Sizes in the same ratios with `wanted` as the largest, each a multiple of `divisor`; 0 keeps them."""
    if not wanted:
        return sizes
    return [max(1, round(n * wanted / max(sizes) / divisor)) * divisor for n in sizes]
