"""Which stage has what: the entries of a plan in one place, and the graph folded as far as the plan allows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InputError, Unsupported
from ..graph.ir import Graph
from ..plan.model import Plan, Stage
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


def stages_of(graph: Graph, plan: Plan, choices: Choices) -> tuple[Owner, Folded]:
    """Fold what the plan says once; runs whose blocks differ, or are cut inside, stay written out."""
    runs = {r.name: r for r in graph.runs}
    named: list[tuple[int, int]] = []  # (op, stage)
    blocks: dict[str, list[tuple[int, int, int]]] = {}
    plain = _differing(graph, choices) | unfoldable(graph)
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


def choices_of(graph: Graph, plan: Plan) -> Choices:
    """The entries of all stages in one place: stages hold different ops, so they do not collide.

    Where two stages say different things of one representative, each entry is written out for the stage's own blocks.
    """
    first = plan.stages[0]
    if any(s.mesh.axes != first.mesh.axes or s.mesh.shape != first.mesh.shape for s in plan.stages):
        shapes = sorted({str(dict(zip(s.mesh.axes, s.mesh.shape))) for s in plan.stages})
        raise Unsupported(
            f"stages of unequal meshes ({' and '.join(shapes[:2])}) are not lowered yet: give all one shape",
            reason="meshes",
        )
    if all(
        s.shardings is first.shardings and s.layouts is first.layouts and s.storage is first.storage
        for s in plan.stages
    ):
        return Choices(
            first.shardings, first.layouts, first.storage, frozenset().union(*(s.recompute for s in plan.stages))
        )
    merged: list[dict[str, object]] = [{}, {}, {}]
    collide = False
    for stage in plan.stages:
        for have, new in zip(merged, (stage.shardings, stage.layouts, stage.storage)):
            collide |= any(k in have and have[k] != v for k, v in new.items())
            have.update(new)
    if collide:
        merged = [{}, {}, {}]
        for stage in plan.stages:
            names = _own_names(graph, stage)
            for have, new in zip(merged, (stage.shardings, stage.layouts, stage.storage)):
                for k, v in new.items():
                    have.update(dict.fromkeys(names.get(k, (k,)), v))
                have.update({k: v for k, v in new.items() if k not in names})
    recompute = frozenset().union(*(s.recompute for s in plan.stages))
    return Choices(merged[0], merged[1], merged[2], recompute)  # type: ignore[arg-type]


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
