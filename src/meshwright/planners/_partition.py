"""How one op computes when its operands and results are sharded otherwise than each other (GSPMD, §4; Shardy's reshards).

    all tensors agree on every factor      as they are
    two tensors, one factor per dim        as the better of them: no cut window, then larger, then more sharded
    otherwise                              greedy: the (factor, axes) with the most elements behind it, again and again
    a reduction that one operand wants     only if the sums it leaves are smaller than what is gathered instead

What differs is then converted on the way in, and sums over cut reductions are completed on the way out: by lowering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ._axes import Axes, Axis, clear_of, is_prefix, is_strict_prefix, parts
from ._propagate import Factors, Node, Sharding, View, project

_RANK = {"pass": 0, "reduction": 1, "permutation": 2, "replication": 3, "blocked": 4}


@dataclass(frozen=True, slots=True)
class Computing:
    cuts: tuple[Axes, ...]
    """Per factor."""
    moved: tuple[int, ...]
    """Operands, then results, that are sharded otherwise than the op computes."""


def computing(node: Node, shardings: Sequence[Sharding], stored: Sequence[bool] = ()) -> Computing:
    """How `node` computes.

    Args:
        shardings: of its operands and results.
        stored: parameters among them: what they are cut over at rest says how they are kept first, and how the op computes
            only where no activation has a wish (ZeRO's weights are gathered, however large).
    """
    rule = node.rule
    views = [project(s, dims, rule.sizes) for s, dims in zip(shardings, rule.tensors)]
    kept = stored or (False,) * len(views)
    cuts = _agreeing(rule, views) or _preferred(rule, views, kept) or _greedy(rule, views, kept)
    cuts = tuple(() if role in ("replication", "blocked") else axes for role, axes in zip(rule.roles, cuts))
    moved = [t for t, view in enumerate(views) if view.overflow or any(cuts[f] != own for f, own in view.lists.items())]
    return Computing(cuts, tuple(moved))


def _lists(views: Sequence[View], factor: int) -> list[Axes]:
    return [view.lists[factor] for view in views if factor in view.lists]


def _agreeing(rule: Factors, views: Sequence[View]) -> tuple[Axes, ...] | None:
    if any(view.overflow for view in views):
        return None
    found: list[Axes] = []
    for f, role in enumerate(rule.roles):
        lists = _lists(views, f)
        if any(own != lists[0] for own in lists) or (lists and lists[0] and role in ("replication", "blocked")):
            return None
        found.append(lists[0] if lists else ())
    return tuple(found) if _apart(found) else None


def _apart(lists: Sequence[Axes]) -> bool:
    """No axis cuts two factors."""
    every = [axis for axes in lists for axis in axes]
    return not any(a.overlaps(b) for k, a in enumerate(every) for b in every[k + 1 :])


def _preferred(rule: Factors, views: Sequence[View], stored: Sequence[bool]) -> tuple[Axes, ...] | None:
    """Of two tensors, one of which must move."""
    real = [t for t, dims in enumerate(rule.tensors) if dims]
    simple = all(len(dim) <= 1 for dims in rule.tensors for dim in dims)
    if len(real) != 2 or not simple or "replication" in rule.roles or any(views[t].overflow for t in real):
        return None

    def key(t: int) -> tuple[bool, bool, int, int, int]:
        window = any(axes and rule.roles[f] == "permutation" for f, axes in views[t].lists.items())
        return stored[t], window, -_elements(rule, t), -prod(parts(axes) for axes in views[t].lists.values()), t

    best, other = sorted(real, key=key)
    found: list[Axes] = [() for _ in rule.sizes]
    for t in (best, other):
        for f, axes in views[t].lists.items():
            if f not in views[best].lists or t == best:
                held = [a for own in found for a in own]
                found[f] = axes if not any(a.overlaps(b) for a in axes for b in held) else ()
    return tuple(found)


def _elements(rule: Factors, tensor: int) -> int:
    return prod(rule.sizes[f] for dim in rule.tensors[tensor] for f in dim)


def _greedy(rule: Factors, views: Sequence[View], stored: Sequence[bool]) -> tuple[Axes, ...]:
    refused: set[int] = set()
    while True:
        found = _chosen(rule, views, stored, refused)
        bad = next(
            (f for f, axes in enumerate(found) if axes and f not in refused and _gathers(rule, views, found, f)), -1
        )
        if bad < 0:
            return _batched(rule, found)
        refused.add(bad)


def _chosen(rule: Factors, views: Sequence[View], stored: Sequence[bool], refused: set[int]) -> list[Axes]:
    found: list[Axes] = [() for _ in rule.sizes]
    voting = [[v for v, kept in zip(views, stored) if not kept], list(views)]
    for round_ in voting:
        wishes: dict[tuple[int, Axes], int] = {}
        for view in round_:
            for f, axes in view.lists.items():
                for n in range(1, len(axes) + 1):
                    wishes[f, axes[:n]] = 0
        for f, axes in wishes:
            held = [t for t, v in enumerate(views) if f in v.lists and is_prefix(axes, v.lists[f])]
            wishes[f, axes] = sum(_elements(rule, t) for t in held)
        left = _possible([(f, axes, n) for (f, axes), n in wishes.items() if f not in refused], found)
        while able := [w for w in left if _after_majors(rule, found, w[0])]:
            f, axes, _ = min(able, key=lambda w: (-w[2], _RANK[rule.roles[w[0]]], -parts(w[1]), w[0]))
            found[f] = axes
            left = _possible(left, found)
    return found


def _possible(wishes: Sequence[tuple[int, Axes, int]], found: Sequence[Axes]) -> list[tuple[int, Axes, int]]:
    """Wishes that still add something, without the axes that other factors have by now."""
    left = []
    for f, axes, weight in wishes:
        clear = _clear(axes, [a for g, own in enumerate(found) if g != f for a in own])
        if is_strict_prefix(found[f], clear):
            left.append((f, clear, weight))
    return left


def _clear(axes: Axes, taken: Sequence[Axis]) -> Axes:
    kept: list[Axis] = []
    for axis in axes:
        part = clear_of(axis, taken)
        if part is not None:
            kept.append(part)
        if part != axis:
            break
    return tuple(kept)


def _after_majors(rule: Factors, found: Sequence[Axes], factor: int) -> bool:
    """In every dim the factors before this one are cut as far as they go, so that parts stay contiguous."""
    for dims in rule.tensors:
        for dim in dims:
            if factor in dim and any(parts(found[f]) < rule.sizes[f] for f in dim[: dim.index(factor)]):
                return False
    return True


def _gathers(rule: Factors, views: Sequence[View], found: Sequence[Axes], factor: int) -> bool:
    """A reduction that only some operands are cut on: is gathering those cheaper than summing the results?"""
    if rule.roles[factor] != "reduction":
        return False
    having = [t for t in range(len(rule.operands)) if factor in views[t].lists]
    holding = [t for t in having if is_prefix(found[factor], views[t].lists[factor])]
    if len(holding) == len(having):
        return False

    def local(t: int) -> float:
        factors = {f for dim in rule.tensors[t] for f in dim}
        return _elements(rule, t) / prod(parts(found[f]) for f in factors if f != factor)

    sums = 2 * sum(local(t) for t in range(len(rule.operands), len(rule.tensors)))
    return sum(local(t) for t in holding) < sums


def _batched(rule: Factors, found: list[Axes]) -> tuple[Axes, ...]:
    """Axes of a factor that must be whole go to one that all tensors have, if they fit there."""
    everywhere = [
        f
        for f, role in enumerate(rule.roles)
        if role == "pass" and all(any(f in dim for dim in dims) for dims in rule.tensors if dims)
    ]
    for f, role in enumerate(rule.roles):
        if role != "replication" or not all(any(f in dim for dim in dims) for dims in rule.tensors if dims):
            continue
        for axis in found[f]:
            fit = (g for g in everywhere if rule.sizes[g] % (parts(found[g]) * axis.size) == 0)
            target = next(fit, -1)
            if target >= 0:
                found[target] = (*found[target], axis)
    return tuple(found)
