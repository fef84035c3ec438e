"""KEY=VALUE settings as typed keyword arguments of a function, by its own signature: those of planners and of readers."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ._spelling import nearest
from .cluster._units import BYTES, BYTES_PER_SECOND
from .errors import InputError

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_WITH_UNIT = re.compile(r"([-+.\d_eE]*\d[.\d_]*)\s*([A-Za-z][A-Za-z/]*)")


class _Unlike(ValueError):
    """A text that is no value of the type; its message says what would be one."""


def parsed(items: Iterable[str]) -> dict[str, str]:
    """["devices=8", "memory=16GiB"] -> {"devices": "8", "memory": "16GiB"}.

    Raises:
        InputError: no KEY=VALUE, or a key that stands twice.
    """
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        key = key.replace("-", "_")
        if not equals or not key.isidentifier() or not value:
            raise InputError(f"--set {item}: write a setting as KEY=VALUE, such as devices=8", where="--set")
        if key in found:
            raise InputError(f"--set {key} stands twice, as {found[key]} and as {value}: give it once", where="--set")
        found[key] = value
    return found


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Name -> type of the keyword parameters of a function or class; `Any` where none is stated."""
    target: Any = vars(function).get("__init__", function) if isinstance(function, type) else function
    try:
        hints = get_type_hints(target)
    except (NameError, TypeError):
        hints = {}
    named = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name: hints.get(p.name, Any) for p in named if p.kind in kinds and p.default is not p.empty}


def about_parameters(function: Callable[..., Any]) -> dict[str, str]:
    """Name -> what the docstring's "Args:" say of it; "a, b: text" is said of both."""
    found: dict[str, str] = {}
    lines = (inspect.getdoc(function) or "").partition("Args:\n")[2].splitlines()
    names: list[str] = []
    for line in lines:
        if line and not line.startswith("    "):
            break
        head = re.match(r"    (\w[\w, ]*): (.*)", line)
        if head:
            names = [name.strip() for name in head[1].split(",")]
            found |= dict.fromkeys(names, head[2].strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def typed(settings: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as values of the types of `known`.

    Raises:
        InputError: a text that is no value of its type; all keys must be known (`check_known`).
    """
    found = {}
    for key, text in settings.items():
        try:
            found[key] = value_of(text, known[key])
        except _Unlike as unlike:
            raise InputError(f"--set {key}={text}: wanted {unlike}", where=f"--set {key}") from None
    return found


def taken(settings: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, str]:
    """Those settings that one of many takes: by their key and their value, since planners share names ("recompute")."""
    return {key: text for key, text in settings.items() if key in known and fits(text, known[key])}


def check_taken(settings: Mapping[str, str], takers: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what none of many takes.

    Raises:
        InputError: an unknown key, or a value that is none for any of those that know the key.
    """
    check_known(settings, takers)
    for key, text in settings.items():
        kinds = [known[key] for known in takers.values() if key in known]
        if not any(fits(text, kind) for kind in kinds):
            typed({key: text}, {key: kinds[0]})


def check_known(settings: Mapping[str, str], known: Mapping[str, Iterable[str]]) -> None:
    """Refuse keys that nobody takes.

    Args:
        known: who takes settings, in words -> the keys.

    Raises:
        InputError: names all keys that would be right.
    """
    every = [key for keys in known.values() for key in keys]
    for key in settings:
        if key in every:
            continue
        near = nearest(key, every)
        hint = f'did you mean "{near}"? ' if near else ""
        said = "; ".join(f"{who} takes {', '.join(keys) or 'none'}" for who, keys in known.items())
        raise InputError(f'no setting "{key}": {hint}{said}', where=f"--set {key}")


def fits(text: str, kind: Any) -> bool:
    """Does a text stand for a value of type `kind`?"""
    try:
        value_of(text, kind)
    except _Unlike:
        return False
    return True


def value_of(text: str, kind: Any) -> Any:
    """The value of type `kind` that a text stands for; numbers may carry a unit of bytes, "16GiB".

    Raises:
        ValueError: what would be one, in words.
    """
    if get_origin(kind) in (Union, UnionType):
        return _one_of(text, get_args(kind))
    if get_origin(kind) is Literal:
        options = {str(x): x for x in get_args(kind)}
        if text not in options:
            raise _Unlike(f"one of {', '.join(options)}")
        return options[text]
    if kind is NoneType:
        if text.lower() != "none":
            raise _Unlike("none")
        return None
    if kind is bool:
        if text.lower() not in (*YES, *NO):
            raise _Unlike("true or false")
        return text.lower() in YES
    if kind is int:
        value = _number(text, "a whole number")
        if value != value // 1:
            raise _Unlike("a whole number")
        return int(value)
    if kind is float:
        return _number(text, "a number")
    if kind is str:
        return text
    if get_origin(kind) in (tuple, Sequence):
        inner = get_args(kind)[0]
        return tuple(value_of(part.strip(), inner) for part in text.strip("()[]").split(",") if part.strip())
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _one_of(text: str, kinds: tuple[Any, ...]) -> Any:
    """The first type that has the value, `str` last, since every text is one."""
    wanted = []
    for kind in sorted(kinds, key=lambda k: (k is str, k is not NoneType)):
        try:
            return value_of(text, kind)
        except _Unlike as unlike:
            wanted.append(str(unlike))
    raise _Unlike(" or ".join(dict.fromkeys([*wanted[1:], wanted[0]] if NoneType in kinds else wanted)))


def _number(text: str, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        unit = _WITH_UNIT.fullmatch(text)
        sizes = {**BYTES, **BYTES_PER_SECOND}
        scale = sizes.get(unit[2]) if unit else None
        if unit is None or scale is None:
            raise _Unlike(f"{wanted}, such as 16, 16e9 or 16GiB") from None
        try:
            value = float(unit[1]) * scale
        except ValueError:
            raise _Unlike(wanted) from None
    if isnan(value):
        raise _Unlike(wanted)
    return value
