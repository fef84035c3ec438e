"""From propagated shardings to the entries of a stage, on the mesh whose axes are all used whole."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from math import prod

from ..cluster.model import Mesh
from ..graph.ir import Graph
from ..lower.assign import cuts_along, plan_layout
from ..lower.atoms import Atoms
from ..lower.atoms import Node as AtomNode
from ..lower.halo import major, why_whole
from ..plan.model import Cut, Layout, OpSharding, Storage
from ._axes import Axes, Refined, merged, refine, words
from ._partition import computing
from ._propagate import Dims, Sharding
from ._spmd_values import Program
from .types import Json


@dataclass(frozen=True, slots=True)
class Conflict:
    """A tensor that is converted on its way into or out of an op, because the op's tensors disagree."""

    op: str
    tensor: str
    rests: str
    """ "[x, _]"."""
    computes: str


@dataclass(slots=True)
class Entries:
    """What a stage says, for each kind of entry."""

    refined: Refined
    shardings: dict[str, OpSharding] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    storage: dict[str, Storage] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)


def shown(lists: Sequence[Axes], sizes: Mapping[str, int]) -> str:
    """ "[x, _, y]"."""
    return f"[{', '.join(words(axes, sizes) for axes in lists)}]"


def entries_of(
    graph: Graph, mesh: Mesh, atoms: Atoms, program: Program, state: Sequence[Sharding], split: bool
) -> Entries:
    """What the plan says of every op and tensor.

    Args:
        split: dims of `program` are the atoms of the tensors, else the tensors' own.
    """
    sizes = {a: mesh.size(a) for a in mesh.axes}
    names = {v: t for t, v in program.number.items()}
    params = {v for t, v in program.number.items() if t in graph.tensor and graph.tensor[t].role == "param"}
    chosen = [
        computing(node, [state[v] for v in node.values], [v in params for v in node.values]) if node else None
        for node in program.ops
    ]
    used = [a for s in state for a in s.axes()] + [a for c in chosen if c for axes in c.cuts for a in axes]
    found = Entries(refine(mesh, used))
    refined = found.refined
    length = {a: refined.mesh.size(a) for a in refined.mesh.axes}
    for atom_node, node, choice in zip(atoms.nodes, program.ops, chosen, strict=True):
        if node is None or choice is None:
            continue
        op = graph.ops[atom_node.index]
        cuts: list[Axes] = []
        by_factor: dict[str, tuple[Cut, ...]] = {}
        for f, axes in enumerate(choice.cuts):
            own = refined.names(axes)
            able = bool(own) and _able(graph, atom_node, f, own, length, split)
            cuts.append(axes if able else ())
            if able:
                name = op.rule.factors[atom_node.factor[f] if split else f].name
                by_factor[name] = by_factor.get(name, ()) + cuts_along(own)
        found.shardings[op.name] = OpSharding(by_factor)
        for v, dims in zip(node.values, node.rule.tensors):
            computes = _read(dims, cuts)
            if computes != state[v].lists():
                here, there = shown(state[v].lists(), sizes), shown(computes, sizes)
                found.conflicts.append(Conflict(op.name, names[v], here, there))
    for v, sharding in enumerate(state):
        name = names[v]
        if name not in graph.tensor or name in atoms.const:
            continue
        rests = tuple(refined.names(axes) for axes in sharding.lists())
        layout = plan_layout(atoms, name, rests) if split else _of_dims(rests)
        if v in params:
            found.storage[name] = Storage(param=layout)
        else:
            found.layouts[name] = layout
    return found


def _of_dims(axes: Sequence[tuple[str, ...]]) -> Layout:
    return Layout(tuple(((0, cuts_along(own)),) for own in axes))


def _read(dims: Dims, cuts: Sequence[Axes]) -> tuple[Axes, ...]:
    """A tensor as the op computes with it; dims that the op does not see are whole."""
    return tuple(merged(a for f in dim for a in cuts[f]) for dim in dims)


def _able(
    graph: Graph, node: AtomNode, factor: int, axes: tuple[str, ...], length: Mapping[str, int], split: bool
) -> bool:
    """Whether lowering can cut a factor (of the rule; an atom where dims are split) so."""
    mine = [factor] if split else [a for a, f in enumerate(node.factor) if f == factor]
    if any(node.kind[a] in ("free", "stat") for a in mine):
        return True
    for a in mine:
        if node.kind[a] == "halo" and a == major(node, node.factor[a]):
            return not why_whole(graph.ops[node.index], node, a, axes, length)
    return prod(length[x] for x in axes) == 1


def at_the_border(
    graph: Graph, program: Program, state: Sequence[Sharding], said: Container[str], sizes: Mapping[str, int]
) -> list[Sharding]:
    """What a program is given and returns is cut over whole axes only: a part of one, and what is minor to it, is dropped."""
    found = list(state)
    ends = {t.name for t in graph.tensors if t.role == "input" and t.name not in said} | set(graph.outputs)
    for name in ends:
        v = program.number[name]
        dims = []
        for dim in state[v].dims:
            kept = tuple(takewhile(lambda a: a.size == sizes[a.name], dim.axes))
            dims.append(replace(dim, axes=kept))
        found[v] = replace(state[v], dims=tuple(dims))
    return found


def told(
    graph: Graph,
    program: Program,
    state: Sequence[Sharding],
    final: Sequence[Sharding],
    entries: Entries,
    sizes: Mapping[str, int],
) -> dict[str, Json]:
    """final: of values that are cut; final_out: of what is returned, empty where no part of it was ever cut."""

    def listed(v: int) -> Json:
        return [
            {"axes": [[a.name] if a.size == sizes[a.name] else [a.name, a.pre, a.size] for a in axes], "open": False}
            for axes in final[v].lists()
        ]

    out = [program.number[name] for name in graph.outputs]
    cut = {name: listed(v) for name, v in program.number.items() if final[v].axes() and name not in graph.outputs}
    return {
        "final": cut,
        "final_out": [listed(v) for v in out] if any(state[v].axes() for v in out) else [],
        "conflicts": [asdict(c) for c in entries.conflicts],
    }
