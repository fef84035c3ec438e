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
from ._tofu_alike import Group, Known, Ways
from ._tofu_groups import Coarse
from ._tofu_prices import Way, sequences

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
    tick: Callable[[int], None] = lambda steps: None
    """Called often, with how many more steps are chosen; what it raises ends the search."""
    looked_ahead: int = 0
    """Steps that `recursion` chose with the next one behind them."""
    known: Known = field(default_factory=Known)

    # ---------------------------------------------------------------- options

    def of_unit(self, u: int, begun: Way, factors: Sequence[int]) -> Ways:
        if u in self.splits:
            return self.known.one(self.splits[u][: len(factors)])
        shape = self.coarse.units[u].shape
        return self.known.ways(shape, tuple(range(len(shape))), begun, tuple(factors))

    def of_node(self, n: int, begun: Way, factors: Sequence[int]) -> Ways:
        if n in self.strategies:
            return self.known.one(self.strategies[n][: len(factors)])
        node = self.coarse.nodes[n]
        options = node.options
        if not self.reduction:
            options = tuple(v for v in options if v not in node.reduces)
        return self.known.ways(node.sizes, options, begun, tuple(factors))

    # ---------------------------------------------------------------- price of a whole plan

    def total(self, decision: Decision, factors: Sequence[int]) -> float:
        """Bytes that all workers move."""
        return sum(self.moved(n, decision.ops[n], decision.units, factors) for n in range(len(self.coarse.nodes)))

    def moved(self, n: int, way: Way, units: Mapping[int, Way], factors: Sequence[int]) -> float:
        """Those that one op moves, cut as `way` says."""
        known, outline = self.known, self.known.outline(self.coarse)
        key = (outline.look[n], way, *(units[u] for u in outline.units[n]), tuple(factors))
        if key not in known.moved:
            node, found = self.coarse.nodes[n], 0.0
            for touch in node.touches:
                unit, split = self.coarse.units[touch.unit], known.one(units[touch.unit])
                found += float(known.price(node, touch, unit, known.one(way), split, tuple(factors))[0, 0])
            known.moved[key] = found
        return known.moved[key]

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
            self.tick(1)
        return decision


def _largest(space: Space, before: Decision, factors: Sequence[int]) -> int:
    """Entries of the largest table of a group of ops, over all the units that it touches."""
    units = [len(space.of_unit(u, before.units.get(u, ()), factors)) for u in range(len(space.coarse.units))]
    most = 1
    for group in space.known.outline(space.coarse).groups:
        most = max(most, prod(units[u] for u in group.touched))
    return most


class _Step:
    """The cost graph of some steps, built and solved."""

    def __init__(
        self, space: Space, before: Decision, factors: Sequence[int], begun: int, levels: Sequence[int]
    ) -> None:
        self.space, self.coarse, self.factors = space, space.coarse, tuple(factors)
        self.outline = space.known.outline(space.coarse)
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
        node, touch, length = self.coarse.nodes[n], self.coarse.nodes[n].touches[k], self.begun + level
        ops, at = self.space.known.begun(self.nodes[n], length)
        splits, to = self.space.known.begun(self.units[touch.unit], length)
        unit = self.coarse.units[touch.unit]
        return self.space.known.price(node, touch, unit, ops, splits, self.factors[:length])[np.ix_(at, to)]

    def _weights(self) -> tuple[float, ...]:
        """Of the levels: the second counts less than any difference of the first."""
        step, most = 0, 0.0
        known: dict[tuple[int, ...], list[float]] = {}
        for n, node in enumerate(self.coarse.nodes):
            key = self._key(self.outline.look[n], (n,), self.outline.units[n])
            if key not in known:
                known[key] = []
                for k in range(len(node.touches)):
                    first = self._priced(n, k, self.levels[0])
                    step = reduce(gcd, {int(x) for x in first.ravel().tolist()}, step)
                    known[key].append(float(self._priced(n, k, self.levels[1]).max()))
            for own in known[key]:
                most += own
        return (1.0, max(step, 1) / (2.0 * (most + 1.0)))

    def _key(self, look: int, nodes: Sequence[int], units: Sequence[int]) -> tuple[int, ...]:
        """Equal for alike nodes, or groups of them, that can be cut in the same ways."""
        return (look, *(id(self.nodes[n]) for n in nodes), *(id(self.units[u]) for u in units))

    def touched(self, n: int, k: int) -> Floats:
        """[strategies, splits]: weighted bytes."""
        return sum(
            (w * self._priced(n, k, level) for w, level in zip(self.weights, self.levels)),
            np.zeros((len(self.nodes[n]), len(self.units[self.coarse.nodes[n].touches[k].unit]))),
        )

    def of_node(self, n: int) -> tuple[tuple[int, ...], Floats]:
        """(units, [strategies, splits of each unit])."""
        node, units = self.coarse.nodes[n], self.outline.units[n]
        shape = [len(self.units[u]) for u in units]
        cost = np.zeros([len(self.nodes[n]), *shape])
        for k, touch in enumerate(node.touches):
            axis = units.index(touch.unit)
            cost = cost + self.touched(n, k).reshape([-1, *(m if j == axis else 1 for j, m in enumerate(shape))])
        return units, cost

    def of_group(self, group: Group) -> Floats:
        """Brute force over the strategies of a group's ops: least bytes over the splits of the units that it touches."""
        cost = np.zeros([len(self.units[u]) for u in group.touched])
        for n in group.nodes:
            own, table = self.of_node(n)
            cost = cost + _spread(table.min(axis=0), own, group.touched)
        return cost

    # ---------------------------------------------------------------- solving

    def decision(self, length: int) -> Decision:
        """The best choices, cut to `length` steps."""
        coarse, outline, variable_of = self.coarse, self.outline, self.coarse.variable_of
        variable = {v: k for k, v in enumerate(outline.shared)}
        unary = [self._nothing(self._options(v)) for v in outline.shared]
        edges: list[tuple[int, int]] = []
        tables: list[Floats] = []
        op_at: dict[int, int] = {}
        for group in outline.groups:
            if group.apart:
                for n in group.nodes:
                    op_at[n] = len(unary)
                    unary.append(self._nothing(len(self.nodes[n])))
                    for k, touch in enumerate(coarse.nodes[n].touches):
                        v = variable_of[touch.unit]
                        edges.append((op_at[n], variable[v]))
                        tables.append(self._over(v, n, k))
                continue
            cost = self._ends(group)
            self.space.tick(0)
            if len(group.ends) == 1:
                k = variable[group.ends[0]]
                unary[k] = unary[k] + cost
            elif len(group.ends) == 2:
                edges.append((variable[group.ends[0]], variable[group.ends[1]]))
                tables.append(cost)
        found = eliminate(
            CostGraph(tuple(unary), tuple(edges), tuple(tables)), progress=lambda done, total: self.space.tick(0)
        )
        if unary and not found.choice:
            raise Infeasible("no way to cut every op and tensor evenly is left")
        units: dict[int, int] = {}
        for v, k in variable.items():
            units.update(zip(coarse.variables[v], self._unraveled(v, found.choice[k]), strict=True))
        ops = {n: found.choice[k] for n, k in op_at.items()}
        inside: dict[tuple[object, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for group in outline.groups:
            if group.apart:
                continue
            left = tuple(u for u in group.touched if u not in units)
            key = (*self._key(group.look, group.nodes, group.units), *(units[u] for u in group.outer))
            if key not in inside:
                inside[key] = self._inside(group, left, units)
            splits, strategies = inside[key]
            units.update(zip(left, splits, strict=True))
            ops.update(zip(group.nodes, strategies, strict=True))
        for u in range(len(coarse.units)):
            units.setdefault(u, 0)  # nothing touches it
        return Decision(
            {n: self.nodes[n][c][:length] for n, c in ops.items()},
            {u: self.units[u][c][:length] for u, c in units.items()},
        )

    def _options(self, v: int) -> int:
        return prod(len(self.units[u]) for u in self.coarse.variables[v])

    def _nothing(self, options: int) -> Floats:
        """One array for all variables of so many options: the elimination computes equal arrays' results once."""
        return self.alike.setdefault((options,), np.zeros(options))

    def _unraveled(self, v: int, choice: int) -> tuple[int, ...]:
        shape = tuple(len(self.units[u]) for u in self.coarse.variables[v])
        return tuple(int(c) for c in np.unravel_index(choice, shape))

    def _over(self, v: int, n: int, k: int) -> Floats:
        """[strategies of a node, all options of the group of tensors that its k-th touch is in]."""
        own, unit = self.coarse.variables[v], self.coarse.nodes[n].touches[k].unit
        shape = [len(self.units[u]) for u in own]
        key = ("over", k, own.index(unit), *shape, *self._key(self.outline.look[n], (n,), self.outline.units[n]))
        if key not in self.alike:
            table = self.touched(n, k)
            wide = table.reshape([len(table), *(m if u == unit else 1 for u, m in zip(own, shape))])
            self.alike[key] = np.broadcast_to(wide, (len(table), *shape)).reshape(len(table), -1)
        return self.alike[key]

    def _ends(self, group: Group) -> Floats:
        """Least over the tensors inside a group of ops; an axis for each group of tensors at its ends.

        Groups that are alike, as those of equal layers are, share one array.
        """
        key = ("ends", *self._key(group.look, group.nodes, group.units))
        if key not in self.alike:
            cost, outer = self.of_group(group), group.outer
            inner = tuple(k for k, u in enumerate(group.touched) if u not in outer)
            least = cost.min(axis=inner) if inner else cost
            left = tuple(u for u in group.touched if u in outer)
            full = np.broadcast_to(_spread(least, left, outer), [len(self.units[u]) for u in outer])
            self.alike[key] = np.array(full.reshape([self._options(v) for v in group.ends]))
        return self.alike[key]

    def _inside(
        self, group: Group, left: Sequence[int], chosen: Mapping[int, int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(splits of the tensors inside a group of ops, strategies of its ops), the splits of those at its ends being chosen."""
        best = self.of_group(group)[tuple(chosen.get(u, slice(None)) for u in group.touched)]
        splits = tuple(int(c) for c in np.unravel_index(int(np.argmin(best)), best.shape))
        units = {**dict(zip(left, splits, strict=True)), **{u: chosen[u] for u in group.outer}}
        return splits, tuple(self._strategy(n, units) for n in group.nodes)

    def _strategy(self, n: int, units: Mapping[int, int]) -> int:
        own, table = self.of_node(n)
        index: tuple[slice | int, ...] = (slice(None), *(units[u] for u in own))
        return int(np.argmin(table[index]))


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
    found = space.solve(NOTHING, factors, 0, (len(factors),))
    space.tick(len(factors))
    return found


def greedy(space: Space, factors: Sequence[int]) -> Decision:
    """Spartan's order: the largest tensor first, each split where the ops that touch it then move least.

    Gradients of activations come after all else. Splits that `space` has stay.
    """
    coarse = space.coarse
    order = sorted(range(len(coarse.units)), key=lambda u: (not coarse.units[u].forward, -coarse.units[u].nbytes, u))
    readers: dict[int, list[int]] = {u: [] for u in order}
    for n, own in enumerate(space.known.outline(coarse).units):
        for u in own:
            readers[u].append(n)
    splits: dict[int, Way] = {}
    for i in range(len(factors)):
        now, fixed = factors[: i + 1], dict[int, Way]()
        known: dict[tuple[object, ...], float] = {}
        for u in order:
            costs = []
            ways = space.of_unit(u, splits.get(u, ()), now)
            for way in ways:
                fixed[u] = way
                costs.append(sum(_known_cost(space, n, fixed, now, known) for n in readers[u]))
            fixed[u] = ways[int(np.argmin(costs))]
            space.tick(0)
        splits = fixed
    return replace(space, splits=splits).recursion(factors, look_ahead=False)


def _known_cost(
    space: Space, n: int, fixed: Mapping[int, Way], factors: Sequence[int], known: dict[tuple[object, ...], float]
) -> float:
    """Least bytes of an op for the tensors whose splits are known."""
    node, outline = space.coarse.nodes[n], space.known.outline(space.coarse)
    ways = space.of_node(n, (), factors)
    key = (outline.look[n], id(ways), *(fixed.get(u) for u in outline.units[n]))
    if key not in known:
        cost = np.zeros(len(ways))
        for touch in node.touches:
            if touch.unit in fixed:
                unit, split = space.coarse.units[touch.unit], space.known.one(fixed[touch.unit])
                cost += space.known.price(node, touch, unit, ways, split, tuple(factors))[:, 0]
        known[key] = float(cost.min())
    return known[key]


def by_rows(coarse: Coarse, factors: Sequence[int]) -> dict[int, Way]:
    """AllRow: every tensor split along its first dim that the step's factor divides."""
    splits = {}
    for u, unit in enumerate(coarse.units):
        way: Way = ()
        for i in range(len(factors)):
            way = sequences(unit.shape, range(len(unit.shape)), way, factors[: i + 1])[0]
        splits[u] = way
    return splits
