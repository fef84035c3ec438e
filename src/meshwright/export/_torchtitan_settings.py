"""Settings out of what people have: a recipe, flags on a command line, or the TOML of releases before 0.3.0."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import replace

from .._parsed import parsed_toml
from .._spelling import nearest
from ..errors import InputError
from ._torchtitan_fields import BASES, EIGHT_BITS, FIELDS, GONE, HARMLESS, MAIN, OTHER_SECTIONS, RELEASE, RENAMED
from ._torchtitan_recipe import Settings, Unread, read_recipe

_FLAG = re.compile(r"--(no-)?([A-Za-z_]+)\.([A-Za-z_.-]+)")
_POLICY = re.compile(r"activation[-_]checkpoint:(none|selective|full|memory[-_]budget|region)")
_AGAIN = "activation_checkpoint"
_MARK = re.compile(
    r"torchtitan|^\s*\[(parallelism|activation_checkpoint)\]|--(parallelism|training)\.[a-z]|\bParallelismConfig\([^)]*_parallel_degree", re.M
)  # fmt: skip
_THEIRS = "torchtitan's "
SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in FIELDS))


def is_ours(text: str) -> bool:
    return _MARK.search(text) is not None


def settings_of(files: Mapping[str, str]) -> Settings:
    """All that the files say, under today's names; an option of a command line overrides a recipe's.

    Raises:
        InputError: no settings of torchtitan, an unknown option, or options of different releases together.
    """
    found: list[Settings] = []
    wanted = next((n for text in files.values() if (n := _option(text, "config"))), "")
    for name, text in files.items():
        kind = _kind(name, text)
        if kind == "recipe":
            found.insert(0, read_recipe(text, name, wanted))
        elif kind != "table":
            found.append(_toml(text, name) if kind == "toml" else _flags(text, name))
    if len(found) > 1 and any(_kind(name, text) == "recipe" for name, text in files.items()):
        found[1:] = [_without_base(s) for s in found[1:]]
    values: dict[str, object] = {}
    where: dict[str, str] = {}
    for s in found:
        for key, value in s.values.items():
            today = RENAMED.get(key, key)
            values[today], where[today] = value, s.where[key]
    foreign = _check_names(values, where)
    bases = tuple(dict.fromkeys(b for s in found for b in s.bases))
    return Settings(values, where, bases, {k: v for s in found for k, v in s.constants.items()}, foreign)


def _kind(name: str, text: str) -> str:
    if name.endswith(".csv"):
        return "table"
    if name.endswith(".py"):
        return "recipe"
    if name.endswith(".toml") or re.search(rf"^\s*\[({'|'.join((*SECTIONS, *OTHER_SECTIONS))})\]", text, re.M):
        return "toml"
    return "recipe" if re.search(r"^(from|import|def) ", text, re.M) else "flags"


def _without_base(settings: Settings) -> Settings:
    """A command line beside the recipe that it names."""
    own = {k: v for k, v in settings.values.items() if not settings.where[k].startswith(_THEIRS)}
    return replace(settings, values=own, bases=())


def generation(settings: Settings) -> str:
    """Which release's names they are.

    Raises:
        InputError: names of both.
    """
    told = {
        version: next((k for k in settings.values if k in FIELDS and FIELDS[k].versions == (version,)), "")
        for version in (RELEASE, MAIN)
    }
    # What a recipe of torchtitan's own sets is said in the names of 0.3.0, whichever release runs it.
    given = {v: k for v, k in told.items() if k and not settings.where.get(k, "").startswith(_THEIRS)}
    if len(given) == 2:
        raise InputError(
            f"{given[RELEASE]} is an option of torchtitan {RELEASE}, {given[MAIN]} of its later main: they do not go together",
            where=settings.where.get(given[MAIN], ""),
        )
    return next(iter(given), RELEASE)


def _check_names(values: dict[str, object], where: Mapping[str, str]) -> tuple[str, ...]:
    """Take out options that torchtitan does not have and that are near none of its own: the user's recipe has them.

    Raises:
        InputError: a name that is near one, or one that older releases had.
    """
    foreign = []
    for key in list(values):
        section = key.partition(".")[0]
        if key in GONE:
            raise InputError(f"{key} is an option of older releases: {GONE[key]}", where=where.get(key, ""))
        if key in FIELDS or key in HARMLESS or section in OTHER_SECTIONS or section == _AGAIN:
            continue
        near = (
            nearest(key, (*FIELDS, *RENAMED)) if section in SECTIONS else nearest(section, (*SECTIONS, *OTHER_SECTIONS))
        )
        if near:
            raise InputError(f'torchtitan has no option "{key}": did you mean {near}?', where=where.get(key, ""))
        del values[key]
        foreign.append(key)
    return tuple(foreign)


def eight_bits(settings: Settings) -> str:
    """A section that makes products narrower; "" if none does."""
    return next((k for k in settings.values if k.partition(".")[0] in EIGHT_BITS), "")


def _option(text: str, name: str) -> str:
    found = re.search(rf"--{name}[= ]([\w.]+)", text)
    return found[1] if found else ""


def _flags(text: str, name: str) -> Settings:
    """Options of a command line or a shell script, wherever they are in it."""
    bases = (config,) if (config := _option(text, "config")) else ()
    known = {k: v for base in bases if base in BASES for k, v in BASES[base].settings.items()}
    values = dict(known)
    where = dict.fromkeys(known, f"{_THEIRS}{''.join(bases)}")
    for line, words in _lines(text, name):
        k = 0
        while k < len(words):
            word, _, given = words[k].partition("=")
            k += 1
            policy, flag = _POLICY.fullmatch(word), _FLAG.fullmatch(word)
            if policy:
                values[_AGAIN], where[_AGAIN] = policy[1].replace("-", "_"), f"{name}:{line}"
            if not flag:
                continue
            field = flag[3].replace("-", "_")
            off = bool(flag[1]) or field.startswith("no_")
            key = f"{flag[2].replace('-', '_')}.{field.removeprefix('no_')}"
            taken: list[str] = [given] if given else []
            while not given and k < len(words) and not words[k].startswith("--") and not _POLICY.fullmatch(words[k]):
                taken.append(words[k])
                k += 1
            values[key] = False if off else _typed(key, taken, f"{name}:{line}")
            where[key] = f"{name}:{line}"
    if not values and not bases:
        raise InputError("no recipe, no --section.option flags and no TOML sections of torchtitan", where=name)
    return Settings(values, where, bases)


def _lines(text: str, name: str) -> list[tuple[int, list[str]]]:
    """Words of each line, comments left out; a line that goes on is several."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.rstrip().removesuffix("\\")
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = line.split()
        found.append((number, words))
    return found


def _typed(key: str, words: list[str], where: str) -> object:
    """The value of a flag: a switch without one is on."""
    if not words:
        return True
    text = " ".join(words)
    today = RENAMED.get(key, key)
    default = FIELDS[today].default if today in FIELDS else None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text == "None":
        return None
    if text[:1] in "[{(":
        try:
            value: object = ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise InputError(f"{key} {text} is no list", where=where) from None
        return value
    if isinstance(default, list):
        return text.split(",")
    try:
        return int(text)
    except ValueError:
        return text


def _toml(text: str, name: str) -> Settings:
    try:
        tables = parsed_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not TOML: {error}", where=name) from None
    lines = {(m[1], m[2]): n for n, m in _keys(text)}
    values: dict[str, object] = {}
    where: dict[str, str] = {}
    for section, table in tables.items():
        for field, value in (table if isinstance(table, dict) else {"": table}).items():
            key = f"{section}.{field}" if field else section
            values[key] = value
            where[key] = f"{name}:{lines[section, field]}" if (section, field) in lines else name
    every = values.get(f"{_AGAIN}.selective_ac_option")
    if values.get(f"{_AGAIN}.mode") == "selective" and every not in (None, "op"):
        values[f"{_AGAIN}.mode"] = Unread(f"selective_ac_option = {every!r}")
    return Settings(values, where)


def _keys(text: str) -> list[tuple[int, dict[int, str]]]:
    found, section = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        head, pair = re.match(r"\s*\[([\w.]+)\]", line), re.match(r"\s*(\w+)\s*=", line)
        if head:
            section = head[1]
        elif pair:
            found.append((number, {1: section, 2: pair[1]}))
    return found
