"""Assignments of a recipe in Python, read without running it: `cfg.model.tensor_model_parallel_size = 8`.

Plain values, names that hold one, lists, products and sums of them, torch's types, and keywords of calls (`TrainingConfig(…)`) are
followed, and helpers of the same file where they are called; of an `if` both branches are read, in order.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._parsed import parsed_python
from ..errors import InputError

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}
MOST = 10_000


class Unknown:
    """A value that only running the file would tell."""


@dataclass(frozen=True, slots=True)
class Set:
    """One field that is set."""

    path: tuple[str, ...]
    """("model", "tensor_model_parallel_size"); of keywords of a call, what the call is assigned to before them."""
    value: Any
    """`Unknown` where it is not plain."""
    line: int
    text: str
    """As it is written."""


@dataclass
class Recipe:
    sets: list[Set] = field(default_factory=list)
    base: str = ""
    """The recipe that it begins with, as its own module calls it."""


def recipe_of(name: str, text: str) -> Recipe:
    """What a file sets, in order.

    Raises:
        InputError: no Python, or several configurations in one file: file, line.
    """
    module = _Module(_parsed(name, text))
    entries = module.entries()
    if len(entries) > 1:
        raise InputError(
            f"{name} holds {len(entries)} configurations ({', '.join(entries[:6])}{' …' if len(entries) > 6 else ''}): keep the one "
            f"that is meant",
            where=name,
        )
    return module.of(entries[0] if entries else "")


def recipes_of(name: str, text: str) -> dict[str, Recipe]:
    """What each configuration of a file sets."""
    module = _Module(_parsed(name, text))
    return {entry: module.of(entry) for entry in module.functions}


def _parsed(name: str, text: str) -> ast.Module:
    try:
        return parsed_python(text)
    except SyntaxError as error:
        raise InputError(f"{name}:{error.lineno}: not Python: {error.msg}", where=f"{name}:{error.lineno}") from None


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self.statements = [s for s in tree.body if not isinstance(s, (ast.FunctionDef, ast.ClassDef))]
        self.functions = {s.name: s for s in tree.body if isinstance(s, ast.FunctionDef)}
        self.names = {
            alias.asname or alias.name: alias.name for s in ast.walk(tree) if isinstance(s, ast.ImportFrom) for alias in s.names
        }  # fmt: skip

    def entries(self) -> list[str]:
        """Functions that set something and that no other of the file calls."""
        setting = [n for n, f in self.functions.items() if any(_path(t) for s in ast.walk(f) for t in _targets(s))]
        called = {
            node.func.id for f in self.functions.values() for node in ast.walk(f) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }  # fmt: skip
        return [n for n in setting if n not in called] or setting[:1]

    def of(self, entry: str) -> Recipe:
        found, constants = Recipe(), dict[str, Any]()
        self._run(self.statements, constants, found, ())
        if entry:
            self._run(self.functions[entry].body, constants, found, (entry,))
        return found

    def _run(self, body: Sequence[ast.stmt], constants: dict[str, Any], found: Recipe, inside: tuple[str, ...]) -> None:
        for statement in body:
            for call in _calls(statement):
                self._call(call, constants, found, inside)
            value = getattr(statement, "value", None)
            for target in _targets(statement):
                if value is not None and (path := _path(target)):
                    self._set(path, value, constants, found)
                elif value is not None and isinstance(target, ast.Name):
                    plain = _plain(value, constants)
                    if isinstance(plain, Unknown):
                        constants.pop(target.id, None)
                        self._keywords((), value, constants, found)
                    else:
                        constants[target.id] = plain
            for block in ("body", "orelse", "finalbody"):
                inner = getattr(statement, block, [])
                if inner and not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                    self._run(inner, constants, found, inside)

    def _call(self, call: ast.Call, constants: dict[str, Any], found: Recipe, inside: tuple[str, ...]) -> None:
        """A helper of this file is read where it is called; a recipe of another is what this one begins with."""
        if not isinstance(call.func, ast.Name):
            return
        name = call.func.id
        if name in self.functions and name not in inside:
            self._run(self.functions[name].body, constants, found, (*inside, name))
        elif name in self.names and self.names[name].endswith("config") and self.names[name].islower():
            found.base = self.names[name]

    def _set(self, path: tuple[str, ...], value: ast.expr, constants: Mapping[str, Any], found: Recipe) -> None:
        found.sets.append(Set(path, _plain(value, constants), value.lineno, f"{'.'.join(path)} = {ast.unparse(value)}"))
        self._keywords(path, value, constants, found)

    def _keywords(self, path: tuple[str, ...], value: ast.expr, constants: Mapping[str, Any], found: Recipe) -> None:
        if not isinstance(value, ast.Call):
            return
        for keyword in value.keywords:
            if keyword.arg:
                self._set((*path, keyword.arg), keyword.value, constants, found)


def _targets(statement: ast.AST) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return list(statement.targets)
    return [statement.target] if isinstance(statement, ast.AnnAssign) else []


def _path(target: ast.expr) -> tuple[str, ...]:
    """cfg.model.x -> ("model", "x"); () for anything else."""
    parts: list[str] = []
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return tuple(reversed(parts)) if isinstance(target, ast.Name) else ()


def _calls(statement: ast.stmt) -> Iterator[ast.Call]:
    """Calls of a statement itself, not of the statements in it."""
    for value in ast.iter_child_nodes(statement):
        if isinstance(value, ast.expr):
            yield from (node for node in ast.walk(value) if isinstance(node, ast.Call))


def _plain(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return constants.get(node.id, Unknown())
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        return node.attr
    if isinstance(node, (ast.List, ast.Tuple)):
        inner = [_plain(x, constants) for x in node.elts]
        return Unknown() if any(isinstance(x, Unknown) for x in inner) else inner
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner_value = _plain(node.operand, constants)
        return -inner_value if isinstance(inner_value, (int, float)) else Unknown()
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        a, b = _plain(node.left, constants), _plain(node.right, constants)
        if not isinstance(a, Unknown) and not isinstance(b, Unknown):
            return _reckoned(type(node.op), a, b)
    return Unknown()


def _reckoned(kind: type[ast.operator], a: Any, b: Any) -> Any:
    """Of numbers, lists and texts, as long as the result has no more than `MOST` parts."""
    parts = [len(x) for x in (a, b) if isinstance(x, (str, list))]
    times = [x for x in (a, b) if isinstance(x, int)]
    if parts and times and parts[0] * times[0] > MOST:
        return Unknown()
    try:
        return _OPERATORS[kind](a, b)
    except (TypeError, ZeroDivisionError, OverflowError):
        return Unknown()
