"""Models known by name, each built from a configuration on the meta device: nothing is downloaded or allocated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ._entry import Config, Entry, Inputs
from ._own import Own, own
from ._shrink import Shrink, smaller

__all__ = ["Config", "Entry", "Inputs", "Own", "Shrink", "by_name", "entries", "own", "smaller"]


@cache
def by_name() -> Mapping[str, Entry]:
    """Every entry by its name, in the order in which they are listed."""
    from . import bert, deepseek, dlrm, gnmt, gpt, llama, mixtral, qwen, t5, unet, user, vision, wide_resnet

    families = (gpt, llama, mixtral, qwen, deepseek, bert, t5, gnmt, vision, wide_resnet, unet, dlrm, user)
    found = (entry for family in families for entry in family.ENTRIES)
    return {entry.name: entry for entry in found}


def entries() -> tuple[Entry, ...]:
    """Every model that `plan NAME` knows; reading them loads no torch."""
    return tuple(by_name().values())
