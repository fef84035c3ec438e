"""Settings out of a Python recipe, by reading it: nothing is executed.

A recipe is a function that returns a Trainer.Config. Followed are: calls of config classes with keywords, assignments to fields,
calls of other recipes (in the same file, or of torchtitan's own), names of constants, plain arithmetic, lists and f-strings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .._parsed import parsed_python
from ..errors import InputError
from ._torchtitan_fields import BASES

POLICIES = {"SelectiveAC": "selective", "FullAC": "full", "MemoryBudgetAC": "memory_budget", "RegionAC": "region"}
_MODES = frozenset(("selective", "full", "memory_budget", "region", "none"))


@dataclass(frozen=True, slots=True)
class Settings:
    """What one file says."""

    values: Mapping[str, object]
    """Section and field -> value; `Unread` for what is no plain value."""
    where: Mapping[str, str]
    """The same -> file and line."""
    bases: tuple[str, ...] = ()
    """Recipes that it starts from and that are not in the file."""
    constants: Mapping[str, object] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    """Options that torchtitan does not have."""


@dataclass(frozen=True, slots=True)
class Unread:
    """An expression that is not a plain value."""

    text: str


@dataclass(slots=True)
class _Config:
    """What a variable that holds a Trainer.Config says so far."""

    values: dict[str, object] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)

    def put(self, key: str, value: object, where: str) -> None:
        self.values[key], self.where[key] = value, where

    def take(self, other: _Config) -> None:
        self.values |= other.values
        self.where |= other.where
        self.bases += other.bases


def read_recipe(text: str, name: str, wanted: str = "") -> Settings:
    """The settings of the recipe in a file.

    Args:
        wanted: which function, where a file has several.

    Raises:
        InputError: not Python, no recipe in it, or several.
    """
    try:
        tree = parsed_python(text)
    except SyntaxError as error:
        raise InputError(f"not Python: {error.msg}", where=f"{name}:{error.lineno}") from None
    reader = _Reader(name, tree)
    recipes = {f.name: found for f in reader.functions.values() if (found := reader.config(f.name)) is not None}
    if wanted and wanted in recipes:
        recipes = {wanted: recipes[wanted]}
    called = {base for c in recipes.values() for base in reader.called.get(id(c), ())}
    ends = {n: c for n, c in recipes.items() if n not in called}
    if not ends:
        raise InputError("no recipe: there is no function that returns a Trainer.Config", where=name)
    if len(ends) > 1:
        raise InputError(
            f"{len(ends)} recipes, {', '.join(list(ends)[:6])}{' …' if len(ends) > 6 else ''}: give a file with one",
            where=name,
        )
    (found,) = ends.values()
    return Settings(found.values, found.where, tuple(found.bases), reader.constants)


class _Reader:
    def __init__(self, file: str, tree: ast.Module) -> None:
        self.file = file
        self.constants: dict[str, object] = {}
        self.imported: dict[str, str] = {}
        self.functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        self.called: dict[int, set[str]] = {}
        self._known: dict[str, _Config | None] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = self.value(node.value, {})
            if isinstance(node, ast.ImportFrom):
                self.imported |= {a.asname or a.name: a.name for a in node.names}

    def config(self, function: str) -> _Config | None:
        """What a function of this file returns; None if it is no recipe."""
        if function not in self._known:
            self._known[function] = None
            self._known[function] = self._run(self.functions[function])
        return self._known[function]

    def _run(self, function: ast.FunctionDef) -> _Config | None:
        names: dict[str, object] = {}
        for node in function.body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._assign(node.targets[0], node.value, names)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value, names)
            elif isinstance(node, ast.Return) and node.value is not None:
                found = self._object(node.value, names)
                return found if isinstance(found, _Config) else None
        return None

    def _assign(self, target: ast.expr, value: ast.expr, names: dict[str, object]) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = self._object(value, names)
            return
        path = _dotted(target)
        config = names.get(path[0]) if path else None
        if not path or not isinstance(config, _Config):
            return
        self._set(config, ".".join(path[1:]), value, names)

    def _set(self, config: _Config, key: str, value: ast.expr, names: Mapping[str, object]) -> None:
        """`config.key = value`, where key is a section or a field of one."""
        where = f"{self.file}:{value.lineno}"
        if key == "activation_checkpoint":
            config.put(key, self._policy(value, names), where)
            return
        if key == "model_spec":
            config.put(key, Unread(ast.unparse(value)), where)
        elif "." not in key and isinstance(value, ast.Call):
            for old in [k for k in config.values if k.startswith(f"{key}.")]:
                del config.values[old], config.where[old]
            for word in value.keywords:
                if word.arg is not None:
                    config.put(f"{key}.{word.arg}", self.value(word.value, names), f"{self.file}:{word.value.lineno}")
        else:
            config.put(key, self.value(value, names), where)

    def _object(self, node: ast.expr, names: Mapping[str, object]) -> object:
        """A config, or a plain value."""
        if isinstance(node, ast.Name) and isinstance(names.get(node.id), _Config):
            return names[node.id]
        if not isinstance(node, ast.Call):
            return self.value(node, names)
        path = _dotted(node.func)
        if path[-2:] == ("Trainer", "Config") or (path[-1:] == ("Config",) and path[0].endswith("Trainer")):
            config = _Config()
            for word in node.keywords:
                if word.arg is not None:
                    self._set(config, word.arg, word.value, names)
            return config
        if len(path) == 1 and path[0] in self.functions:
            inner = self.config(path[0])
            if inner is not None:
                copy = _Config()
                copy.take(inner)
                self.called[id(copy)] = {path[0], *self.called.get(id(inner), ())}
                return copy
        base = self.imported.get(path[-1], path[-1]) if path else ""
        if base in BASES or (len(path) == 1 and path[0] in self.imported and not node.args and not node.keywords):
            config = _Config(bases=[base])
            known = BASES.get(base)
            for key, value in (known.settings if known else {}).items():
                config.put(key, value, f"torchtitan's {base}")
            return config
        return self.value(node, names)

    def _policy(self, node: ast.expr, names: Mapping[str, object]) -> object:
        if isinstance(node, ast.Constant) and node.value is None:
            return "none"
        if isinstance(node, ast.Call):
            path = _dotted(node.func)
            if len(path) > 1 and path[-1] == "Config" and path[-2] in POLICIES:
                return POLICIES[path[-2]]
            modes = [self.value(w.value, names) for w in node.keywords if w.arg == "mode"]
            if modes and modes[0] in _MODES:
                return modes[0]
        return Unread(ast.unparse(node))

    def value(self, node: ast.expr, names: Mapping[str, object]) -> object:
        """A plain value; `Unread` for anything else."""
        try:
            return self._plain(node, {**self.constants, **names})
        except (_NotPlain, TypeError, ValueError, ZeroDivisionError, OverflowError, IndexError, KeyError):
            return Unread(ast.unparse(node))

    def _plain(self, node: ast.expr, names: Mapping[str, object]) -> object:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name() if node.id in names and not isinstance(names[node.id], (Unread, _Config)):
                return names[node.id]
            case ast.List() | ast.Tuple():
                return [x for part in node.elts for x in self._elements(part, names)]
            case ast.Dict() if None not in node.keys:
                return {
                    self._plain(k, names): self._plain(v, names)
                    for k, v in zip(node.keys, node.values, strict=True)
                    if k
                }
            case ast.UnaryOp(op=ast.USub()):
                return -self._number(node.operand, names)
            case ast.BinOp():
                return self._sum(node, names)
            case ast.JoinedStr():
                return "".join(
                    str(self._plain(p.value if isinstance(p, ast.FormattedValue) else p, names)) for p in node.values
                )
            case ast.ListComp() if len(node.generators) == 1 and not node.generators[0].ifs:
                return list(self._each(node, names))
            case ast.Call() if _dotted(node.func) == ("str",) or _dotted(node.func)[-1:] == ("with_name",):
                # str(Path(__file__).with_name("schedule.csv")): the last text is the file's name
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                if texts:
                    return texts[-1]
        raise _NotPlain

    def _elements(self, node: ast.expr, names: Mapping[str, object]) -> list[object]:
        if isinstance(node, ast.Starred):
            found = self._plain(node.value, names)
            if not isinstance(found, list):
                raise _NotPlain
            return found
        return [self._plain(node, names)]

    def _each(self, node: ast.ListComp, names: Mapping[str, object]) -> Iterator[object]:
        (loop,) = node.generators
        if not isinstance(loop.target, ast.Name):
            raise _NotPlain
        for x in self._range(loop.iter, names):
            yield self._plain(node.elt, {**names, loop.target.id: x})

    def _range(self, node: ast.expr, names: Mapping[str, object]) -> range | list[object]:
        if isinstance(node, ast.Call) and _dotted(node.func) == ("range",) and not node.keywords:
            ends = [self._number(a, names) for a in node.args]
            if all(isinstance(n, int) and abs(n) < 1 << 20 for n in ends):
                return range(*(int(n) for n in ends))
        found = self._plain(node, names)
        if not isinstance(found, list):
            raise _NotPlain
        return found

    def _sum(self, node: ast.BinOp, names: Mapping[str, object]) -> object:
        a, b = self._plain(node.left, names), self._plain(node.right, names)
        if isinstance(node.op, ast.Add) and isinstance(a, list) and isinstance(b, list):
            return a + b
        if isinstance(a, (int, float)) and isinstance(b, (int, float)):
            match node.op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return a // b
                case ast.Pow() if abs(a) < 1 << 20 and 0 <= b < 64:
                    return a**b
        raise _NotPlain

    def _number(self, node: ast.expr, names: Mapping[str, object]) -> int | float:
        found = self._plain(node, names)
        if not isinstance(found, (int, float)):
            raise _NotPlain
        return found


class _NotPlain(Exception):
    """An expression that this reader does not follow."""


def _dotted(node: ast.expr) -> tuple[str, ...]:
    """a.b.c as its names; () for anything else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if isinstance(node, ast.Name) else ()
