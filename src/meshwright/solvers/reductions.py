"""Exact reductions of cost graphs: what is left is as hard as the graph, and usually far smaller.

    consistency     an option that every option of a neighbour forbids is dropped
    folding         a variable with one option becomes a price of its neighbours' options; a table that is a sum of a
                    row and a column becomes prices of the two options
    equality        where each option of u allows one option of v only, v is decided by u (weights and their gradients)
    elimination     a variable with at most two neighbours becomes a table between these (min, +)

Repeated layers cost little: prices are numbered by content, and each operation on numbers is done once.
Source: degree-2 elimination is the node elimination of OptCNN (Jia et al., ICML 2018, section 5.2); arc consistency is
Mackworth's AC-3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf

import numpy as np
from numpy.typing import NDArray

from ._cost_kernels import min_plus
from .cost_graph import CostGraph, Floats

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Reduced:
    """`graph` at its best plus `constant` is the best of the graph that was reduced."""

    graph: CostGraph
    """What is left; memory is not carried over."""
    constant: float
    """inf: every choice is forbidden, and nothing is left."""
    variables: tuple[int, ...]
    """Of each variable that is left, its number in the graph that was reduced."""
    _steps: tuple[_Step, ...]
    _count: int

    def restored(self, choice: Sequence[int]) -> tuple[int, ...]:
        """The best choice for the whole graph, given one for what is left."""
        found = np.zeros(self._count, np.intp)
        found[list(self.variables)] = choice
        for step in reversed(self._steps):
            found[step.variable] = step.decided(found)
        return tuple(found.tolist())


@dataclass(frozen=True, slots=True)
class _Step:
    """How one variable's option follows from those of variables that left later, or from its own later number."""

    variable: int
    prices: Floats | None
    tables: tuple[tuple[int, Floats], ...] = ()
    """(neighbour, float64[options of it, options of this])."""
    follows: int = -1
    option: Indices | None = None
    """The option by that of the variable that it follows."""

    def decided(self, found: Indices) -> int:
        if self.prices is None:
            assert self.option is not None
            return int(self.option[found[self.follows]])
        prices = self.prices
        for neighbour, table in self.tables:
            prices = prices + table[found[neighbour]]
        return int(np.argmin(prices))


def reduced(graph: CostGraph, *, eliminate: bool = True) -> Reduced:
    """Reduce as long as anything can be.

    Args:
        eliminate: False only drops options that are forbidden: variables stay, unless they have one option.
    """
    work = _Work(graph)
    try:
        while work.loose:
            work.drop_forbidden()
            work.fold()
            if eliminate:
                work.follow()
                work.eliminate()
    except _Forbidden:
        return Reduced(CostGraph(()), inf, (), (), len(graph.unary))
    return work.left()


class _Forbidden(Exception):
    """A variable has no option left."""


class _Store:
    """Arrays by content: equal arrays have one number. Number 2k is a table, 2k + 1 its transpose."""

    def __init__(self) -> None:
        self.arrays: list[Floats] = []
        self._by_content: dict[tuple[tuple[int, ...], bytes], int] = {}
        """(shape, digest of the content) -> number"""
        self._by_identity: dict[int, int] = {}
        self._given: list[Floats] = []
        self._done: dict[Hashable, int] = {}

    def given(self, array: Floats) -> int:
        """Number of an array that someone else keeps: its content is looked at once."""
        number = self._by_identity.get(id(array))
        if number is None:
            number = self._by_identity[id(array)] = self.number(array)
            self._given.append(array)  # alive, so that its identity stays its own
        return number

    def number(self, array: Floats) -> int:
        array = np.ascontiguousarray(array, np.float64)
        key = array.shape, blake2b(array.data, digest_size=16).digest()
        number = self._by_content.get(key)
        if number is None:
            number = self._by_content[key] = len(self.arrays)
            self.arrays += (array, np.ascontiguousarray(array.T))
        return number

    def once(self, key: Hashable, make: Callable[[], Floats]) -> int:
        """The number of what `make` makes, which depends on `key` only."""
        number = self._done.get(key)
        if number is None:
            number = self._done[key] = self.number(make())
        return number

    def sum(self, a: int, b: int) -> int:
        if a > b:
            a, b = b, a
        if a & b & 1:
            return self.sum(a ^ 1, b ^ 1) ^ 1
        return self.once(("sum", a, b), lambda: self.arrays[a] + self.arrays[b])

    def best(self, prices: int, table: int) -> int:
        """Per column of a table the least of price of the row + entry."""
        return self.once(
            ("best", prices, table), lambda: np.min(self.arrays[prices][:, None] + self.arrays[table], axis=0)
        )


class _Work:
    """A cost graph that becomes smaller. `near[u][v]` is the number of the table [options of u, options of v]."""

    def __init__(self, graph: CostGraph) -> None:
        self.store = _Store()
        self.count = len(graph.unary)
        self.own: dict[int, int] = {v: self.store.given(prices) for v, prices in enumerate(graph.unary)}
        self.near: list[dict[int, int]] = [{} for _ in graph.unary]
        self.steps: list[_Step] = []
        self.constant = 0.0
        self.loose = True
        """Tables may forbid options that are still there: they were not looked at, or two of them were added."""
        self._separable: dict[int, tuple[int, int] | None] = {}
        self._maps: dict[int, Indices | None] = {}
        for (u, v), table in zip(graph.edges, graph.tables, strict=True):
            number = self.store.given(table)
            if u == v:
                self.own[u] = self.store.sum(self.own[u], self.store.number(np.diagonal(table)))
            else:
                self._join(u, v, number)

    def left(self) -> Reduced:
        """What is left, as a cost graph; tables stay shared."""
        variables = tuple(self.own)
        place = {v: i for i, v in enumerate(variables)}
        edges = [(u, v) for u in variables for v in self.near[u] if u < v]
        graph = CostGraph(
            tuple(self.store.arrays[self.own[v]] for v in variables),
            tuple((place[u], place[v]) for u, v in edges),
            tuple(self.store.arrays[self.near[u][v]] for u, v in edges),
        )
        return Reduced(graph, self.constant, variables, tuple(self.steps), self.count)

    # Consistency

    def drop_forbidden(self) -> None:
        """Drop options without a price, or without an allowed partner at some neighbour.

        Raises:
            _Forbidden: a variable loses its last option.
        """
        self.loose = False
        waiting = deque(self.own)
        inside = set(waiting)
        while waiting:
            v = waiting.popleft()
            inside.discard(v)
            for w, table in self.near[v].items():
                kept = self._restricted(self.own[w], self.store.best(self.own[v], table))
                if kept != self.own[w]:
                    self.own[w] = kept
                    if w not in inside:
                        inside.add(w)
                        waiting.append(w)
        changed = [v for v, number in self.own.items() if self._live(number) is not None]
        for v in changed:
            live = self._live(self.own[v])
            assert live is not None
            if not len(live):
                raise _Forbidden
            self.steps.append(_Step(v, None, follows=v, option=live))
        fresh = dict.fromkeys(changed)
        for v in changed:
            for w, table in self.near[v].items():
                if w in fresh and w < v:
                    continue
                narrow = self._narrow(table, self.own[v], self.own[w])
                self.near[v][w], self.near[w][v] = narrow, narrow ^ 1
        for v in changed:
            self.own[v] = self._priced(self.own[v])

    def _priced(self, prices: int) -> int:
        """The prices that there are."""
        array = self.store.arrays[prices]
        return self.store.once(("priced", prices), lambda: array[np.isfinite(array)])

    def _restricted(self, prices: int, support: int) -> int:
        """The prices, inf where there is no support."""

        def make() -> Floats:
            mine, theirs = self.store.arrays[prices], self.store.arrays[support]
            return np.where(np.isfinite(theirs), mine, inf)

        return self.store.once(("restricted", prices, support), make)

    def _live(self, prices: int) -> Indices | None:
        """Options that have a price; None = all."""
        array = self.store.arrays[prices]
        return None if np.isfinite(array).all() else np.flatnonzero(np.isfinite(array))

    def _narrow(self, table: int, u: int, v: int) -> int:
        """The table of the options that have a price."""
        if table & 1:
            return self._narrow(table ^ 1, v, u) ^ 1

        def make() -> Floats:
            rows, columns = (np.isfinite(self.store.arrays[n]) for n in (u, v))
            found: Floats = self.store.arrays[table][np.ix_(rows, columns)]
            return found

        return self.store.once(("narrow", table, u, v), make)

    # Folding

    def fold(self) -> None:
        """Variables of one option, and tables that do not depend on the pair, become prices of single options."""
        for v in list(self.own):
            if len(self.store.arrays[self.own[v]]) == 1:
                self._out(v)
        for u in list(self.own):
            for v, table in list(self.near[u].items()):
                if u < v and (parts := self._parts(table)) is not None:
                    self.own[u] = self.store.sum(self.own[u], parts[0])
                    self.own[v] = self.store.sum(self.own[v], parts[1])
                    del self.near[u][v], self.near[v][u]

    def _out(self, v: int) -> None:
        """Take out a variable whose neighbours need no table between them."""
        steps = tuple((w, self.store.arrays[self.near[w][v]]) for w in self.near[v])
        self.steps.append(_Step(v, self.store.arrays[self.own[v]], steps))
        if not self.near[v]:
            self.constant += float(self.store.arrays[self.own[v]].min())
        own = self.own.pop(v)
        for k, (w, table) in enumerate(self.near[v].items()):
            # Its own price counts once: at the first neighbour.
            prices = own if k == 0 else self.store.once(("zero", own), lambda: 0.0 * self.store.arrays[own])
            self.own[w] = self.store.sum(self.own[w], self.store.best(prices, table))
            del self.near[w][v]
        self.near[v].clear()

    def _parts(self, table: int) -> tuple[int, int] | None:
        """(prices of the rows, of the columns) whose sum a table is, exactly; None if it is none."""
        if table & 1:
            parts = self._parts(table ^ 1)
            return None if parts is None else (parts[1], parts[0])
        if table not in self._separable:
            array = self.store.arrays[table]
            found = None
            if np.isfinite(array).all():
                rows = array[:, 0]
                columns = array[0] - array[0, 0]
                if np.array_equal(rows[:, None] + columns[None, :], array):
                    found = self.store.number(rows), self.store.number(columns)
            self._separable[table] = found
        return self._separable[table]

    # Equality

    def follow(self) -> None:
        """Variables that a neighbour decides become part of it."""
        for u in list(self.own):
            waiting = list(self.near[u]) if u in self.own else []
            while waiting:
                v = waiting.pop()
                if v not in self.near[u] or (option := self._decided(self.near[u][v])) is None:
                    continue
                self._absorb(u, v, option)
                waiting += self.near[u]

    def _decided(self, table: int) -> Indices | None:
        """Per row the only column that it allows; None if some row allows several."""
        if table not in self._maps:
            allowed = np.isfinite(self.store.arrays[table])
            once = bool((allowed.sum(axis=1) == 1).all())
            self._maps[table] = allowed.argmax(axis=1) if once else None
        return self._maps[table]

    def _absorb(self, u: int, v: int, option: Indices) -> None:
        """v takes `option[option of u]`."""
        arrays, once = self.store.arrays, self.store.once
        table, own = self.near[u][v], self.own.pop(v)
        rows = np.arange(len(option))
        prices = once(("absorbed", table, own), lambda: arrays[table][rows, option] + arrays[own][option])
        self.own[u] = self.store.sum(self.own[u], prices)
        del self.near[u][v], self.near[v][u]
        self.steps.append(_Step(v, None, follows=u, option=option))
        for w, other in list(self.near[v].items()):
            del self.near[w][v]
            self._join(u, w, self._rows(other, table, option))
        self.near[v].clear()

    def _rows(self, table: int, by: int, option: Indices) -> int:
        """Row `option[a]` of a table for each a; `by` is the number of the table that the options follow from."""
        return self.store.once(("rows", table, by), lambda: self.store.arrays[table][option])

    # Elimination

    def eliminate(self) -> None:
        """Take out variables with at most two neighbours until none is left."""
        waiting = deque(v for v in self.own if len(self.near[v]) <= 2)
        while waiting:
            v = waiting.popleft()
            if v not in self.own or len(self.near[v]) > 2:
                continue
            neighbours = list(self.near[v])
            if len(neighbours) < 2:
                self._out(v)
            else:
                self._between(v, *neighbours)
            waiting += (w for w in neighbours if len(self.near[w]) <= 2)

    def _between(self, v: int, u: int, w: int) -> None:
        """Take out v, whose neighbours are u and w."""
        if u > w:
            u, w = w, u
        arrays = self.store.arrays
        own, left, right = self.own.pop(v), self.near[u].pop(v), self.near[v][w]
        del self.near[w][v]
        self.steps.append(_Step(v, arrays[own], ((u, arrays[left]), (w, arrays[right ^ 1]))))

        def make() -> Floats:
            rows = np.arange(len(arrays[left]))
            found: Floats = min_plus(arrays[left] + arrays[own], arrays[right][None], rows, 0 * rows)
            return found

        self._join(u, w, self.store.once(("between", left, own, right), make))
        self.near[v].clear()

    def _join(self, u: int, v: int, table: int) -> None:
        if v in self.near[u]:
            table = self.store.sum(self.near[u][v], table)
            self.loose = True
        self.near[u][v], self.near[v][u] = table, table ^ 1
