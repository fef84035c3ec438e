"""`--set` takes any number of settings, which the parser's options cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SETTING = re.compile(r"[A-Za-z_][\w-]*=.+")


def spread_sets(arguments: Sequence[str]) -> list[str]:
    """ "--set a=1 b=2" as "--set a=1 --set b=2": the option takes any number of settings."""
    found: list[str] = []
    inside = False
    for k, word in enumerate(arguments):
        if inside and arguments[k - 1] != "--set" and _SETTING.fullmatch(word):
            found.append("--set")
        elif not (inside and arguments[k - 1] == "--set"):
            inside = word == "--set" or word.startswith("--set=")
        found.append(word)
    return found
