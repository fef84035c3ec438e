"""Options of Megatron-LM, and their values from a command line, a launch script or a YAML configuration.

All become fields of its configurations (`tensor_model_parallel_size`), each with the option that says it and where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from .._spelling import nearest
from ..errors import InputError
from ._shell import Word, launched, script, taken_apart
from ._yaml import composed, loaded

ALIASES = {
    "num_moe_experts": "num_experts",
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
    "use_custom_fsdp": "use_megatron_fsdp",
}
"""Other names of fields."""


@dataclass(frozen=True, slots=True)
class Option:
    takes: str
    """One value (1), several (+), three (3), or none: its field is then true or false."""
    field: str
    gone: bool = False
    """Of earlier versions."""


@dataclass(frozen=True, slots=True)
class Given:
    """A field as a file gives it."""

    value: Any
    """Text, a list of texts, or a truth value; of YAML also a number."""
    option: str
    """As it is written: "--micro-batch-size 2"."""
    where: str
    """file:line."""


Values = Mapping[str, Given]
"""Field -> what is given."""


@lru_cache(maxsize=1)
def known() -> tuple[Mapping[str, Option], frozenset[str]]:
    """Options by name, and all fields that a YAML configuration may hold."""
    options: dict[str, Option] = {}
    fields: set[str] = set()
    text = files(__package__).joinpath("_megatron_options.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        kind, *rest = line.split()
        if kind == "#":
            continue
        if kind == "yaml":
            fields.add(rest[0])
            continue
        gone = kind == "was"
        takes, name, *field = rest if gone else [kind, *rest]
        found = field[0] if field else name.replace("-", "_")
        options[f"--{name}"] = Option(takes, ALIASES.get(found, found), gone)
        fields.add(found)
    return options, frozenset(fields)


def of_script(name: str, text: str, called: str) -> tuple[dict[str, Given], dict[str, str]]:
    """Fields of a command line or of a script that launches one, and what of it is not understood.

    Raises:
        InputError: an option that Megatron does not have, or one without its value: file, line, option.
    """
    said, variables = script(text)
    words = launched(said, variables)
    if not any(w.text.startswith("--") for w in words):
        raise InputError(f"{name} holds no options of {called}: it begins no option with --", where=name)
    values: dict[str, Given] = {}
    unknown: dict[str, str] = {}
    if any(c[0].text in ("if", "case", "for", "while") for c in said):
        unknown["conditions of the script (if, case, loops)"] = "all their lines are read, in order"
    for option, taken, line in _options(name, _renamed(taken_apart(words)), called, unknown):
        found = known()[0][option]
        value: Any = (
            found.takes == "true" if found.takes in ("true", "false") else taken if found.takes in "+3" else taken[0]
        )
        shown = " ".join([option, *taken])
        if found.gone:
            unknown[shown] = f"{called} has no such option any more: nothing is made of it"
        values[found.field] = Given(value, shown, f"{name}:{line}")
    return values, unknown


OLD: Mapping[str, Sequence[str]] = {
    "--checkpoint-activations": ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"),
}  # fmt: skip
"""Options of earlier versions, which later ones refuse -> what says the same now."""


def _renamed(words: Iterator[Word]) -> Iterator[Word]:
    for word in words:
        yield from (replace(word, text=text) for text in OLD.get(word.text, (word.text,)))


def _options(
    name: str, words: Iterator[Word], called: str, unknown: dict[str, str]
) -> Iterator[tuple[str, list[str], int]]:
    """(option, its values, line)."""
    options, _ = known()
    left = list(words)
    k = 0
    while k < len(left):
        word = left[k]
        k += 1
        if not word.text.startswith("--"):
            if word.text.startswith("$"):
                unknown[word.text] = "the script does not say what it holds: taken for nothing"
            elif ">" not in word.text and not (k > 1 and ">" in left[k - 2].text):
                raise InputError(f'{name}:{word.line}: "{word.text}" belongs to no option', where=f"{name}:{word.line}")
            continue
        if word.text not in options:
            if near := nearest(word.text, options) or nearest(word.text.replace("_", "-"), options):
                raise InputError(
                    f"{name}:{word.line}: {called} has no option {word.text}: did you mean {near}?",
                    where=f"{name}:{word.line}",
                )
            own = [word.text]
            while k < len(left) and not left[k].text.startswith("--"):
                own.append(left[k].text)
                k += 1
            unknown[" ".join(own)] = f"no option of {called}: taken for the script's own"
            continue
        takes = options[word.text].takes
        taken: list[str] = []
        most = {"1": 1, "3": 3, "+": len(left)}.get(takes, 0)
        while k < len(left) and len(taken) < most and (not left[k].text.startswith("--")):
            taken.append(left[k].text)
            k += 1
        if most and not taken:
            raise InputError(f"{name}:{word.line}: {word.text} needs a value", where=f"{name}:{word.line}")
        yield word.text, taken, word.line


def of_yaml(name: str, text: str, called: str) -> tuple[dict[str, Given], dict[str, str]]:
    """Fields of a YAML configuration: sections are of no account, what is null is not given.

    Raises:
        InputError: no mapping, or a field that Megatron does not have: file, line, field.
    """
    try:
        root = composed(text)
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{name} holds no settings: a mapping of fields is wanted", where=name)
        values: dict[str, Given] = {}
        unknown: dict[str, str] = {}
        _gather(root, name, called, values, unknown)
    except yaml.MarkedYAMLError as error:
        place = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark else name
        raise InputError(f"{place}: not YAML: {error.problem or error.context}", where=place) from None
    return values, unknown


def _gather(node: yaml.MappingNode, name: str, called: str, values: dict[str, Given], unknown: dict[str, str]) -> None:
    _, fields = known()
    for key, value in node.value:
        place = f"{name}:{key.start_mark.line + 1}"
        if isinstance(value, yaml.MappingNode):
            _gather(value, name, called, values, unknown)
            continue
        word = str(key.value)
        own = word.removeprefix("--").replace("-", "_")  # its own tests write options as keys
        if own not in fields:
            if near := nearest(own, fields):
                raise InputError(f"{place}: {called} has no field {word}: did you mean {near}?", where=place)
            unknown[word] = f"no field of {called}: taken for another's"
            continue
        plain = loaded(value)
        if plain is not None:
            field = ALIASES.get(own, own)
            values[field] = Given(plain, f"{word}: {plain}", place)
