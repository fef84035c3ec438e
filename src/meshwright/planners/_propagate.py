"""Sharding propagation: a few annotated tensors decide all others (GSPMD, arXiv 2105.04663, §3.5; Shardy's form of it).

    for u in user priorities            dims of a later priority are empty, closed, their axes reserved
      for p in 0 … 4                    which factors of which ops may carry axes, and which way
        until nothing changes           a worklist of ops, and of the results of the program

Axes that two tensors of one op agree on go to all tensors that have the factor, as far as nothing there conflicts: a
closed dim, an axis in use, a factor that is already full. Tensors only gain axes, so there is a fixed point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd, prod
from typing import Literal, TypeAlias

from ..graph.ir import FactorKind, Rule
from ._axes import Axes, Axis, clear_of, common, is_prefix, is_strict_prefix, merged, parts

Dims: TypeAlias = tuple[tuple[int, ...], ...]
"""Per dim of one tensor: its factors, major first."""
FactorRole = Literal["pass", "reduction", "permutation", "replication", "blocked"]
OpRole = Literal["elementwise", "regroup", "slice", "broadcast", "edge", "other"]
"""regroup: reshape, transpose. slice: dynamic slice and update. edge: all values of it are one."""
Strategy = Literal["aggressive", "basic", "basic_then_aggressive"]
_NONE, _FORWARD, _BACKWARD, _BOTH = 0, 1, 2, 3
PRIORITIES = 5


def role_of(kind: FactorKind, summed: bool) -> FactorRole:
    """Of a factor: what is summed is a reduction, windows permute, what an op must see whole needs replication."""
    roles: Mapping[str, FactorRole] = {"halo": "permutation", "fixed": "replication", "opaque": "blocked"}
    return roles.get(kind, "reduction" if summed else "pass")


@dataclass(frozen=True, slots=True)
class Dim:
    axes: Axes = ()
    open: bool = True
    priority: int = 0
    """Of the user: 0 is first."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """Of one tensor. `replicated` axes may not be used; over `unreduced` ones it holds partial sums."""

    dims: tuple[Dim, ...]
    replicated: Axes = ()
    unreduced: Axes = ()

    def axes(self) -> Axes:
        return tuple(a for dim in self.dims for a in dim.axes)

    def lists(self) -> tuple[Axes, ...]:
        return tuple(dim.axes for dim in self.dims)


def free(rank: int) -> Sharding:
    """Of a tensor that nobody annotated."""
    return Sharding((Dim(),) * rank)


@dataclass(frozen=True, slots=True)
class Factors:
    """A factor rule with numbers for names."""

    sizes: tuple[int, ...]
    roles: tuple[FactorRole, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]

    @staticmethod
    def of(rule: Rule) -> Factors:
        number = {f.name: k for k, f in enumerate(rule.factors)}
        summed = rule.summed()
        roles: tuple[FactorRole, ...] = tuple(role_of(f.kind, f.name in summed) for f in rule.factors)

        def numbered(tensors: Iterable[tuple[tuple[str, ...], ...]]) -> tuple[Dims, ...]:
            return tuple(tuple(tuple(number[name] for name in dim) for dim in dims) for dims in tensors)

        return Factors(tuple(f.size for f in rule.factors), roles, numbered(rule.operands), numbered(rule.results))

    @staticmethod
    def identity(shape: Sequence[int], values: int = 2) -> Factors:
        """One value under several names, the last of them a result."""
        dims = tuple((d,) for d in range(len(shape)))
        roles: list[FactorRole] = ["pass"] * len(shape)
        return Factors(tuple(shape), tuple(roles), (dims,) * (values - 1), (dims,))

    @property
    def tensors(self) -> tuple[Dims, ...]:
        return (*self.operands, *self.results)


@dataclass(frozen=True, slots=True)
class Node:
    """One op: numbers of the values it reads and makes."""

    name: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    rule: Factors
    role: OpRole = "other"

    @property
    def values(self) -> tuple[int, ...]:
        return (*self.operands, *self.results)


@dataclass(frozen=True, slots=True)
class Values:
    """A program to propagate through: its values by number, and its ops in order."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    nodes: tuple[Node, ...]


@dataclass(slots=True)
class View:
    """One tensor of an op, seen through the factors of the rule."""

    lists: dict[int, Axes] = field(default_factory=dict)
    overflow: dict[int, Axes] = field(default_factory=dict)
    """Axes of the dim that do not fit its factor: nothing goes behind them."""
    closed: set[int] = field(default_factory=set)
    minor: set[int] = field(default_factory=set)
    """Last factors of their dims: these take any axis, with padding."""
    banned: Axes = ()
    """Replicated, unreduced, reserved, or of a dim without factors."""

    def others(self, factor: int) -> Axes:
        """Axes of all other factors."""
        own = [a for f, axes in self.lists.items() if f != factor for a in axes]
        return (*own, *(a for f, axes in self.overflow.items() if f != factor for a in axes))


def project(sharding: Sharding, dims: Dims, sizes: Sequence[int], priority: int = 1 << 30) -> View:
    """A tensor's sharding as axes of factors; dims of a later user priority are empty and closed, their axes reserved."""
    view = View(banned=(*sharding.replicated, *sharding.unreduced))
    seen = [f for dim in dims for f in dim]
    twice = {f for f in seen if seen.count(f) > 1}
    for dim, factors in zip(sharding.dims, dims, strict=True):
        late = dim.priority > priority
        if late or not factors or twice & set(factors):
            view.banned += dim.axes
        axes = () if late else dim.axes
        left, stopped = list(axes), False
        for k, f in enumerate(factors):
            if f in twice:
                continue
            last = k == len(factors) - 1
            taken: list[Axis] = []
            remaining = sizes[f]
            if last:
                taken, left = ([], left) if stopped else (left, [])
                view.minor.add(f)
            while left and not last and not stopped and remaining > 1:
                axis = left.pop(0)
                size = gcd(remaining, axis.size)
                if size == 1:
                    view.overflow[f] = (axis, *left)
                    left, stopped = [], True
                    break
                taken.append(axis.first(size))
                remaining //= size
                if size < axis.size:
                    left.insert(0, axis.after(size))
            view.lists[f] = merged(taken)
            if late or not dim.open or (stopped and f not in view.overflow):
                view.closed.add(f)
    return view


def unproject(sharding: Sharding, dims: Dims, sizes: Sequence[int], view: View, priority: int = 1 << 30) -> Sharding:
    """The sharding of a view: nothing goes behind a factor that is not full, as that would be a strided part."""
    found: list[Dim] = []
    for dim, factors in zip(sharding.dims, dims, strict=True):
        if dim.priority > priority or not factors or any(f not in view.lists for f in factors):
            found.append(dim)
            continue
        axes: list[Axis] = []
        for f in factors:
            axes += view.lists[f]
            axes += view.overflow.get(f, ())
            if f in view.overflow or parts(view.lists[f]) < sizes[f]:
                break
        new = merged(axes)
        found.append(replace(dim, axes=new) if new != dim.axes else dim)
    return replace(sharding, dims=tuple(found))


def agreed(views: Sequence[View], operands: int, factor: int, direction: int) -> Axes:
    """Major axes of a factor on which tensors agree; those on the side that `direction` comes from may make them longer."""
    if direction == _NONE:
        return ()
    first, then = views[:operands], views[operands:]
    grow_first, grow_then = bool(direction & _FORWARD), bool(direction & _BACKWARD)
    if not grow_first:
        first, then, grow_first, grow_then = then, first, grow_then, grow_first
    found: Axes = ()
    able = True
    for side, grow in ((first, grow_first), (then, grow_then)):
        for view in side:
            if factor in view.lists:
                found, able = _fold(found, view.lists[factor], able and grow, able)
    return found


def _fold(now: Axes, own: Axes, grow: bool, able: bool) -> tuple[Axes, bool]:
    """(axes agreed with one more tensor, whether they may still grow)."""
    kept: list[Axis] = []
    for k, (a, b) in enumerate(zip(now, own)):
        if a == b:
            kept.append(a)
            continue
        shared = common(a, b)
        if shared is None:
            return tuple(kept), False
        if shared == a and k == len(now) - 1 and grow:
            return (*kept, *own[k:]), able
        if shared == b and k == len(own) - 1:
            return now, able  # the tensor has less of the same: it may get the rest
        return (*kept, shared), False
    if len(own) > len(now) and grow:
        return own, able
    return now, able


def fitting(axes: Axes, view: View, factor: int, size: int) -> Axes:
    """As much of `axes` as one tensor can have on a factor of `size`: no conflict within the factor, none with its others."""
    blocked = view.others(factor)
    if factor in view.lists:
        blocked += view.banned
    own = view.lists.get(factor, ())
    shut = factor in view.closed or factor in view.overflow
    limited = factor in view.lists and factor not in view.minor
    kept: list[Axis] = []
    for k, axis in enumerate(axes):
        part = clear_of(axis, blocked)
        if part is not None and shut:
            part = common(part, own[k]) if k < len(own) else None
        if part is not None and limited and part.size > 1:
            share = gcd(size, part.size)
            part = part.first(share) if share > 1 else None
        if part is None:
            break
        kept.append(part)
        if part != axis:
            break
        if limited:
            size //= part.size
    return tuple(kept)


def step(node: Node, views: Sequence[View], direction: Sequence[int], strategy: Strategy) -> set[int]:
    """One propagation step at one op, in place.

    Args:
        views: of its operands and results.
        direction: per factor.

    Returns:
        Which views may have changed.
    """
    rule, operands = node.rule, len(node.operands)
    lists = [agreed(views, operands, f, direction[f]) for f in range(len(rule.sizes))]
    if not any(lists):
        return set()
    return (_basic if strategy == "basic" else _aggressive)(node, views, lists)


def _basic(node: Node, views: Sequence[View], lists: Sequence[Axes]) -> set[int]:
    """Axes of a factor go to all tensors or to none."""
    changed: set[int] = set()
    for f, axes in enumerate(lists):
        for view in views:
            axes = fitting(axes, view, f, node.rule.sizes[f])
        for t, view in enumerate(views):
            if f in view.lists and is_strict_prefix(view.lists[f], axes):
                view.lists[f] = axes
                changed.add(t)
    return changed


def _aggressive(node: Node, views: Sequence[View], lists: Sequence[Axes]) -> set[int]:
    """Each tensor takes what it can; the factor whose axes come from the largest tensor is first."""
    rule, operands = node.rule, len(node.operands)
    changed: set[int] = set()
    for f in _order(node, views, lists):
        axes = lists[f]
        for t in (*range(operands, len(views)), *range(operands)):
            view = views[t]
            if f not in view.lists:
                continue
            wanted = axes
            if node.role == "elementwise" and t < operands:
                made = [views[r].lists[f] for r in range(operands, len(views)) if f in views[r].lists]
                wanted = next((own for own in made if is_strict_prefix(own, axes)), axes)
            new = fitting(wanted, view, f, rule.sizes[f])
            if is_strict_prefix(view.lists[f], new):
                view.lists[f] = new
                changed.add(t)
    return changed


def _order(node: Node, views: Sequence[View], lists: Sequence[Axes]) -> list[int]:
    rule = node.rule
    elements = [prod(rule.sizes[f] for dim in dims for f in dim) for dims in rule.tensors]

    def key(f: int) -> tuple[int, int, int, int]:
        sources = [t for t, view in enumerate(views) if f in view.lists and is_prefix(lists[f], view.lists[f])]
        source = max(sources, key=lambda t: (elements[t], -t), default=-1)
        size = elements[source] if source >= 0 else 0
        more = parts(lists[f]) if node.role == "elementwise" else 0
        return -size, -more, source, f

    return sorted((f for f, axes in enumerate(lists) if axes), key=key)


def directions(node: Node, priority: int, shared: bool) -> tuple[int, ...]:
    """Per factor, which way axes may go at an op priority and all before it.

    Args:
        shared: some operand of the op that is no scalar has other readers, too.
    """
    roles = node.rule.roles
    if node.role == "edge":
        found = [_BOTH] * len(roles)
    else:
        found = [_NONE] * len(roles)
        if node.role in ("elementwise", "regroup", "slice") and (priority >= 1 or not shared):
            found = [_FORWARD if node.role == "slice" else _BOTH] * len(roles)
        late = _BACKWARD if node.role == "broadcast" else _BOTH
        for f, role in enumerate(roles):
            if (priority >= 2 and role == "pass") or priority >= 3:
                found[f] |= late
            if priority >= 4:
                found[f] = _BOTH
    return tuple(_NONE if role == "blocked" else d for role, d in zip(roles, found))


def propagate(program: Values, given: Mapping[int, Sharding], strategy: Strategy = "aggressive") -> list[Sharding]:
    """The shardings of all values at the fixed point.

    Args:
        given: of annotated values; all others are free.

    Given axes stay, in their order; dims only gain axes behind them, where they are open.
    """
    state = [given.get(v, free(len(shape))) for v, shape in enumerate(program.shapes)]
    users: list[list[int]] = [[] for _ in program.names]
    uses = [0] * len(program.names)
    for n, node in enumerate(program.nodes):
        for v in dict.fromkeys(node.values):
            users[v].append(n)
        for v in node.operands:
            uses[v] += 1
    shared = [any(program.shapes[v] and uses[v] > 1 for v in node.operands) for node in program.nodes]
    latest = sorted({dim.priority for s in state for dim in s.dims} | {0})
    phases: tuple[Strategy, ...] = ("basic", "aggressive") if strategy == "basic_then_aggressive" else (strategy,)
    edges = [n for n, node in enumerate(program.nodes) if node.role == "edge"]
    for u in latest:
        for p in range(PRIORITIES):
            ways = [directions(node, p, s) for node, s in zip(program.nodes, shared)]
            for phase in phases:
                _fixpoint(program, state, users, ways, edges, u, phase)
    return state


def _fixpoint(
    program: Values,
    state: list[Sharding],
    users: Sequence[Sequence[int]],
    ways: Sequence[Sequence[int]],
    first: Sequence[int],
    priority: int,
    strategy: Strategy,
) -> None:
    """Steps at ops until none changes anything: in program order, edges first; neighbours of a changed value come at once."""
    rest = [n for n in range(len(program.nodes)) if program.nodes[n].role != "edge"]
    stack = [*reversed(rest), *reversed(first)]
    waiting = set(stack)
    while stack:
        n = stack.pop()
        waiting.discard(n)
        node = program.nodes[n]
        if not any(ways[n]):
            continue
        sizes = node.rule.sizes
        views = [project(state[v], dims, sizes, priority) for v, dims in zip(node.values, node.rule.tensors)]
        changed: set[int] = set()
        for t in step(node, views, ways[n], strategy):
            v = node.values[t]
            new = unproject(state[v], node.rule.tensors[t], sizes, views[t], priority)
            if new != state[v] and _only_gained(state[v], new):
                state[v] = new
                changed.add(v)
        for m in sorted({m for v in changed for m in users[v]}, reverse=True):
            if m not in waiting:
                waiting.add(m)
                stack.append(m)


def _only_gained(old: Sharding, new: Sharding) -> bool:
    return all(is_prefix(a.axes, b.axes) for a, b in zip(old.dims, new.dims))
