"""Calls in a Python file, with the arguments whose values can be read without running it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .._parsed import parsed_python
from ..errors import InputError

_OPERATORS = {
    ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Open:
    """A value that only the running script knows, as it is written there."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    """Without the modules before it: "GradientAccumulationPlugin"."""
    arguments: Mapping[str, Any]
    """By keyword, or by name where the call's parameters are known; `Open` where only the script knows. What is named after torch
    or an enumeration (torch.float32, Hook.BF16) is its last part."""
    line: int
    lines: Mapping[str, int]


def calls(text: str, file: str, parameters: Mapping[str, Collection[str]]) -> list[Call]:
    """Calls of some functions, in the order in which they stand.

    Args:
        parameters: function -> its parameters in order, for arguments without a keyword.

    Raises:
        InputError: not Python: file and line.
    """
    tree = parsed(text, file)
    names = constants(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _last(node.func) not in parameters:
            continue
        name = _last(node.func)
        given = list(zip(parameters[name], node.args, strict=False))
        given += [(k.arg, k.value) for k in node.keywords if k.arg]
        for spread in (k.value for k in node.keywords if not k.arg):  # **{"a": 1}
            if isinstance(spread, ast.Dict):
                given += [(str(value_of(k, names)), v) for k, v in zip(spread.keys, spread.values, strict=True) if k]
        arguments = {key: value_of(value, names) for key, value in given}
        found.append(Call(name, arguments, node.lineno, {key: value.lineno for key, value in given}))
    return sorted(found, key=lambda c: c.line)


def parsed(text: str, file: str) -> ast.Module:
    """Raises InputError: not Python."""
    try:
        return parsed_python(text)
    except SyntaxError as error:
        raise InputError(f"not Python: {error.msg}", where=f"{file}:{error.lineno or 1}") from None


def constants(tree: ast.Module) -> dict[str, Any]:
    """Names that a file sets once, at its top level, to values that can be read."""
    names: dict[str, Any] = {}
    twice: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            name, value = node.target.id, node.value
        else:
            continue
        twice |= {name} & set(names)
        names[name] = value_of(value, names)
    return {name: value for name, value in names.items() if name not in twice}


def value_of(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """What an expression is, as far as it can be read; `Open` where it cannot."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id, Open(node.id))
    if isinstance(node, ast.Attribute):
        owner = ast.unparse(node.value)
        return node.attr if owner == "torch" or owner.rpartition(".")[2][:1].isupper() else Open(f"{owner}.{node.attr}")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = value_of(node.operand, names)
        return -value if isinstance(value, int | float) else Open(ast.unparse(node))
    if isinstance(node, ast.List | ast.Tuple):
        return [value_of(x, names) for x in node.elts]
    if isinstance(node, ast.Dict) and all(node.keys):
        return {str(value_of(k, names)): value_of(v, names) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.Call) and _last(node.func) == "dict" and not node.args:
        return {k.arg: value_of(k.value, names) for k in node.keywords if k.arg}
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = value_of(node.left, names), value_of(node.right, names)
        if isinstance(left, int | float) and isinstance(right, int | float):
            try:
                return _OPERATORS[type(node.op)](left, right)
            except (ZeroDivisionError, OverflowError):
                return Open(ast.unparse(node))
    return Open(ast.unparse(node))


def _last(node: ast.expr) -> str:
    """The last part of a name with dots; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
