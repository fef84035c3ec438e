"""YAML of trainers, with the line of every setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import InputError
from ._words import nested


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a file; a mapping that holds nothing is a value too."""

    value: Any
    line: int


def settings(text: str, file: str) -> dict[str, Setting]:
    """Dotted key -> value and line, in the file's order: {"fsdp_config.fsdp_version": Setting(2, 7)}.

    Raises:
        InputError: not YAML, no mapping, a key twice: file and line.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"not YAML: {error.problem or error.context}", where=f"{file}:{at}") from None
    if not isinstance(root, yaml.MappingNode):
        raise InputError("not a mapping of settings to values", where=f"{file}:1")
    found: dict[str, Setting] = {}
    _into(found, root, "", file)
    return found


def written(options: Mapping[str, Any]) -> str:
    """Settings by dotted key as YAML, in the order given."""
    text: str = yaml.safe_dump(nested(options), sort_keys=False, default_flow_style=False, allow_unicode=True)
    return text


def _into(found: dict[str, Setting], node: yaml.MappingNode, prefix: str, file: str) -> None:
    loader = yaml.SafeLoader("")
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = prefix + str(key_node.value), key_node.start_mark.line + 1
        if key in first:
            raise InputError(f'"{key}" twice, first in line {first[key]}', where=f"{file}:{line}")
        first[key] = line
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            _into(found, value_node, key + ".", file)
        else:
            found[key] = Setting(loader.construct_object(value_node, deep=True), line)
