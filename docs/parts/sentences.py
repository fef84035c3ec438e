"""Every sentence that an error of the package can say, read from the source: what docs/trouble.md must explain.

A sentence is a text with "…" where a value goes in. What an error class is called with is followed through local names,
constants of the module, both sides of a choice and functions of the package that return the text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TypeAlias

HOLE = "…"
BASE = "MeshwrightError"
DEPTH = 5
"""Functions that a text is followed through."""
MOST = 48
"""Forms of one text that are told apart; further choices inside of it are holes."""
FIXED = 6
"""Letters of its own that a sentence needs to be told from others."""
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    """With holes."""
    kind: str
    """Class of the error."""
    file: str
    """Below the package, with line."""


def letters(text: str) -> int:
    """How much of a sentence is its own."""
    return sum(c.isalpha() for c in text)


def sentences(package: Path) -> list[Sentence]:
    """All of them, in the order of files and lines; a text that is passed in from elsewhere is no sentence of its own."""
    files = {
        p.relative_to(package).as_posix(): ast.parse(p.read_text(encoding="utf-8"))
        for p in sorted(package.rglob("*.py"))
    }
    kinds = _kinds(files.values())
    modules = {name: _Module(name, tree) for name, tree in files.items()}
    found: dict[Sentence, None] = {}
    for module in modules.values():
        for call, scope in module.calls:
            kind = _name(call.func)
            if kind in kinds and call.args:
                texts = _Texts(modules, module).of(call.args[0], scope, DEPTH)
                if any(letters(text) < FIXED for text in texts):
                    texts = _Texts(modules, module, inside=True).of(call.args[0], scope, DEPTH)
                for text in texts:
                    if letters(text) >= FIXED:
                        found[Sentence(text, kind, f"{module.name}:{call.lineno}")] = None
    return list(found)


def _kinds(trees: Iterable[ast.Module]) -> set[str]:
    """Names of the error classes, subclasses of subclasses included."""
    bases = {
        node.name: {_name(b) for b in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {BASE}
    while more := {name for name, own in bases.items() if own & found} - found:
        found |= more
    return found


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class _Module:
    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.functions: dict[str, list[Function]] = {}
        self.outer: dict[Function, Function] = {}
        self.constants = dict(_assigned(tree.body))
        self.calls: list[tuple[ast.Call, Function | None]] = []
        self.attributes: list[tuple[str, ast.expr, Function | None]] = []
        self.fields = {n.name: list(dict(_declared(n))) for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
        self._visit(tree, None)

    def _visit(self, node: ast.AST, scope: Function | None) -> None:
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions.setdefault(child.name, []).append(child)
                if scope is not None:
                    self.outer[child] = scope
                inner = child
            elif isinstance(child, ast.Call):
                self.calls.append((child, scope))
                names = self.fields.get(_name(child.func), [])
                self.attributes += [(name, value, scope) for name, value in zip(names, child.args, strict=False)]
            self.attributes += [(*pair, scope) for pair in _attributes(child)]
            self._visit(child, inner)


def _declared(kind: ast.ClassDef) -> Iterator[tuple[str, None]]:
    for statement in kind.body:
        if isinstance(statement, ast.AnnAssign):
            yield _name(statement.target), None


def _assigned(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for statement in body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                yield from ((_name(t), v) for t, v in zip(target.elts, value.elts, strict=False))
            else:
                yield _name(target), value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            yield _name(statement.target), statement.value


def _given(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Local name and what it is set to, is lengthened by, or has appended."""
    match node:
        case ast.Assign() | ast.AnnAssign():
            yield from _assigned([node])
        case (
            ast.NamedExpr(target=ast.Name(id=name), value=value) | ast.AugAssign(target=ast.Name(id=name), value=value)
        ):
            yield name, value
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append" | "add"), args=[value]):
            yield name, value
        case ast.For(target=ast.Name(id=name), iter=value) | ast.comprehension(target=ast.Name(id=name), iter=value):
            yield name, value


def _attributes(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Attribute and what it is set to, also by a keyword of a constructor."""
    match node:
        case ast.Assign(targets=[ast.Attribute(attr=name)], value=value):
            yield name, value
        case ast.keyword(arg=str(name), value=value):
            yield name, value


class _Texts:
    """What an expression can say."""

    def __init__(self, modules: Mapping[str, _Module], module: _Module, inside: bool = False) -> None:
        """`inside`: values in a text are followed, too, which a text without words of its own needs."""
        self.modules, self.module, self.inside = modules, module, inside

    def of(self, node: ast.expr, scope: Function | None, depth: int) -> list[str]:
        texts = list(dict.fromkeys(_tidy(t) for t in self._of(node, scope, depth)))
        return texts if len(texts) <= MOST else [HOLE]

    def _of(self, node: ast.expr, scope: Function | None, depth: int) -> list[str]:
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.Constant(value=None):
                return []
            case ast.JoinedStr(values=values):
                return self._joined(values, scope, depth)
            case ast.FormattedValue(value=ast.IfExp(body=ast.Constant() | ast.JoinedStr()) as choice):
                return self._of(choice, scope, 0)
            case ast.FormattedValue(value=value) if self.inside and depth:
                return self.of(value, scope, depth - 1)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._joined([left, right], scope, depth)
            case ast.IfExp(body=body, orelse=other):
                return self._all([body, other], scope, depth)
            case ast.BoolOp(values=values) | ast.List(elts=values) | ast.Tuple(elts=values):
                return self._all(values, scope, depth)
            case ast.Subscript(value=value) | ast.Starred(value=value) | ast.NamedExpr(value=value):
                return self.of(value, scope, depth)
            case ast.ListComp(elt=value) | ast.GeneratorExp(elt=value):
                return self.of(value, scope, depth)
            case ast.Name(id=name) if depth:
                return self._named(name, scope, depth - 1)
            case ast.Attribute(attr=name) if depth:
                return [
                    text
                    for own, value, inner in self.module.attributes
                    if own == name
                    for text in self.of(value, inner, depth - 1)
                ] or [HOLE]
            case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[several]):
                return self.of(several, scope, depth)
            case ast.Call(func=function) if depth:
                return self._called(_name(function), depth - 1)
        return [HOLE]

    def _all(self, nodes: Sequence[ast.expr], scope: Function | None, depth: int) -> list[str]:
        return [t for node in nodes for t in self.of(node, scope, depth)]

    def _joined(self, values: Sequence[ast.expr], scope: Function | None, depth: int) -> list[str]:
        parts = [self.of(v, scope, depth) or [""] for v in values]
        forms = list(islice(product(*parts), MOST + 1))
        if len(forms) > MOST:
            forms = list(product(*(p if len(p) == 1 else [HOLE] for p in parts)))
        return ["".join(form) for form in forms]

    def _named(self, name: str, scope: Function | None, depth: int) -> list[str]:
        """What was put into a local name or a list; else a constant, or what callers pass."""
        if scope is not None:
            own = [v for n in ast.walk(scope) for k, v in _given(n) if k == name]
            if own:
                return self._all(own, scope, depth)
            names = [a.arg for a in (*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs)]
            if name in names:
                return self._passed(scope.name, name, [n for n in names if n not in ("self", "cls")], depth) or [HOLE]
            if scope in self.module.outer:
                return self._named(name, self.module.outer[scope], depth)
        if name in self.module.constants:
            return self.of(self.module.constants[name], None, depth)
        return [HOLE]

    def _passed(self, function: str, name: str, names: Sequence[str], depth: int) -> list[str]:
        """What callers give for a parameter; of the whole package where it has one function of that name."""
        homes = [m for m in self.modules.values() if function in m.functions]
        own: list[str] = []
        for module in homes if len(homes) > 1 else self.modules.values():
            if len(homes) > 1 and module is not self.module:
                continue
            texts = _Texts(self.modules, module, self.inside)
            for call, scope in module.calls:
                if _name(call.func) == function:
                    named = [k.value for k in call.keywords if k.arg == name]
                    for value in named or call.args[names.index(name) :][:1]:
                        own += texts.of(value, scope, depth)
        return own

    def _called(self, name: str, depth: int) -> list[str]:
        """Texts that a function gives: one of this module, else the only one of that name in the package."""
        module, bodies = self.module, self.module.functions.get(name, [])
        if not bodies:
            homes = [m for m in self.modules.values() if name in m.functions]
            if len(homes) != 1:
                return [HOLE]
            module, bodies = homes[0], homes[0].functions[name]
        inner = _Texts(self.modules, module, self.inside)
        given = [
            (n.value, body)
            for body in bodies
            for n in ast.walk(body)
            if isinstance(n, ast.Return | ast.Yield | ast.YieldFrom) and n.value
        ]
        return [t for value, body in given for t in inner.of(value, body, depth)] or [HOLE]


def _tidy(text: str) -> str:
    return re.sub(rf"{HOLE}(?:[\s,;:]*{HOLE})+", HOLE, re.sub(r"\s+", " ", text))
