"""Which stage has what: the entries of a plan in one place, and the graph folded as far as the plan allows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from ..cluster.model import Mesh
from ..errors import InputError
from ..graph.ir import Graph
from ..plan.model import Layout, OpSharding, Plan, Stage, Storage
from .assign import Choices
from .fold import Folded, fold, foldable
from .memo import memo

Span: TypeAlias = tuple[int, int, int]
"""(piece, first block, blocks)"""


@dataclass(slots=True)
class Owner:
    spans: list[list[Span]]
    """Per stage."""
    stage_of: dict[tuple[int, int], int]
    """(piece, block) -> stage, of pieces outside of folded runs (block 0)."""
    run_spans: dict[int, list[tuple[int, int, int]]]
    """Piece of a run -> (first block, blocks, stage), ascending."""

    def stage(self, piece: int, block: int) -> int:
        if piece not in self.run_spans:
            return self.stage_of[piece, block]
        return next(s for first, n, s in self.run_spans[piece] if first <= block < first + n)


def stages_of(graph: Graph, plan: Plan, choices: Sequence[Choices]) -> tuple[Owner, Folded]:
    """Fold what the plan says once; runs whose blocks differ, or are cut inside, stay written out.

    `choices`: one for each kind of mesh; all are folded alike.
    """
    runs = {r.name: r for r in graph.runs}
    named: list[tuple[int, int]] = []  # (op, stage)
    blocks: dict[str, list[tuple[int, int, int]]] = {}
    plain = set(unfoldable(graph)).union(*(_differing(graph, c) for c in choices))
    if any(s.recompute_at == "stage" for s in plan.stages):
        plain |= runs.keys()
    for s, stage in enumerate(plan.stages):
        for entry in stage.ops:
            if entry.endswith("]") and (head := entry.rpartition("["))[0] in runs:
                first, _, stop = head[2][:-1].partition(":")
                blocks.setdefault(head[0], []).append((int(first), int(stop) - int(first), s))
            else:
                try:
                    named.append((graph.position[entry], s))
                except KeyError:
                    raise InputError(f'stage {s} names op "{entry}", which the graph has not') from None
    for r in graph.runs:
        inside = range(r.first, r.first + r.length * r.count)
        if r.name in blocks and any(i in inside for i, _ in named):
            plain.add(r.name)
        if r.name not in blocks:
            plain.add(r.name)
    for name in plain & blocks.keys():
        r = runs[name]
        for start, n, holder in blocks.pop(name):
            named += [(i, holder) for i in range(r.first + start * r.length, r.first + (start + n) * r.length)]
    owner_of = dict(named)
    order = sorted(owner_of)
    borders = [b for a, b in itertools.pairwise(order) if owner_of[a] != owner_of[b]]
    whole = any(s.recompute_at == "stage" for s in plan.stages)
    key = (frozenset(plain), tuple(borders), whole)
    folded = memo(graph, ("fold", key), lambda: fold(graph, *key))
    spans: list[list[Span]] = [[] for _ in plan.stages]
    stage_of: dict[tuple[int, int], int] = {}
    run_spans: dict[int, list[tuple[int, int, int]]] = {}
    for p, piece in enumerate(folded.pieces):
        if piece.run:
            run_spans[p] = sorted(blocks[piece.run])
            for start, n, holder in run_spans[p]:
                spans[holder].append((p, start, n))
        else:
            s = owner_of.get(piece.first, -1)
            if s < 0:
                raise InputError(f'op "{graph.ops[piece.first].name}" is in no stage of the plan')
            spans[s].append((p, 0, 1))
            stage_of[p, 0] = s
    return Owner(spans, stage_of, run_spans), folded


def unfoldable(graph: Graph) -> frozenset[str]:
    """Runs that must stay written out whatever the plan."""
    found: frozenset[str] = memo(
        graph, "unfoldable", lambda: frozenset(r.name for r in graph.runs if not foldable(graph, r))
    )
    return found


def _differing(graph: Graph, choices: Choices) -> set[str]:
    """Runs of which some block after the first has an entry of its own."""
    if not graph.runs:
        return set()
    index: dict[str, str] = memo(graph, "inner names", lambda: _inner_names(graph))
    entries = (choices.shardings, choices.layouts, choices.storage, choices.recompute)
    return {index[name] for names in entries for name in names if name in index}


def _inner_names(graph: Graph) -> dict[str, str]:
    """Names of ops, results and parameters of blocks 1 … -> name of their run. What block 1 reads of block 0 is no difference."""
    found: dict[str, str] = {}
    for r in graph.runs:
        for i in range(r.first + r.length, r.first + r.length * r.count):
            op = graph.ops[i]
            found[op.name] = r.name
            found.update(dict.fromkeys(op.outputs, r.name))
            rep = graph.ops[graph.representative[i]]
            for own, first in zip(op.inputs, rep.inputs):
                if own != first and graph.tensor[own].role == "param":
                    found[own] = r.name
    return found


def choices_of(graph: Graph, plan: Plan, mesh: Mesh) -> Choices:
    """What all stages say, in one place, as far as a mesh of these axes can say it: cuts over other axes drop out.

    Where two stages say different things of one representative, each entry is written out for the stage's own blocks.
    Of a value or parameter of which stages of several meshes speak, those of this mesh are heard.
    """
    first = plan.stages[0]
    recompute = frozenset().union(*(s.recompute for s in plan.stages))
    said = [_said(graph, s, mesh) for s in plan.stages]
    if len({tuple(map(id, tables)) for tables in said}) == 1:
        return Choices(first.shardings, first.layouts, first.storage, recompute)
    order = sorted(range(len(said)), key=lambda k: _alike(plan.stages[k].mesh, mesh))
    stages, said = [plan.stages[k] for k in order], [said[k] for k in order]
    apart = _disagree(graph, stages, said)
    names = [_own_names(graph, stage) if apart else {} for stage in stages]
    shardings, layouts, storage = zip(*said, strict=True)
    return Choices(_merged(shardings, names), _merged(layouts, names), _merged(storage, names), recompute)


T = TypeVar("T")


def _merged(tables: Sequence[Mapping[str, T]], names: Sequence[Mapping[str, tuple[str, ...]]]) -> dict[str, T]:
    """The entries of all stages; later ones count. `names`: representative -> the stage's own names."""
    found: dict[str, T] = {}
    for table, own in zip(tables, names, strict=True):
        for k, v in table.items():
            found.update(dict.fromkeys(own.get(k, (k,)), v))
    return found


Said: TypeAlias = tuple[Mapping[str, OpSharding], Mapping[str, Layout], Mapping[str, Storage]]


def _alike(a: Mesh, b: Mesh) -> bool:
    return a.axes == b.axes and a.shape == b.shape


def _said(graph: Graph, stage: Stage, mesh: Mesh) -> Said:
    """The entries of a stage as far as `mesh` can say them.

    On meshes of other lengths windows stay whole: parts that are smaller than they reach would be refused.
    """
    if _alike(stage.mesh, mesh) or (stage.mesh.axes == mesh.axes and not _cuts_windows(graph, stage.shardings)):
        return stage.shardings, stage.layouts, stage.storage
    axes = frozenset(mesh.axes)
    return (
        {name: _sharding(graph, name, x, axes) for name, x in stage.shardings.items()},
        {name: _layout(x, axes) for name, x in stage.layouts.items()},
        {name: _stored(x, axes) for name, x in stage.storage.items()},
    )


def _windows(graph: Graph, op: str) -> frozenset[str]:
    """Factors along which an op reads its neighbours."""
    index = graph.position.get(op)
    return (
        frozenset(f.name for f in graph.ops[index].rule.factors if f.kind == "halo")
        if index is not None
        else frozenset()
    )


def _cuts_windows(graph: Graph, shardings: Mapping[str, OpSharding]) -> bool:
    return any(cuts and f in _windows(graph, op) for op, x in shardings.items() for f, cuts in x.cuts.items())


def _stored(stored: Storage, axes: frozenset[str]) -> Storage:
    param, grad, state = (x and _layout(x, axes) for x in (stored.param, stored.grad, stored.state))
    return replace(stored, param=param, grad=grad, state=state)


def _sharding(graph: Graph, op: str, sharding: OpSharding, axes: frozenset[str]) -> OpSharding:
    cuts = {f: tuple(c for c in own if c.axis in axes) for f, own in sharding.cuts.items()}
    whole = _windows(graph, op)
    return replace(sharding, cuts={f: own for f, own in cuts.items() if own and f not in whole})


def _layout(layout: Layout, axes: frozenset[str]) -> Layout:
    dims = tuple(tuple((n, tuple(c for c in cuts if c.axis in axes)) for n, cuts in dim) for dim in layout.dims)
    return Layout(dims, tuple(a for a in layout.partial if a in axes))


def _disagree(graph: Graph, stages: Sequence[Stage], said: Sequence[Said]) -> bool:
    """Whether two stages say different things of one representative, or one says what another, with blocks of the same run,
    does not say."""
    held = [{entry.rpartition("[")[0] for entry in s.ops if entry.endswith("]")} for s in stages]
    runs: dict[str, str] = memo(graph, "first names", lambda: _first_names(graph))
    for table in zip(*said, strict=True):
        if len({id(x) for x in table}) == 1:
            continue
        for name in {name for x in table for name in x if name in runs}:
            holders = [x for x, own in zip(table, held, strict=True) if name in x or runs[name] in own]
            if any(x.get(name) != holders[0].get(name) for x in holders):
                return True
    return False


def _first_names(graph: Graph) -> dict[str, str]:
    """Names of ops, results and parameters of the first block of each run -> name of the run."""
    found: dict[str, str] = {}
    for r in graph.runs:
        for op in graph.ops[r.first : r.first + r.length]:
            params = (t for t in op.inputs if graph.tensor[t].role == "param")
            found.update(dict.fromkeys((op.name, *op.outputs, *params), r.name))
    return found


def _own_names(graph: Graph, stage: Stage) -> dict[str, tuple[str, ...]]:
    """Representative's names -> names in the blocks that this stage holds (ops, results, parameters)."""
    found: dict[str, dict[str, None]] = {}
    runs = {r.name: r for r in graph.runs}
    for entry in stage.ops:
        name, _, span = entry.rpartition("[")
        if name not in runs or not entry.endswith("]"):
            continue
        r = runs[name]
        start, _, stop = span[:-1].partition(":")
        for i in range(r.first + int(start) * r.length, r.first + int(stop) * r.length):
            rep, op = graph.ops[graph.representative[i]], graph.ops[i]
            pairs = [(rep.name, op.name), *zip(rep.outputs, op.outputs)]
            pairs += [(a, b) for a, b in zip(rep.inputs, op.inputs) if graph.tensor[b].role == "param"]
            for a, b in pairs:
                found.setdefault(a, {})[b] = None
    return {a: tuple(b) for a, b in found.items()}
