"""What is alike in a coarsened graph, found once: layers of a model have equal ops, between equal tensors.

Nodes, or groups of them, are alike that have the same indices and touch units of the same shapes in the same places; what
they move then depends on the ways alone in which they and their units can be cut. Ways are interned: equal ones are one
object, and its `id` stands for them in keys, which are looked up for every op in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..graph.ir import Floats
from ._tofu_groups import Coarse, Node, Touch, Unit
from ._tofu_prices import Way, moved, sequences

Ways: TypeAlias = tuple[Way, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A group of ops in the cost graph."""

    nodes: tuple[int, ...]
    touched: tuple[int, ...]
    """Units of its ops, in the order of their touches."""
    ends: tuple[int, ...]
    """Groups of tensors that other groups of ops touch, too."""
    outer: tuple[int, ...]
    """Units of these."""
    look: int
    """Equal for groups that are alike."""
    units: tuple[int, ...]
    """All of the above; the k-th ones of groups that are alike correspond."""
    apart: bool
    """Between more than two groups of tensors: its ops are variables of their own."""


class Outline:
    """What is the same in the cost graphs of all steps."""

    def __init__(self, coarse: Coarse) -> None:
        self.coarse = coarse
        looks: dict[object, int] = {}
        self.units = [tuple(dict.fromkeys(t.unit for t in node.touches)) for node in coarse.nodes]
        """Of each node, in the order of its touches."""
        self.look: list[int] = []
        """Of each node."""
        for n in range(len(coarse.nodes)):
            key, _ = _look(coarse, (n,), ())
            self.look.append(looks.setdefault(key, len(looks)))
        variable_of = coarse.variable_of
        touched = [{variable_of[u] for n in group for u in self.units[n]} for group in coarse.groups]
        touching: dict[int, int] = {}
        for variables in touched:
            for v in variables:
                touching[v] = touching.get(v, 0) + 1
        self.groups: list[Group] = []
        shared = {v for v, groups in touching.items() if groups > 1}
        for group, variables in zip(coarse.groups, touched, strict=True):
            ends = tuple(sorted(v for v in variables if touching[v] > 1))
            key, units = _look(coarse, group, ends)
            own = tuple(dict.fromkeys(u for n in group for u in self.units[n]))
            outer = tuple(u for v in ends for u in coarse.variables[v])
            look = looks.setdefault(key, len(looks))
            self.groups.append(Group(tuple(group), own, ends, outer, look, units, len(ends) > 2))
            if len(ends) > 2:
                shared |= variables
        self.shared = sorted(shared)
        """Groups of tensors that are variables of the cost graph."""


def _look(coarse: Coarse, nodes: Sequence[int], ends: Sequence[int]) -> tuple[object, tuple[int, ...]]:
    """(equal for groups of nodes that are alike, their units and those of their ends)."""
    local: dict[int, int] = {}
    inside = tuple(
        (
            coarse.nodes[n].sizes,
            tuple(replace(t, unit=local.setdefault(t.unit, len(local))) for t in coarse.nodes[n].touches),
        )
        for n in nodes
    )
    outside = tuple(tuple(local.setdefault(u, len(local)) for u in coarse.variables[v]) for v in ends)
    return (inside, outside, tuple(coarse.units[u].shape for u in local)), tuple(local)


class Known:
    """Ways and prices of one coarsened graph that some step needed already."""

    def __init__(self) -> None:
        self._outline: Outline | None = None
        self._interned: dict[Ways, Ways] = {}
        self._ways: dict[tuple[object, ...], Ways] = {}
        self._begun: dict[tuple[int, int], tuple[Ways, list[int]]] = {}
        self._prices: dict[tuple[object, ...], Floats] = {}
        self.moved: dict[tuple[object, ...], float] = {}
        """Bytes of single ops, each cut in one way."""

    def outline(self, coarse: Coarse) -> Outline:
        if self._outline is None or self._outline.coarse is not coarse:
            self._outline = Outline(coarse)
        return self._outline

    def one(self, way: Way) -> Ways:
        """No other way than this."""
        return self._interned.setdefault((way,), (way,))

    def ways(self, sizes: tuple[int, ...], options: tuple[int, ...], begun: Way, factors: tuple[int, ...]) -> Ways:
        """`sequences`, interned."""
        key = (sizes, options, begun, factors)
        found = self._ways.get(key)
        if found is None:
            made = tuple(sequences(sizes, options, begun, factors))
            found = self._ways[key] = self._interned.setdefault(made, made)
        return found

    def begun(self, ways: Ways, length: int) -> tuple[Ways, list[int]]:
        """(different beginnings of that length, which of them each way has)."""
        key = (id(ways), length)
        if key not in self._begun:
            known: dict[Way, int] = {}
            at = [known.setdefault(way[:length], len(known)) for way in ways]
            made = tuple(known)
            self._begun[key] = self._interned.setdefault(made, made), at
        return self._begun[key]

    def price(self, node: Node, touch: Touch, unit: Unit, ops: Ways, splits: Ways, factors: tuple[int, ...]) -> Floats:
        """`moved`; the ways are interned ones."""
        key = (
            node.sizes, touch.terms, touch.first, touch.beyond, touch.write, touch.partial, touch.item, unit.shape,
            id(ops), id(splits), factors,
        )  # fmt: skip
        if key not in self._prices:
            self._prices[key] = moved(node, touch, unit, ops, splits, factors)
        return self._prices[key]
