"""Tofu's recursion (§5.2): one step after the other, each the optimum over the coarsened graph given the steps before.

A step is a cost graph. Its variables are the groups of tensors that several groups of ops touch, an option being a split of
each of their units; a group of ops between at most two of them is a table, found by trying all strategies of its ops and
all splits of the tensors inside it. On a chain its elimination is OptCNN's dynamic programme. A group between more of them
puts its ops into the graph as variables; the common elimination solves that, and what is no chain, too.

Prices are those of the direct definition with the steps so far, so the sum over steps is what the plan moves.

Ties matter: equal steps go on differently. So a step is chosen with the best next step behind it: among the plans of least
cost, one whose continuation costs least (`Space.solve` with levels (1, 2)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import gcd, prod

import numpy as np

from ..errors import Infeasible, Unsupported
from ..graph.ir import Floats
from ..solvers.cost_graph import CostGraph
from ..solvers.elimination import eliminate
from ._tofu_groups import Coarse
from ._tofu_prices import Way, moved, sequences

ENTRIES = 1 << 22
"""Of one table of a group of ops; with more, ties are not looked at."""
PARTS = 1 << 26
"""Of one op, all ways to cut it together; with more, steps are not looked at all at once."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Per node and per unit what is cut in each step."""

    ops: Mapping[int, Way]
    units: Mapping[int, Way]


NOTHING = Decision({}, {})


@dataclass(slots=True)
class Space:
    """The choices of one coarsened graph."""

    coarse: Coarse
    reduction: bool = True
    """False: no strategy that leaves partial results (OptCNN's space)."""
    splits: Mapping[int, Way] = field(default_factory=dict)
    """Units whose splits are given, a dim for each step."""
    strategies: Mapping[int, Way] = field(default_factory=dict)
    """Nodes whose strategies are given."""
    tick: Callable[[], None] = lambda: None
    """Called often; what it raises ends the search."""
    looked_ahead: int = 0
    """Steps that `recursion` chose with the next one behind them."""
    _known: dict[tuple[object, ...], Floats] = field(default_factory=dict)

    # ---------------------------------------------------------------- options

    def of_unit(self, u: int, begun: Way, factors: Sequence[int]) -> list[Way]:
        if u in self.splits:
            return [self.splits[u][: len(factors)]]
        shape = self.coarse.units[u].shape
        return sequences(shape, range(len(shape)), begun, factors)

    def of_node(self, n: int, begun: Way, factors: Sequence[int]) -> list[Way]:
        if n in self.strategies:
            return [self.strategies[n][: len(factors)]]
        node = self.coarse.nodes[n]
        options = [v for v in node.options if self.reduction or v not in node.reduces]
        return sequences(node.sizes, options, begun, factors)

    # ---------------------------------------------------------------- price of a whole plan

    def total(self, decision: Decision, factors: Sequence[int]) -> float:
        """Bytes that all workers move."""
        return sum(self.moved(n, decision.ops[n], decision.units, factors) for n in range(len(self.coarse.nodes)))

    def moved(self, n: int, way: Way, units: Mapping[int, Way], factors: Sequence[int]) -> float:
        """Those that one op moves, cut as `way` says."""
        node, found = self.coarse.nodes[n], 0.0
        for touch in node.touches:
            unit = self.coarse.units[touch.unit]
            found += float(moved(node, touch, unit, [way], [units[touch.unit]], factors)[0, 0])
        return found

    # ---------------------------------------------------------------- one step, or several at once

    def solve(self, before: Decision, factors: Sequence[int], begun: int, levels: Sequence[int]) -> Decision:
        """The next steps of a plan.

        Args:
            before: the first `begun` steps.
            factors: of all steps that are looked at.
            levels: numbers of further steps; the price of the plan with the first of them counts, of equals that with the
                second. The decision has the first.

        Raises:
            Infeasible: some op or tensor has no legal way on.
        """
        step = _Step(self, before, factors[: begun + levels[-1]], begun, levels)
        return step.decision(begun + levels[0])

    def recursion(self, factors: Sequence[int], *, look_ahead: bool = True) -> Decision:
        """Step after step; the last one has nothing to look ahead to."""
        decision = Decision(
            dict.fromkeys(range(len(self.coarse.nodes)), ()), dict.fromkeys(range(len(self.coarse.units)), ())
        )
        for i in range(len(factors)):
            wide = look_ahead and i + 1 < len(factors)
            wide = wide and _largest(self, decision, factors[: i + 2]) <= ENTRIES
            try:
                decision = self.solve(decision, factors, i, (1, 2) if wide else (1,))
                self.looked_ahead += wide
            except Unsupported:  # tables of two steps at once are too large for the elimination
                if not wide:
                    raise
                decision = self.solve(decision, factors, i, (1,))
            self.tick()
        return decision


def _largest(space: Space, before: Decision, factors: Sequence[int]) -> int:
    """Entries of the largest table of a group of ops, over all the units that it touches."""
    units = [len(space.of_unit(u, before.units.get(u, ()), factors)) for u in range(len(space.coarse.units))]
    most = 1
    for group in space.coarse.groups:
        touched = {t.unit for n in group for t in space.coarse.nodes[n].touches}
        most = max(most, prod(units[u] for u in touched))
    return most


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Least bytes of a group of ops over its units' splits: one axis for each of `units`."""

    units: tuple[int, ...]
    cost: Floats


class _Step:
    """The cost graph of some steps, built and solved."""

    def __init__(
        self, space: Space, before: Decision, factors: Sequence[int], begun: int, levels: Sequence[int]
    ) -> None:
        self.space, self.coarse, self.factors = space, space.coarse, tuple(factors)
        self.begun, self.levels = begun, tuple(levels)
        self.units = [space.of_unit(u, before.units.get(u, ()), factors) for u in range(len(self.coarse.units))]
        self.nodes = [space.of_node(n, before.ops.get(n, ()), factors) for n in range(len(self.coarse.nodes))]
        self.alike: dict[tuple[object, ...], Floats] = {}
        self.weights: tuple[float, ...] = (1.0,)
        if len(self.levels) > 1:
            self.weights = self._weights()

    # ---------------------------------------------------------------- tables

    def _priced(self, n: int, k: int, level: int) -> Floats:
        """[strategies of a node, splits of the unit of its k-th touch]: bytes of the plan with the first `level` steps."""
        node, touch = self.coarse.nodes[n], self.coarse.nodes[n].touches[k]
        unit = self.coarse.units[touch.unit]
        length = self.begun + level
        ops, at = _cut(self.nodes[n], length)
        splits, to = _cut(self.units[touch.unit], length)
        key = (
            node.sizes, touch.terms, touch.first, touch.beyond, touch.write, touch.partial, touch.item, unit.shape,
            tuple(ops), tuple(splits),
        )  # fmt: skip
        known = self.space._known
        if key not in known:
            known[key] = moved(node, touch, unit, ops, splits, self.factors[:length])
        return known[key][np.ix_(at, to)]

    def _weights(self) -> tuple[float, ...]:
        """Of the levels: the second counts less than any difference of the first."""
        step, most = 0, 0.0
        for n, node in enumerate(self.coarse.nodes):
            for k in range(len(node.touches)):
                first = self._priced(n, k, self.levels[0])
                step = reduce(gcd, {int(x) for x in first.ravel().tolist()}, step)
                most += float(self._priced(n, k, self.levels[1]).max())
        return (1.0, max(step, 1) / (2.0 * (most + 1.0)))

    def touched(self, n: int, k: int) -> Floats:
        """[strategies, splits]: weighted bytes."""
        return sum(
            (w * self._priced(n, k, level) for w, level in zip(self.weights, self.levels)),
            np.zeros((len(self.nodes[n]), len(self.units[self.coarse.nodes[n].touches[k].unit]))),
        )

    def of_node(self, n: int) -> tuple[tuple[int, ...], Floats]:
        """(units, [strategies, splits of each unit])."""
        node = self.coarse.nodes[n]
        units = tuple(dict.fromkeys(t.unit for t in node.touches))
        shape = [len(self.units[u]) for u in units]
        cost = np.zeros([len(self.nodes[n]), *shape])
        for k, touch in enumerate(node.touches):
            axis = units.index(touch.unit)
            cost = cost + self.touched(n, k).reshape([-1, *(m if j == axis else 1 for j, m in enumerate(shape))])
        return units, cost

    def of_group(self, group: Sequence[int]) -> _Table:
        """Brute force over the strategies of a group's ops."""
        units = tuple(dict.fromkeys(t.unit for n in group for t in self.coarse.nodes[n].touches))
        shape = [len(self.units[u]) for u in units]
        cost = np.zeros(shape)
        for n in group:
            own, table = self.of_node(n)
            cost = cost + _spread(table.min(axis=0), own, units)
        return _Table(units, cost)

    # ---------------------------------------------------------------- solving

    def decision(self, length: int) -> Decision:
        """The best choices, cut to `length` steps."""
        coarse = self.coarse
        variable_of = coarse.variable_of
        touching: dict[int, set[int]] = {}
        for g, group in enumerate(coarse.groups):
            for n in group:
                for t in coarse.nodes[n].touches:
                    touching.setdefault(variable_of[t.unit], set()).add(g)
        between = [
            sorted({v for v, gs in touching.items() if g in gs and len(gs) > 1}) for g in range(len(coarse.groups))
        ]
        apart = {g for g, own in enumerate(between) if len(own) > 2}
        shared = sorted(v for v, gs in touching.items() if len(gs) > 1 or gs & apart)
        variable = {v: k for k, v in enumerate(shared)}
        unary = [np.zeros(self._options(v)) for v in shared]
        edges: list[tuple[int, int]] = []
        tables: list[Floats] = []
        op_at: dict[int, int] = {}
        for g, group in enumerate(coarse.groups):
            if g in apart:
                for n in group:
                    op_at[n] = len(unary)
                    unary.append(np.zeros(len(self.nodes[n])))
                    for k, touch in enumerate(coarse.nodes[n].touches):
                        v = variable_of[touch.unit]
                        edges.append((op_at[n], variable[v]))
                        tables.append(self._over(v, touch.unit, self.touched(n, k)))
                continue
            ends = between[g]
            cost = self._ends(group, ends)
            self.space.tick()
            if len(ends) == 1:
                unary[variable[ends[0]]] = unary[variable[ends[0]]] + cost
            elif len(ends) == 2:
                edges.append((variable[ends[0]], variable[ends[1]]))
                tables.append(cost)
        found = eliminate(
            CostGraph(tuple(unary), tuple(edges), tuple(tables)), progress=lambda done, total: self.space.tick()
        )
        if unary and not found.choice:
            raise Infeasible("no way to cut every op and tensor evenly is left")
        units: dict[int, int] = {}
        for v, k in variable.items():
            units.update(zip(coarse.variables[v], self._unraveled(v, found.choice[k]), strict=True))
        ops = {n: found.choice[k] for n, k in op_at.items()}
        for g, group in enumerate(coarse.groups):
            if g not in apart:
                self._inside(group, units)
            for n in group:
                ops.setdefault(n, self._strategy(n, units))
        for u in range(len(coarse.units)):
            units.setdefault(u, 0)  # nothing touches it
        return Decision(
            {n: self.nodes[n][c][:length] for n, c in ops.items()},
            {u: self.units[u][c][:length] for u, c in units.items()},
        )

    def _options(self, v: int) -> int:
        return prod(len(self.units[u]) for u in self.coarse.variables[v])

    def _unraveled(self, v: int, choice: int) -> tuple[int, ...]:
        shape = tuple(len(self.units[u]) for u in self.coarse.variables[v])
        return tuple(int(c) for c in np.unravel_index(choice, shape))

    def _over(self, v: int, unit: int, table: Floats) -> Floats:
        """[strategies, splits of one unit] over all options of the unit's group of tensors."""
        own = self.coarse.variables[v]
        shape = [len(self.units[u]) for u in own]
        wide = table.reshape([len(table), *(m if u == unit else 1 for u, m in zip(own, shape))])
        return np.broadcast_to(wide, (len(table), *shape)).reshape(len(table), -1)

    def _ends(self, group: Sequence[int], ends: Sequence[int]) -> Floats:
        """Least over the tensors inside a group of ops; an axis for each group of tensors at its ends.

        Groups that are alike, as those of equal layers are, share one array.
        """
        local: dict[int, int] = {}
        inside = tuple(
            (
                coarse_node.sizes,
                tuple(replace(t, unit=local.setdefault(t.unit, len(local))) for t in coarse_node.touches),
                tuple(self.nodes[n]),
            )
            for n, coarse_node in ((n, self.coarse.nodes[n]) for n in group)
        )
        of_ends = tuple(tuple(local.setdefault(u, len(local)) for u in self.coarse.variables[v]) for v in ends)
        units = tuple((self.coarse.units[u].shape, tuple(self.units[u])) for u in local)
        key = (inside, of_ends, units)
        if key not in self.alike:
            table = self.of_group(group)
            outer = [u for v in ends for u in self.coarse.variables[v]]
            inner = tuple(k for k, u in enumerate(table.units) if u not in outer)
            least = table.cost.min(axis=inner) if inner else table.cost
            left = tuple(u for u in table.units if u in outer)
            full = np.broadcast_to(_spread(least, left, outer), [len(self.units[u]) for u in outer])
            self.alike[key] = np.array(full.reshape([self._options(v) for v in ends]))
        return self.alike[key]

    def _inside(self, group: Sequence[int], units: dict[int, int]) -> None:
        """Splits of the tensors inside a group of ops, those at its ends being chosen."""
        table = self.of_group(group)
        index = tuple(units.get(u, slice(None)) for u in table.units)
        left = [u for u in table.units if u not in units]
        best = table.cost[index]
        for u, c in zip(left, np.unravel_index(int(np.argmin(best)), best.shape), strict=True):
            units[u] = int(c)

    def _strategy(self, n: int, units: Mapping[int, int]) -> int:
        own, table = self.of_node(n)
        index: tuple[slice | int, ...] = (slice(None), *(units[u] for u in own))
        return int(np.argmin(table[index]))


def _cut(ways: Sequence[Way], length: int) -> tuple[list[Way], list[int]]:
    """(different beginnings of that length, which of them each way has)."""
    known: dict[Way, int] = {}
    at = [known.setdefault(way[:length], len(known)) for way in ways]
    return list(known), at


def _spread(table: Floats, own: Sequence[int], every: Sequence[int]) -> Floats:
    """A table over some units as one over `every` of them, in that order; of length 1 along the others."""
    order = [own.index(u) for u in every if u in own]
    turned = table.transpose(order)
    lengths = iter(turned.shape)
    return turned.reshape([next(lengths) if u in own else 1 for u in every])


def is_small(space: Space, factors: Sequence[int]) -> bool:
    """Are there few enough plans to look at all steps at once?"""
    free = (len(node.options) for n, node in enumerate(space.coarse.nodes) if n not in space.strategies)
    parts = max(free, default=1) ** len(factors) * prod(factors)  # of all ways to cut an op, on all workers
    return bool(factors) and parts <= PARTS and _largest(space, NOTHING, factors) <= ENTRIES


def exact(space: Space, factors: Sequence[int]) -> Decision:
    """All steps at once: the optimum over every plan.

    Raises:
        Unsupported: too many plans.
    """
    if not is_small(space, factors):
        raise Unsupported(f"all {len(factors)} steps at once have too many plans here: use the recursion, method=tofu")
    return space.solve(NOTHING, factors, 0, (len(factors),))


def greedy(space: Space, factors: Sequence[int]) -> Decision:
    """Spartan's order: the largest tensor first, each split where the ops that touch it then move least.

    Gradients of activations come after all else. Splits that `space` has stay.
    """
    coarse = space.coarse
    order = sorted(range(len(coarse.units)), key=lambda u: (not coarse.units[u].forward, -coarse.units[u].nbytes, u))
    splits: dict[int, Way] = {}
    for i in range(len(factors)):
        now, fixed = factors[: i + 1], dict[int, Way]()
        for u in order:
            ways = space.of_unit(u, splits.get(u, ()), now)
            nodes = [n for n, node in enumerate(coarse.nodes) if any(t.unit == u for t in node.touches)]
            costs = [sum(_known_cost(space, n, {**fixed, u: way}, now) for n in nodes) for way in ways]
            fixed[u] = ways[int(np.argmin(costs))]
        splits = fixed
    return replace(space, splits=splits).recursion(factors, look_ahead=False)


def _known_cost(space: Space, n: int, fixed: Mapping[int, Way], factors: Sequence[int]) -> float:
    """Least bytes of an op for the tensors whose splits are known."""
    node = space.coarse.nodes[n]
    ways = space.of_node(n, (), factors)
    cost = np.zeros(len(ways))
    for touch in node.touches:
        if touch.unit in fixed:
            cost += moved(node, touch, space.coarse.units[touch.unit], ways, [fixed[touch.unit]], factors)[:, 0]
    return float(cost.min())


def by_rows(coarse: Coarse, factors: Sequence[int]) -> dict[int, Way]:
    """AllRow: every tensor split along its first dim that the step's factor divides."""
    splits = {}
    for u, unit in enumerate(coarse.units):
        way: Way = ()
        for i in range(len(factors)):
            way = sequences(unit.shape, range(len(unit.shape)), way, factors[: i + 1])[0]
        splits[u] = way
    return splits
