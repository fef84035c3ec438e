"""The stages of a scaled-down plan: which ops they hold, and what the plan says of those in the names and sizes of the small model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ...cluster.model import Mesh
from ...graph.ir import Graph, Run
from ...lower.atoms import refine
from ...lower.fold import fold
from ...plan.lookup import entry_range, span_entry
from ...plan.model import Cut, Layout, Plan, Stage, Storage

T = TypeVar("T")


def assigned(
    plan: Plan,
    graph: Graph,
    small: Graph,
    run: Run | None,
    kept: Sequence[int],
    counts: Sequence[int] | None,
    thin: Sequence[int],
) -> list[tuple[list[str], int, int]]:
    """Per kept stage: (its loose ops, first block, blocks). What a dropped stage held goes to the kept one before it.

    Blocks of other runs that the small model has not are left out: the first block stands for them.
    """
    inside = range(run.first, run.first + run.length * run.count) if run is not None else range(0)
    found: list[tuple[list[str], int, int]] = []
    at = 0
    for k, first in enumerate(kept):
        stop = kept[k + 1] if k + 1 < len(kept) else len(plan.stages)
        loose = [
            graph.ops[i].name
            for s in plan.stages[first:stop]
            for entry in s.ops
            for i in entry_range(graph, entry)
            if i not in inside and (graph.representative[i] == i or graph.ops[i].name in small.position)
        ]
        n = thin[k] if counts is None else sum(counts[first:stop])
        found.append((loose, at, n))
        at += n
    return found


@dataclass(frozen=True, slots=True)
class SmallStages:
    stages: tuple[Stage, ...]
    dropped: tuple[str, ...]
    """What the plan says that the small model has no place for."""


def small_stages(
    plan: Plan,
    small: Graph,
    run: Run | None,
    kept: Sequence[int],
    spans: Sequence[tuple[list[str], int, int]],
    meshes: Sequence[Mesh],
    casts: frozenset[str],
) -> SmallStages:
    atoms = refine(fold(small, frozenset(r.name for r in small.runs)))  # a plan may speak of every block
    dropped: dict[str, None] = {}
    memo: dict[int, object] = {}

    def once(mapping: Mapping[str, T], convert: object) -> Mapping[str, T]:
        """The same mapping object stays one object: lowering knows equal stages by it."""
        if id(mapping) not in memo:
            memo[id(mapping)] = convert(mapping)  # type: ignore[operator]
        return memo[id(mapping)]  # type: ignore[return-value]

    def layout(name: str, given: Layout | None) -> Layout | None:
        return None if given is None else _layout(small, atoms.size, atoms.dims, name, given, dropped)

    def layouts(given: Mapping[str, Layout]) -> dict[str, Layout]:
        return {n: new for n, x in given.items() if _known(small, n, casts, dropped) and (new := layout(n, x))}

    def storage(given: Mapping[str, Storage]) -> dict[str, Storage]:
        return {
            n: replace(x, param=layout(n, x.param), grad=layout(n, x.grad), state=layout(n, x.state))
            for n, x in given.items()
            if _known(small, n, casts, dropped)
        }

    stages = []
    for s, mesh, (loose, first, count) in zip(kept, meshes, spans, strict=True):
        old = plan.stages[s]
        ops = [name for name in loose if name in small.position]
        dropped.update(
            dict.fromkeys(f"op {name}" for name in loose if name not in small.position and name not in casts)
        )
        if run is not None and count:
            head = [n for n in ops if small.position[n] < run.first]
            ops = [*head, span_entry(run, first, first + count), *ops[len(head) :]]
        stages.append(
            replace(
                old,
                ops=tuple(ops),
                mesh=mesh,
                shardings=once(
                    old.shardings, lambda m: {n: x for n, x in m.items() if _known(small, n, casts, dropped)}
                ),
                layouts=once(old.layouts, layouts),
                gradients=once(old.gradients, layouts),
                storage=once(old.storage, storage),
                recompute=frozenset(n for n in old.recompute if n in small.position),
            )
        )
    return SmallStages(tuple(stages), tuple(dropped))


def _known(small: Graph, name: str, casts: frozenset[str], dropped: dict[str, None]) -> bool:
    if name in small.position or name in small.tensor:
        return True
    if name not in casts:
        dropped[f"what the plan says of {name}"] = None
    return False


def _layout(
    small: Graph,
    sizes: Mapping[str, tuple[int, ...]],
    counts: Mapping[str, tuple[int, ...]],
    name: str,
    given: Layout,
    dropped: dict[str, None],
) -> Layout | None:
    """`given` at the sizes of the small model: sub-dimension by sub-dimension, where both have as many."""
    if name not in sizes or len(given.dims) != len(counts[name]):
        dropped[f"the layout of {name}"] = None
        return None
    dims: list[tuple[tuple[int, tuple[Cut, ...]], ...]] = []
    at = 0
    for subs, count in zip(given.dims, counts[name], strict=True):
        mine = sizes[name][at : at + count]
        at += count
        cut = [k for k, (_, cuts) in enumerate(subs) if cuts]
        if len(subs) == count:
            dims.append(tuple((n, cuts) for n, (_, cuts) in zip(mine, subs, strict=True)))
        elif not cut:
            dims.append(((0, ()),))
        elif cut == [0]:
            dims.append(((0, subs[0][1]),))
        else:
            dropped[f"the layout of {name}"] = None
            return None
    return Layout(tuple(dims), given.partial)
