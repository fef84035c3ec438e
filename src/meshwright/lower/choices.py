"""What the stages of a plan say, in one place: one entry an op, under the name that lowering asks for.

An entry under the name of a representative speaks for all blocks of its run (plan/model.py). Of a folded run it stays as it
is; where a run is written out, each stage's entries are written out for the blocks that it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from ..cluster.model import Mesh
from ..graph.ir import Graph
from ..plan.lookup import first_blocks, stage_ops
from ..plan.lookup import spans as lookup_spans
from ..plan.model import AS_VALUES, Cut, Layout, OpSharding, Plan, Stage, Storage
from .assign import Choices
from .fold import foldable
from .memo import memo

Own: TypeAlias = Mapping[str, tuple[str, ...]]
"""Representative's name of a written out run -> the names that it stands for in one stage, none where it holds no block."""


def choices_of(graph: Graph, plan: Plan, mesh: Mesh) -> Choices:
    """What all stages say, in one place, as far as a mesh of these axes can say it: cuts over other axes drop out.

    Of a value or parameter of which stages of several meshes speak, those of this mesh are heard.
    """
    first = plan.stages[0]
    said = [_said(graph, s, mesh) for s in plan.stages]
    alike = len({tuple(map(id, tables)) for tables in said}) == 1
    blocks = tuple(s.recompute_blocks for s in plan.stages)
    alike = alike and all(s.recompute == first.recompute for s in plan.stages)
    if alike:
        shardings, layouts, gradients, storage = said[0]
        found = Choices(shardings, layouts, storage, first.recompute, gradients)
        runs = written_out(graph, plan) | differing(graph, found)
        if not runs:
            return found
        key = ("written out", *map(id, said[0]), first.recompute, blocks, runs, tuple(s.ops for s in plan.stages))
        made: tuple[Choices, object] = memo(graph, key, lambda: (_together(graph, plan.stages, said, runs), said[0]))
        return made[0]
    order = sorted(range(len(said)), key=lambda k: _alike(plan.stages[k].mesh, mesh))
    stages, said = [plan.stages[k] for k in order], [said[k] for k in order]
    if _disagree(graph, stages, said):
        return _together(graph, stages, said, frozenset(r.name for r in graph.runs))
    found = _together(graph, stages, said, frozenset())
    runs = written_out(graph, plan) | differing(graph, found)
    return _together(graph, stages, said, runs) if runs else found


def _together(graph: Graph, stages: Sequence[Stage], said: Sequence[Said], runs: frozenset[str]) -> Choices:
    """`runs`: those that are written out."""
    names = [_own_names(graph, stage, runs) for stage in stages]
    shardings, layouts, gradients, storage = zip(*said, strict=True)
    recompute = frozenset().union(*(_again(graph, stage, own) for stage, own in zip(stages, names, strict=True)))
    merged = _merged(gradients, names) if any(gradients) else AS_VALUES
    return Choices(
        _merged(shardings, names), _merged(layouts, names), _merged(storage, names), recompute, merged, runs
    )  # fmt: skip


def _again(graph: Graph, stage: Stage, own: Own) -> set[str]:
    """Ops of this stage that run again."""
    if not stage.recompute:
        return set()
    held: frozenset[str] = memo(graph, ("held", stage.ops), lambda: _held(graph, stage))
    found = {name for name in stage.recompute if name in held and name not in own}
    found = found.union(*(own[name] for name in stage.recompute if name in own))
    return found & {graph.ops[i].name for i in first_blocks(graph, stage)} if stage.recompute_blocks else found


def _held(graph: Graph, stage: Stage) -> frozenset[str]:
    """Names of the ops of a stage, and of their representatives."""
    ops = stage_ops(graph, stage)
    return frozenset(graph.ops[k].name for i in ops for k in (i, graph.representative[i]))


T = TypeVar("T")


def _merged(tables: Sequence[Mapping[str, T]], names: Sequence[Own]) -> dict[str, T]:
    """The entries of all stages; later ones count, and a block's own before those of its representative."""
    found: dict[str, T] = {}
    for table, own in zip(tables, names, strict=True):
        for k in own.keys() & table.keys():
            found.update(dict.fromkeys(own[k], table[k]))
        found.update((k, v) for k, v in table.items() if k not in own)
    return found


def written_out(graph: Graph, plan: Plan) -> frozenset[str]:
    """Runs that are not folded, whatever the stages say of their ops: they cannot be, or are cut inside of a block."""
    every = frozenset(r.name for r in graph.runs)
    if not every or any(s.recompute_at == "stage" for s in plan.stages):
        return every
    heads = {entry.rpartition("[")[0] for s in plan.stages for entry in s.ops if entry.endswith("]")}
    inside: Mapping[str, str] = memo(graph, "ops of runs", lambda: _ops_of_runs(graph))
    named = {inside[entry] for s in plan.stages for entry in s.ops if entry in inside}
    return unfoldable(graph) | (every - heads) | named | _partly_again(graph, plan)


def _partly_again(graph: Graph, plan: Plan) -> set[str]:
    """Runs of which a stage holds blocks that run again and others that do not."""
    found: set[str] = set()
    for stage in plan.stages:
        if stage.recompute and stage.recompute_blocks:
            again = first_blocks(graph, stage)
            parts = [s for s in lookup_spans(graph, stage) if s.run is not None]
            if any(i not in again for s in parts for i in (s.stop - 1,)):
                found |= {s.run.name for s in parts if s.run is not None}
    return found


def _ops_of_runs(graph: Graph) -> dict[str, str]:
    """Op of any block -> its run."""
    return {op.name: r.name for r in graph.runs for op in graph.ops[r.first : r.first + r.length * r.count]}


def unfoldable(graph: Graph) -> frozenset[str]:
    """Runs that must stay written out whatever the plan."""
    found: frozenset[str] = memo(
        graph, "unfoldable", lambda: frozenset(r.name for r in graph.runs if not foldable(graph, r))
    )
    return found


def differing(graph: Graph, choices: Choices) -> set[str]:
    """Runs of which some block after the first has an entry of its own."""
    if not graph.runs:
        return set()
    index: dict[str, str] = memo(graph, "inner names", lambda: _inner_names(graph))
    entries = (choices.shardings, choices.layouts, choices.gradients, choices.storage, choices.recompute)
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


Said: TypeAlias = tuple[Mapping[str, OpSharding], Mapping[str, Layout], Mapping[str, Layout], Mapping[str, Storage]]


def _alike(a: Mesh, b: Mesh) -> bool:
    return a.axes == b.axes and a.shape == b.shape


def _said(graph: Graph, stage: Stage, mesh: Mesh) -> Said:
    """The entries of a stage as far as `mesh` can say them.

    On meshes of other lengths windows stay whole: parts that are smaller than they reach would be refused.
    """
    if _alike(stage.mesh, mesh) or (stage.mesh.axes == mesh.axes and not _cuts_windows(graph, stage.shardings)):
        return stage.shardings, stage.layouts, stage.gradients, stage.storage
    axes = frozenset(mesh.axes)
    return (
        {name: _sharding(graph, name, x, axes) for name, x in stage.shardings.items()},
        {name: _layout(x, axes) for name, x in stage.layouts.items()},
        {name: _layout(x, axes) for name, x in stage.gradients.items()},
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
    whole = _windows(graph, op)

    def left(said: Mapping[str, tuple[Cut, ...]]) -> dict[str, tuple[Cut, ...]]:
        cuts = {f: tuple(c for c in own if c.axis in axes) for f, own in said.items()}
        return {f: own for f, own in cuts.items() if own and f not in whole}

    backward = {k: left(own) for k, own in sharding.backward.items()}
    return replace(sharding, cuts=left(sharding.cuts), backward=backward)


def _layout(layout: Layout, axes: frozenset[str]) -> Layout:
    dims = tuple(tuple((n, tuple(c for c in cuts if c.axis in axes)) for n, cuts in dim) for dim in layout.dims)
    return Layout(dims, tuple(a for a in layout.partial if a in axes))


def _disagree(graph: Graph, stages: Sequence[Stage], said: Sequence[Said]) -> bool:
    """Whether two stages say different things of one representative, or one says what another, with blocks of the same run,
    does not say."""
    inside: Mapping[str, str] = memo(graph, "ops of runs", lambda: _ops_of_runs(graph))
    held = [{entry.rpartition("[")[0] if entry.endswith("]") else inside.get(entry) for entry in s.ops} for s in stages]
    runs: dict[str, str] = memo(graph, "first names", lambda: _first_names(graph))
    again = [dict.fromkeys(s.recompute, True) for s in stages]
    for table in (*zip(*said, strict=True), again):
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


def _own_names(graph: Graph, stage: Stage, runs: frozenset[str]) -> Own:
    """See `Own`: ops, results and parameters of these runs."""
    if not runs:
        return {}
    first: dict[str, str] = memo(graph, "first names", lambda: _first_names(graph))
    inside: Mapping[str, str] = memo(graph, "ops of runs", lambda: _ops_of_runs(graph))
    found: dict[str, dict[str, None]] = {name: {} for name, run in first.items() if run in runs}
    for i in stage_ops(graph, stage):
        op = graph.ops[i]
        if inside.get(op.name) not in runs:
            continue
        rep = graph.ops[graph.representative[i]]
        pairs = [(rep.name, op.name), *zip(rep.outputs, op.outputs)]
        pairs += [(a, b) for a, b in zip(rep.inputs, op.inputs) if graph.tensor[b].role == "param"]
        for a, b in pairs:
            found.setdefault(a, {})[b] = None
    return {a: tuple(b) for a, b in found.items()}
