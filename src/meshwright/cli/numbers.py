"""Options that are numbers: what is out of range, or no number, is refused in one sentence of ours."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, TypeVar

import typer

from ..errors import InputError
from ..request import LARGEST

Number = TypeVar("Number", int, float)


def whole(name: str, least: int, most: int | None = None, **settings: Any) -> Any:
    """An option for whole numbers from `least` to `most`."""
    wanted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"

    def read(text: str) -> int:
        value = _parsed(int, text)
        if value is None or value < least or (most is not None and value > most):
            raise InputError(f"{name} {text}: must be {wanted}", where=name)
        if value > LARGEST:
            raise InputError(f"{name} {text}: must be a whole number from {least} to {LARGEST:,}", where=name)
        return value

    return typer.Option(name, parser=read, **{"metavar": "N"} | settings)


def amount(name: str, what: str, zero: bool = False, **settings: Any) -> Any:
    """An option for a finite number above 0 (`zero`: or 0) of `what`."""
    wanted = f"a number of {what}, {'0 or more' if zero else 'above 0'}"

    def read(text: str) -> float:
        value = _parsed(float, text)
        if value is None or not isfinite(value) or value < 0 or (value == 0 and not zero):
            raise InputError(f"{name} {text}: must be {wanted}", where=name)
        return value

    return typer.Option(name, parser=read, **settings)


def _parsed(kind: Callable[[str], Number], text: str) -> Number | None:
    try:
        return kind(text)
    except ValueError:
        return None
