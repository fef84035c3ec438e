"""Models known by name, each built from a configuration on the meta device: nothing is downloaded or allocated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ._entry import Config, Entry, Inputs
from ._shrink import Shrink, smaller

__all__ = ["Config", "Entry", "Inputs", "Shrink", "by_name", "entries", "smaller"]


@cache
def by_name() -> Mapping[str, Entry]:
    """Every entry by its name, in the order in which they are listed."""
    from . import bert, gpt, llama, mixtral, user, vision

    found = (*gpt.ENTRIES, *llama.ENTRIES, *mixtral.ENTRIES, *bert.ENTRIES, *vision.ENTRIES, *user.ENTRIES)
    return {entry.name: entry for entry in found}


def entries() -> tuple[Entry, ...]:
    """Every model that `plan NAME` knows; reading them loads no torch."""
    return tuple(by_name().values())
