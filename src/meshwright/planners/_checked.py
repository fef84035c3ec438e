"""Settings of planners that are refused: one sentence that names planner, setting, value, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

from ..errors import InputError


def whole(planner: str, name: str, value: int | None, least: int = 1, what: str = "") -> None:
    """Refuse a whole number below `least`; None passes."""
    if value is not None and value < least:
        raise InputError(f"{planner}: {name} is {value}, it must be at least {least}{what and ' ' + what}")


def wholes(planner: str, name: str, values: Iterable[int] | None, what: str) -> None:
    """Refuse no numbers at all, or one below 1; None passes."""
    if values is not None and min(values, default=0) < 1:
        raise InputError(f"{planner}: {name} is {tuple(values)}, it must be {what} of 1 or more")


def above(planner: str, name: str, value: float | None, *, zero: bool = False, endless: bool = False) -> None:
    """Refuse a number that is not above 0 (or 0, with `zero`), or not finite (unless `endless`); None passes."""
    if value is None or ((value > 0 or (zero and value == 0)) and (endless or isfinite(value))):
        return
    bound = "0 or more" if zero else "above 0"
    raise InputError(f"{planner}: {name} is {value:g}, it must be {bound}{'' if endless else ' and finite'}")


def word(planner: str, name: str, value: str | None, known: Iterable[str]) -> None:
    """Refuse a word that is none of the known ones; None passes."""
    known = tuple(known)
    if value is not None and value not in known:
        raise InputError(f'{planner} has no {name} "{value}": there are {", ".join(known)}')
