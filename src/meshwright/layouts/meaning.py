"""What the entries of a plan come to: the axes of each atom of each op and tensor, whatever entries and axes are called.

Planners name the axes of a mesh as they like ("x0", "host") and write down what a layout leaves to its default. Plans of the
same meaning are lowered to the same program. Axes that always cut together are not one axis of their product: what crosses
both crosses one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, permutations
from typing import TypeAlias, TypeVar

from ..cluster.model import Mesh
from ..errors import Unsupported
from ..graph.ir import Graph
from ..lower.assign import assign, layout_axes
from ..lower.choices import choices_of, unfoldable
from ..lower.convert import Axes
from ..lower.parts import MARK
from ..plan.lookup import representative_tensor
from ..plan.model import Plan, Stage
from .expert import Expert
from .style import CP, DP, EP, OUTER, TP

Names: TypeAlias = Mapping[str, str]
"""A layout's axis -> the axis of a mesh that is it."""
DATA, REST = ((OUTER, DP, EP), (CP, TP))
"""Axes that cut samples, outer first; axes that never do."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """Of one plan on one mesh, or on several that are alike."""

    places: Mapping[tuple[str, str], tuple[Axes, ...]]
    """("is cut", op): its atoms, and those of each operand as it reads it. ("rests", tensor). ("is stored", parameter): as
    its gradient and its optimizer state rest."""
    apart: Mapping[str, tuple[str, frozenset[str]]]
    """Op -> its variant, and the operands that it keeps gathered; ops that say neither are left out."""
    again: tuple[frozenset[str], tuple[int, ...]]
    """Ops that run again; per stage, in how many blocks only."""
    samples: frozenset[tuple[str, ...]]
    """Axes of atoms of samples."""
    zero: int
    """Whether parameters (3), else gradients (2), else optimizer state (1) rest otherwise than they are computed with."""

    def named(self, names: Names) -> Meaning:
        """The same with axes under other names."""
        to = {axis: name for name, axis in names.items()}

        def own(axes: Axes) -> Axes:
            return tuple(tuple(to[x] for x in atom if x in to) for atom in axes)

        return replace(self, places={key: tuple(map(own, found)) for key, found in self.places.items()})

    def difference(self, other: Meaning) -> tuple[int, str]:
        """In how many places two meanings differ, and the first of them in words; (0, "") where they are the same."""
        found = [key for key, own in self.places.items() if own != other.places.get(key)]
        if self.apart != other.apart:
            found += [
                ("is cut", op) for op in {**self.apart, **other.apart} if self.apart.get(op) != other.apart.get(op)
            ]
        words = f"{found[0][1]} {found[0][0]} otherwise than in any layout of these degrees" if found else ""
        if self.again != other.again:
            words = words or "it recomputes ops for which there is no word"
        return len(found) + (self.again != other.again), words


def meaning_of(expert: Expert, plan: Plan) -> Meaning | None:
    """None where blocks of a run are not treated alike, or parts are uneven: no layout has that."""
    graph, atoms, mesh = expert.graph, expert.atoms, plan.stages[0].mesh
    alike: dict[tuple[int, ...], Stage] = {}
    stages = tuple(_said_once(graph, stage, alike) for stage in plan.stages)
    choices = choices_of(graph, replace(plan, stages=stages), mesh)
    if choices.written_out != unfoldable(graph):
        return None
    sizes = dict(zip(mesh.axes, mesh.shape, strict=True))
    try:
        done = assign(atoms, choices, sizes)
        stored = {
            t: [layout_axes(atoms, t, layout, sizes) if layout is not None else None for layout in (s.grad, s.state)]
            for t, s in choices.storage.items() if t in atoms.size
        }  # fmt: skip
    except Unsupported:  # cut where the ops of the model have no border
        return None
    places: dict[tuple[str, str], tuple[Axes, ...]] = {}
    samples: set[tuple[str, ...]] = set()
    for n, node in enumerate(atoms.nodes):
        apart_cuts = (done.apart[n, k].cuts for k in range(len(node.inputs)) if (n, k) in done.apart)
        places["is cut", graph.ops[node.index].name] = (done.cuts[n], *done.need[n], *apart_cuts)
        samples.update(axes for axes, flag in zip(done.cuts[n], node.samples) if flag)
    zero = 0
    for t, own in atoms.size.items():
        rest = done.rest.get(t, ((),) * len(own))
        places["rests", t] = (rest, done.grads.get(t, rest))
        if atoms.role[t] == "param":
            grad, state = stored.get(t, [None, None])
            grad = rest if grad is None else grad
            state = grad if state is None else state
            places["is stored", t] = (grad, state)
            use = done.use.get(t, rest)
            zero = max(zero, next((z for z, x in ((3, rest), (2, grad), (1, state)) if x != use), 0))
    if any(MARK in x for found in places.values() for axes in found for atom in axes for x in atom):
        return None
    apart = {
        name: (x.variant, frozenset(x.kept)) for name, x in choices.shardings.items() if x.variant or x.kept
    }  # fmt: skip
    again = choices.recompute, tuple(s.recompute_blocks for s in plan.stages)
    return Meaning(places, apart, again, frozenset(samples - {()}), zero)


def namings(meaning: Meaning, mesh: Mesh) -> Iterator[Names]:
    """Ways in which the axes of a mesh can be those of a layout: those that cut samples outer first as `DATA` has them, the
    others in any order."""
    axes = [a for a, n in zip(mesh.axes, mesh.shape, strict=True) if n > 1]
    place = {
        a: max(x.index(a) for x in meaning.samples if a in x) for a in axes if any(a in x for x in meaning.samples)
    }
    data, rest = sorted(place, key=place.__getitem__), [a for a in axes if a not in place]
    if len(data) > len(DATA) or len(rest) > len(REST):
        return
    for outer in combinations(DATA, len(data)):
        if OUTER not in outer or DP in outer:
            for inner in permutations(REST, len(rest)):
                yield dict(zip((*outer, *inner), (*data, *rest), strict=True))


T = TypeVar("T")


def _said_once(graph: Graph, stage: Stage, alike: dict[tuple[int, ...], Stage]) -> Stage:
    """Without the entries of blocks that say what the representative's says. `alike`: what is known of tables already."""
    key = tuple(id(x) for x in (stage.shardings, stage.layouts, stage.gradients, stage.storage))
    if key not in alike:
        op_of = {op.name: graph.ops[graph.representative[i]].name for i, op in enumerate(graph.ops)}
        tensor_of = partial(representative_tensor, graph)
        alike[key] = replace(
            stage,
            shardings=_first(stage.shardings, {k: op_of.get(k, k) for k in stage.shardings}),
            layouts=_first(stage.layouts, {k: tensor_of(k) for k in stage.layouts}),
            gradients=_first(stage.gradients, {k: tensor_of(k) for k in stage.gradients}),
            storage=_first(stage.storage, {k: tensor_of(k) for k in stage.storage}),
        )
    known = alike[key]
    return replace(  # which blocks run again is compared apart
        stage, shardings=known.shardings, layouts=known.layouts, gradients=known.gradients, storage=known.storage,
        recompute_blocks=0,
    )  # fmt: skip


def _first(table: Mapping[str, T], stands_for: Mapping[str, str]) -> Mapping[str, T]:
    kept = [k for k in table if stands_for[k] == k or table.get(stands_for[k]) != table[k]]
    return table if len(kept) == len(table) else {k: table[k] for k in kept}
