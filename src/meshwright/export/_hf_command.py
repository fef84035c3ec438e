"""Command lines of scripts that fill in TrainingArguments, such as the library's own run_clm.py."""

from __future__ import annotations

import re
from typing import Any

import yaml

from .._parsed import parsed_json
from .._spelling import distance, nearest
from ..errors import InputError
from ._calls import Call
from ._hf_options import names
from ._shell import launched, script, taken_apart
from ._yaml import parsed_yaml

_OWNER = "TrainingArguments"
_TOLD = re.compile(r"--(?:per_device_train_batch_size|per-device-train-batch-size)\b")
_LAUNCHED_WITH = re.compile(r"\baccelerate\s+launch\b[^;&|]*?--config[_-]file[=\s]+(\S+)", re.DOTALL)
_OLD = ("evaluation_strategy", "overwrite_output_dir", "half_precision_backend", "warmup_ratio", "group_by_length")
"""Of earlier versions, without effect on speed or memory."""


def is_command(text: str) -> bool:
    """Whether a text is a command line, or a script with one, that such arguments stand in."""
    return _TOLD.search(text) is not None and not any(f"{name}(" in text for name in (_OWNER, "add_argument"))


def training_call(text: str, file: str) -> tuple[Call, dict[str, str]]:
    """The options as if a script called TrainingArguments with them, and what of the rest is not understood.

    Raises:
        InputError: an option near one of the library's, or a file of accelerate that has the layout: file, line, option.
    """
    if with_file := _LAUNCHED_WITH.search(text):
        raise InputError(
            f"the layout is in accelerate's file: give {with_file[1]} in place of this command",
            where=f"{file}:{text.count(chr(10), 0, with_file.start(1)) + 1}",
        )
    words = list(taken_apart(launched(*script(text))))
    known = names(_OWNER)
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    ignored: dict[str, str] = {}
    k = 0
    while k < len(words):
        word = words[k]
        k += 1
        if not word.text.startswith("--"):
            if word.text.startswith("$"):
                ignored[word.text] = "the script does not say what it holds: taken for nothing"
            continue
        values: list[str] = []
        while k < len(words) and not (words[k].text.startswith("--") or (values and _behind(words[k].text))):
            values.append(words[k].text)
            k += 1
        name = word.text.lstrip("-").replace("-", "_")
        if name in known:
            found[name], lines[name] = _value(values), word.line
        elif name not in _OLD and (near := _misspelt(name)):
            raise InputError(
                f"{file}:{word.line}: {_OWNER} has no {word.text}: did you mean --{near}?", where=f"{file}:{word.line}"
            )
    line = min(lines.values(), default=1)
    return Call(_OWNER, found, line, lines), ignored


def _behind(text: str) -> bool:
    """Whether a word behind a value is no further value: where output goes, or options of a variable that is not set."""
    return text.startswith("$") or ">" in text


def _misspelt(name: str) -> str:
    """The argument that an option was meant to be; "" for options of the script's own."""
    near = nearest(name, names(_OWNER), limit=2)
    return near if near and distance(name, near) <= min(2, len(name) // 3) else ""


def _value(values: list[str]) -> Any:
    """A value as Python has it: no value is true, several are words."""
    if not values:
        return True
    text = " ".join(values)
    if text.startswith("{"):
        try:
            return parsed_json(text)
        except ValueError:
            return text
    try:
        plain = parsed_yaml(text)
    except yaml.YAMLError:
        return text
    return plain if isinstance(plain, (bool, int, float)) else text
