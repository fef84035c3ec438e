"""YAML of trainers, with the line of every setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import InputError
from ._words import nested

MOST = 100_000
"""Values that a file may hold, those that aliases stand for counted each time."""


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
    found: dict[str, Setting] = {}
    try:
        root = composed(text)
        if not isinstance(root, yaml.MappingNode):
            raise InputError("not a mapping of settings to values", where=f"{file}:1")
        _into(found, root, "", file)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"not YAML: {error.problem or error.context}", where=f"{file}:{at}") from None
    return found


def composed(text: str) -> yaml.Node | None:
    """The tree of a text, None of an empty one. No part of it holds itself.

    Raises:
        yaml.MarkedYAMLError: whatever is wrong with the text.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError:
        raise
    except yaml.reader.ReaderError as error:
        mark = yaml.Mark("", error.position, text.count("\n", 0, error.position), 0, None, None)
        raise yaml.MarkedYAMLError(
            problem=f"a character that no text holds, #x{error.character:x}", problem_mark=mark
        ) from None
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="brackets in brackets without end") from None
    if root is not None and _count(root, [], {}) > MOST:
        raise yaml.MarkedYAMLError(problem=f"aliases stand for more than {MOST:,} values")
    return root


def loaded(node: yaml.Node) -> Any:
    """The value of a part of a tree.

    Raises:
        yaml.MarkedYAMLError: a tag or a value that plain YAML does not have.
    """
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except yaml.MarkedYAMLError:
        raise
    except (ValueError, OverflowError) as error:  # a date of month 13, a number of too many digits
        raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def parsed_yaml(text: str) -> Any:
    """The value of a text.

    Raises:
        yaml.MarkedYAMLError: it has none.
    """
    root = composed(text)
    return None if root is None else loaded(root)


def written(options: Mapping[str, Any]) -> str:
    """Settings by dotted key as YAML, in the order given."""
    text: str = yaml.safe_dump(nested(options), sort_keys=False, default_flow_style=False, allow_unicode=True)
    return text


def _into(found: dict[str, Setting], node: yaml.MappingNode, prefix: str, file: str) -> None:
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = prefix + str(key_node.value), key_node.start_mark.line + 1
        if key in first:
            raise InputError(f'"{key}" twice, first in line {first[key]}', where=f"{file}:{line}")
        first[key] = line
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            _into(found, value_node, key + ".", file)
        else:
            found[key] = Setting(loaded(value_node), line)


def _count(node: yaml.Node, inside: list[yaml.Node], counts: dict[yaml.Node, int]) -> int:
    """Values of a part of a tree with all that aliases in it stand for."""
    if node in counts:
        return counts[node]
    if any(node is other for other in inside):
        raise yaml.MarkedYAMLError(problem="a value holds itself", problem_mark=node.start_mark)
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    counts[node] = 1 + sum(_count(part, [*inside, node], counts) for part in parts)
    return counts[node]
