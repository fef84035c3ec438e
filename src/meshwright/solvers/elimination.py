"""Exact least price of a cost graph by elimination of variables (bucket elimination over the (min, +) semiring).

    while variables are left, in an order decided beforehand (`elimination_order`):
        add up all tables that hold the variable, take the least over its options: a table over its neighbours is left
    backwards: each variable takes its best option, given those of the neighbours that it had when it left

The sum itself never exists: the tables that hold one chosen neighbour w are summed to right[B, options, w], the others to
left[A, options], and the least of left + right is taken row by row. Tables of the same arrays, as equal blocks of a model
have, are computed once. What would need too large a table is conditioned: every option of a hub is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsupported
from ._cost_kernels import min_plus
from .cost_graph import FORBIDDEN, CostGraph, Floats, Found
from .elimination_order import Order, OrderName, order_of

Progress = Callable[[int, int], None]
"""(variables eliminated, of how many); what it raises ends the search."""
LIMIT = 100_000_000
"""Entries of a table: 0.8 GB."""
SMALL = 1 << 16
"""Sums of one elimination below which no compiled kernel is needed."""
CHUNK = 1 << 28
"""Sums in one call of the kernel, which nothing can interrupt: a tenth of a second."""
TRIALS = 4096
"""Eliminations at most when hubs are conditioned on."""
WORK = 1e12
"""Sums at most in all of them: some minutes."""
ALL = 5_000_000
"""Choices that `brute_force` looks at."""

Table: TypeAlias = tuple[tuple[int, ...], Floats]
"""(variables, float64[options of each])"""


def eliminate(
    graph: CostGraph, order: OrderName = "min_weight", limit: int = LIMIT, progress: Progress | None = None
) -> Found:
    """The choice of least price; of equals, each variable in turn takes the lowest option.

    Args:
        order: a name of `elimination_order.ORDERS`; what it is decides time and memory, not the value.
        limit: entries of the largest table.

    Raises:
        InputError: no such order.
        Unsupported: more than `limit` entries, and conditioning on hubs would take too many eliminations.
    """
    sizes = [len(u) for u in graph.unary]
    single = frozenset(v for v, n in enumerate(sizes) if n == 1)
    hubs = _hubs(sizes, graph.edges, order, limit, single)
    planned = order_of(sizes, graph.edges, order, single | set(hubs))
    shared = _Shared()
    tables = _tables(graph, shared)
    total = len(planned.sequence) * prod(sizes[h] for h in hubs)
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    best, choice = inf, None
    for options in np.ndindex(*(sizes[h] for h in hubs)):
        fixed = {**dict.fromkeys(single, 0), **dict(zip(hubs, map(int, options), strict=True))}
        value, found = _solve(tables, planned, fixed, sizes, shared, told)
        if value < best:
            best, choice = value, found
    if choice is None:
        return Found(FORBIDDEN.choice, inf, inf, planned.width, planned.largest)
    value = graph.cost(choice)
    return Found(tuple(choice), value, value, planned.width, planned.largest)


def brute_force(graph: CostGraph) -> Found:
    """The same by looking at every choice; of equals the lowest in lexicographic order.

    Raises:
        Unsupported: more than five million choices.
    """
    sizes = [len(u) for u in graph.unary]
    if prod(sizes) > ALL:
        raise Unsupported(f"{prod(sizes):.3g} choices are too many to look at each: eliminate instead")
    total = np.zeros(sizes)
    for v, own in enumerate(graph.unary):
        total += _along(own, (v,), range(len(sizes)))
    for (u, v), table in zip(graph.edges, graph.tables, strict=True):
        if u == v:
            total += _along(np.diagonal(table), (u,), range(len(sizes)))
        else:
            total += _along(table, (u, v), range(len(sizes)))
    at = int(total.argmin()) if total.size else 0
    if not total.size or total.flat[at] == inf:
        return FORBIDDEN
    choice = tuple(map(int, np.unravel_index(at, sizes)))
    value = graph.cost(choice)
    return Found(choice, value, value, len(sizes) - 1, total.size)


class _Shared:
    """Results by the arrays that they were made of, so that equal blocks are computed once. Keeps the arrays alive."""

    def __init__(self) -> None:
        self.results: dict[object, Floats] = {}
        self.alive: list[Floats] = []

    def once(self, key: object, arrays: Sequence[Floats], make: Callable[[], Floats]) -> Floats:
        whole = (key, *map(id, arrays))
        if whole not in self.results:
            self.alive += arrays
            self.results[whole] = make()
        return self.results[whole]


def _tables(graph: CostGraph, shared: _Shared) -> list[Table]:
    found: list[Table] = [((v,), own) for v, own in enumerate(graph.unary)]
    for (u, v), table in zip(graph.edges, graph.tables, strict=True):
        if u == v:
            found.append(((u,), shared.once("diagonal", [table], lambda t=table: np.ascontiguousarray(np.diagonal(t)))))  # type: ignore[misc]
        else:
            found.append(((u, v), table))
    return found


def _hubs(
    sizes: Sequence[int], edges: Sequence[tuple[int, int]], name: OrderName, limit: int, single: frozenset[int]
) -> tuple[int, ...]:
    """Variables to try every option of, so that no table passes the limit: greedily, the one that helps most."""
    hubs: tuple[int, ...] = ()
    order = first = order_of(sizes, edges, name, single)
    while order.largest > limit:
        wide = max(
            range(len(order.sequence)), key=lambda i: prod(sizes[u] for u in (*order.scopes[i], order.sequence[i]))
        )
        tried = [
            (order_of(sizes, edges, name, single | {*hubs, h}), h) for h in (*order.scopes[wide], order.sequence[wide])
        ]
        order, hub = min(tried, key=lambda t: (t[0].largest, t[0].operations * sizes[t[1]], t[1]))
        hubs = (*hubs, hub)
        trials = prod(sizes[h] for h in hubs)
        small = order.largest <= limit
        if trials > TRIALS or (small and order.operations * trials > WORK):
            raise Unsupported(
                f"the {name} order needs a table of {first.largest:.3g} entries, more than the limit of {limit:.3g}, and "
                f"fixing {len(hubs)} hubs is not enough: restrict the options, or search with a bound instead"
            )
    return hubs


@dataclass(frozen=True, slots=True)
class _Left:
    """What is needed to choose the option of a variable that has left."""

    variable: int
    tables: tuple[Table, ...]


def _solve(
    tables: Sequence[Table], order: Order, fixed: Mapping[int, int], sizes: Sequence[int], shared: _Shared,
    told: Callable[[], None],
) -> tuple[float, list[int] | None]:  # fmt: skip
    """(least value, an option for each variable, or None if all are forbidden), given those of `fixed`."""
    holding: dict[int, list[Table]] = {v: [] for v in order.sequence}
    rank = {v: i for i, v in enumerate(order.sequence)}
    constant = 0.0

    def put(table: Table) -> None:
        nonlocal constant
        if not table[0]:
            constant += float(table[1])
        else:
            holding[min(table[0], key=rank.__getitem__)].append(table)

    for table in tables:
        put(_given(table, fixed, shared))
    steps: list[_Left] = []
    for v, scope in zip(order.sequence, order.scopes, strict=True):
        own = holding.pop(v)
        steps.append(_Left(v, tuple(own)))
        put(_without(v, scope, own, sizes, shared))
        if constant == inf:
            return inf, None
        told()
    choice = [0] * len(sizes)
    for u, option in fixed.items():
        choice[u] = option
    for step in reversed(steps):
        row = np.zeros(sizes[step.variable])
        for variables, array in step.tables:
            row = row + array[tuple(slice(None) if u == step.variable else choice[u] for u in variables)]
        choice[step.variable] = int(row.argmin())
    return constant, choice


def _given(table: Table, fixed: Mapping[int, int], shared: _Shared) -> Table:
    """The table over those of its variables that are not fixed."""
    variables, array = table
    if not any(u in fixed for u in variables):
        return table
    at = tuple(fixed.get(u, -1) for u in variables)
    cut = tuple(slice(None) if i < 0 else i for i in at)
    rest = tuple(u for u in variables if u not in fixed)
    return rest, shared.once(("given", at), [array], lambda: np.array(array[cut]))


def _without(v: int, scope: Sequence[int], own: Sequence[Table], sizes: Sequence[int], shared: _Shared) -> Table:
    """The table over the neighbours of `v` that is left when `v` takes its best option."""
    local = {u: i for i, u in enumerate((*scope, v))}
    key = ("without", tuple(tuple(local[u] for u in variables) for variables, _ in own))
    arrays = [array for _, array in own]
    if len(scope) < 2:
        axes = (*scope, v)
        return tuple(scope), shared.once(key, arrays, lambda: _summed(own, axes, sizes).min(axis=-1))
    w = _last(v, scope, own, sizes)
    rest = tuple(u for u in scope if u != w)
    return (*rest, w), shared.once(key, arrays, lambda: _product(v, rest, w, own, sizes))


def _last(v: int, scope: Sequence[int], own: Sequence[Table], sizes: Sequence[int]) -> int:
    """The neighbour along which rows are made: the one for which the sums on both sides are smallest."""

    def entries(w: int) -> int:
        left, right = _sides(v, w, own)
        return prod(sizes[u] for u in left) + prod(sizes[u] for u in right)

    return min(scope, key=lambda w: (entries(w), -sizes[w]))


def _sides(v: int, w: int, own: Sequence[Table]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(variables of the tables without w, of those with it), ascending, v and w last."""
    sides: tuple[set[int], set[int]] = set(), set()
    for variables, _ in own:
        sides[w in variables].update(variables)
    return (*sorted(sides[0] - {v}), v), (*sorted(sides[1] - {v, w}), v, w)


def _product(v: int, rest: tuple[int, ...], w: int, own: Sequence[Table], sizes: Sequence[int]) -> Floats:
    """float64[options of rest…, of w]"""
    left_axes, right_axes = _sides(v, w, own)
    left = _summed([t for t in own if w not in t[0]], left_axes, sizes).reshape(-1, sizes[v])
    right = _summed([t for t in own if w in t[0]], right_axes, sizes).reshape(-1, sizes[v], sizes[w])
    of_left, of_right = (_rows(axes, rest, sizes) for axes in (left_axes[:-1], right_axes[:-2]))
    shape = [sizes[u] for u in (*rest, w)]
    if prod(shape) * sizes[v] <= SMALL:
        plain: Floats = (left[of_left][:, :, None] + right[of_right]).min(axis=1)
        return plain.reshape(shape)
    at_once = max(1, CHUNK // (sizes[v] * sizes[w]))
    parts = [
        min_plus(left, right, of_left[i : i + at_once], of_right[i : i + at_once])
        for i in range(0, len(of_left), at_once)
    ]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)


def _rows(axes: Sequence[int], rest: Sequence[int], sizes: Sequence[int]) -> NDArray[np.uint64]:
    """For each entry over `rest`, in C order: the entry over `axes`, a part of them, that it belongs to."""
    found = np.zeros([sizes[u] for u in rest], np.int64)
    stride = 1
    for u in reversed(axes):
        found += _along(np.arange(sizes[u]) * stride, (u,), rest)
        stride *= sizes[u]
    return found.ravel().astype(np.uint64)


def _summed(tables: Sequence[Table], axes: Sequence[int], sizes: Sequence[int]) -> Floats:
    """float64[options of axes…], contiguous: the sum of tables over some of these variables."""
    whole = tuple(sizes[u] for u in axes)
    parts = [_along(array, variables, axes) for variables, array in tables]
    if len(parts) == 1 and parts[0].shape == whole:
        return np.ascontiguousarray(parts[0])
    total = np.zeros(whole)
    for part in parts:
        total += part
    return total


def _along(array: NDArray[Any], variables: Sequence[int], axes: Sequence[int]) -> NDArray[Any]:
    """The array with its axes where `axes` has its variables, of length 1 where it has others."""
    place = {u: i for i, u in enumerate(axes)}
    order = sorted(range(len(variables)), key=lambda i: place[variables[i]])
    shape = [1] * len(axes)
    for i in order:
        shape[place[variables[i]]] = array.shape[i]
    return array.transpose(order).reshape(shape)
