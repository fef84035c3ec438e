"""Typed access to decoded JSON: each wrong value is one sentence with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import TypeVar

from .._spelling import nearest
from ..errors import InputError

T = TypeVar("T")
LARGEST = 1 << 53
"""Whole numbers from here on are not told apart where they are counted with as floats."""


class Fields:
    """One JSON object, read field by field; `close` refuses what was not read."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise InputError(f"{where or 'the plan'} must be an object, not {shown(value)}")
        self.value: dict[str, object] = value
        self.where = where
        self.known: list[str] = []

    def at(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def get(self, name: str, default: object = None) -> object:
        self.known.append(name)
        return self.value.get(name, default)

    def integer(self, name: str, default: int | None = None) -> int:
        return integer(self._required(name, default), self.at(name))

    def number(self, name: str, default: float | None = None) -> float:
        value = self._required(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < inf:
            raise InputError(f"{self.at(name)} must be a finite number, not {shown(value)}")
        return float(value)

    def text(self, name: str, default: str | None = None) -> str:
        return text(self._required(name, default), self.at(name))

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.at(name)} must be true or false, not {shown(value)}")
        return value

    def listed(self, name: str, decode: Callable[[object, str], T]) -> list[T]:
        return listed(self.get(name, []), self.at(name), decode)

    def mapped(self, name: str, decode: Callable[[object, str], T]) -> dict[str, T]:
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise InputError(f"{self.at(name)} must be an object, not {shown(value)}")
        return {key: decode(item, f"{self.at(name)}.{key}") for key, item in value.items()}

    def close(self) -> None:
        """Raises InputError on a field that nobody asked for, with the nearest known name."""
        for name in self.value:
            if name not in self.known:
                near = nearest(name, self.known)
                hint = f'did you mean "{near}"?' if near else f"it has {', '.join(self.known)}"
                raise InputError(f'no field "{name}" in {self.where or "a plan"}: {hint}')

    def _required(self, name: str, default: object) -> object:
        value = self.get(name, default)
        if value is None:
            raise InputError(f'{self.where or "the plan"} has no "{name}": it must be there')
        return value


def listed(value: object, where: str, decode: Callable[[object, str], T]) -> list[T]:
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list, not {shown(value)}")
    return [decode(item, f"{where}[{i}]") for i, item in enumerate(value)]


def integer(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where} must be a whole number, not {shown(value)}")
    if abs(value) >= LARGEST:
        raise InputError(f"{where} must be a whole number below 2^53, not one of {len(str(abs(value)))} digits")
    return value


def text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} must be a text, not {shown(value)}")
    return value


def reference(pool: list[T], what: str) -> Callable[[object, str], T]:
    """Decoder of an index into `pool`."""

    def decode(value: object, where: str) -> T:
        index = integer(value, where)
        if not 0 <= index < len(pool):
            raise InputError(f"{where} = {index}: there are {len(pool)} {what}, counted from 0")
        return pool[index]

    return decode


def one_of(value: object, where: str, known: Iterable[str]) -> str:
    names = list(known)
    if value not in names:
        near = nearest(value, names) if isinstance(value, str) else ""
        hint = f'did you mean "{near}"?' if near else f"it is one of {', '.join(names)}"
        raise InputError(f"{where} = {shown(value)}: {hint}")
    return str(value)


def shown(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: str(value).lower(), type(None): "null"}
    found = names.get(type(value))
    return found if found else (f'"{value}"' if isinstance(value, str) else str(value))
