"""Tofu's description of operators: what element of the output is computed from which elements of the inputs (§4.1).

    conv1d   describe((b, co, x), Sum((ci, dx), data[b, ci, x + dx] * weight[ci, co, dx]))

An expression is an element of an operand with affine indices (or `:`), arithmetic on expressions, a reduction over further
index variables, or an opaque function of whole slices, which nothing is known about but the indices outside of it. From it
follow, by intervals, all ways to cut an op: along an output index (parts of the result are put together) or along a
reduction index (partial results are added up), and which region of each operand a part needs.

`of_op` writes the description that the factor rule of an op implies: factors are index variables, a window factor reads
its neighbours' rows, a statistic reads its dim whole, what is fixed sits inside an opaque function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from ..graph.ir import Dims, Op
from ..lower.halo import DATA
from ..solvers.regions import Affine, Ends, interval, var

Index: TypeAlias = "Affine | slice"
ALL = slice(None)
REDUCTIONS = ("Sum", "Max", "Min", "Prod")


class Expr:
    """Arithmetic on expressions: which function it is does not matter to regions."""

    def __add__(self, other: Expr | float) -> Expr:
        return Apply((self, other)) if isinstance(other, Expr) else Apply((self,))

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__


@dataclass(frozen=True, slots=True)
class Apply(Expr):
    """Some function of expressions at the same indices."""

    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Element(Expr):
    """One element of an operand; a `:` stands for all elements along that dim."""

    operand: int
    index: tuple[Index, ...]


@dataclass(frozen=True, slots=True)
class Reduce(Expr):
    kind: str
    over: tuple[str, ...]
    body: Expr


@dataclass(frozen=True, slots=True)
class Opaque(Expr):
    """A function of whole slices. `hidden`: output indices that select from what it gives, hence cannot be cut."""

    args: tuple[Expr, ...]
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operand:
    """`Operand(0)[i, j + 1]` is an element of the first operand."""

    number: int

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Element:
        return Element(self.number, index if isinstance(index, tuple) else (index,))


@dataclass(frozen=True, slots=True)
class Description:
    """`lambda outputs: body`."""

    outputs: tuple[str, ...]
    body: Expr

    def elements(self) -> Iterator[Element]:
        """All operands' elements that are read."""
        yield from _elements(self.body)

    def cuts(self) -> dict[str, str]:
        """Index variable -> "output" (case 1) or the reduction that adds partial results up (case 2)."""
        hidden = _hidden(self.body)
        found = {name: "output" for name in self.outputs if name not in hidden}
        for reduce in _reductions(self.body):
            found.update({name: reduce.kind for name in reduce.over if name not in hidden})
        return found

    def regions(
        self, ends: Ends, extents: Mapping[str, int], shapes: Mapping[int, tuple[int, ...]]
    ) -> dict[int, Region]:
        """Per operand: the range of each dim that is read while index variables run over `ends` alone.

        Args:
            extents: of all index variables, reductions too.
            shapes: of the operands; what a window reads beyond its operand is padding.
        """
        found: dict[int, Region] = {}
        for element in self.elements():
            shape = shapes[element.operand]
            region = []
            for d, index in enumerate(element.index):
                if isinstance(index, slice):
                    region.append((0, shape[d]))
                    continue
                lo, hi = interval(index, ends).elements(extents)
                region.append((max(0, lo), min(shape[d], hi)))
            before = found.get(element.operand)
            found[element.operand] = tuple(region) if before is None else _hull(before, tuple(region))
        return found


Region: TypeAlias = tuple[tuple[int, int], ...]
"""(first, last + 1) per dim."""


def halves(name: str, parts: int = 2) -> Iterator[Ends]:
    """Each of `parts` equal parts of one variable."""
    for q in range(parts):
        yield {name: (Fraction(q, parts), Fraction(q + 1, parts))}


def of_op(op: Op, result: int = 0) -> Description:
    """What the factor rule of an op says about one of its results."""
    factors = {f.name: f for f in op.rule.factors}
    results = op.rule.results[result] if op.rule.results else ()
    outputs = tuple(name for names in results for name in names)
    whole: list[str] = []
    reads: list[Expr] = []
    for k, dims in enumerate(op.rule.operands):
        index, seen = indices(op, k, dims)
        whole += seen
        reads.append(Element(k, index))
    fixed = tuple(n for n, f in factors.items() if f.kind in ("fixed", "opaque"))
    body: Expr = Opaque(tuple(reads), fixed) if fixed else Apply(tuple(reads))
    if whole:  # a statistic: read whole to make any element
        body = Apply((Reduce("Sum", tuple(whole), body),))
    summed = tuple(n for n, f in factors.items() if n not in outputs and f.kind != "stat")
    return Description(outputs, Reduce("Sum", summed, body) if summed else body)


def indices(op: Op, operand: int, dims: Dims) -> tuple[tuple[Affine, ...], list[str]]:
    """(index of each dim of an operand, further variables that run over windows and statistics)."""
    factors = {f.name: f for f in op.rule.factors}
    found, more = [], []
    for names in dims:
        index, step = Affine(), 1
        for name in reversed(names):
            factor = factors[name]
            if factor.kind == "stat":
                more.append(f"all {name}")
                index = index + var(f"all {name}") * step
            elif factor.kind == "halo" and operand == DATA:
                # The rest of the dim lies inside one window: all of it, and the rows of both neighbours.
                window = f"window {name}"
                more.append(window)
                index = var(name) * step + var(window) - factor.halo[0]
            else:
                index = index + var(name) * step
            step *= factor.size
        found.append(index)
    return tuple(found), more


def extents_of(op: Op) -> dict[str, int]:
    """Extents of the index variables of `of_op`."""
    found = {f.name: f.size for f in op.rule.factors}
    for factor in op.rule.factors:
        found[f"all {factor.name}"] = factor.size
        if factor.kind == "halo" and op.rule.operands:
            names = next((n for n in op.rule.operands[DATA] if factor.name in n), (factor.name,))
            step = 1
            for name in names[names.index(factor.name) + 1 :]:
                step *= found[name]
            found[f"window {factor.name}"] = step + sum(factor.halo)
    return found


def is_elementwise(description: Description, operand: int) -> bool:
    """Is the operand read at exactly the indices of the output?"""
    reads = [e for e in description.elements() if e.operand == operand]
    wanted = tuple(var(name) for name in description.outputs)
    return bool(reads) and all(e.index == wanted for e in reads) and not _hidden(description.body)


def _hull(a: Region, b: Region) -> Region:
    return tuple((min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))


def _children(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, (Apply, Opaque)):
        return expr.args
    return (expr.body,) if isinstance(expr, Reduce) else ()


def _elements(expr: Expr) -> Iterator[Element]:
    if isinstance(expr, Element):
        yield expr
    for child in _children(expr):
        yield from _elements(child)


def _hidden(expr: Expr) -> frozenset[str]:
    own = frozenset(expr.hidden) if isinstance(expr, Opaque) else frozenset[str]()
    return own.union(*(_hidden(child) for child in _children(expr)))


def _reductions(expr: Expr) -> Iterator[Reduce]:
    """Reductions that make the output itself, all of one kind: only their partial results can be joined."""
    kind = expr.kind if isinstance(expr, Reduce) else ""
    while isinstance(expr, Reduce) and expr.kind == kind:
        yield expr
        expr = expr.body
