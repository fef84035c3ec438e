"""A plan becomes a program: refine to atoms, assign, defer, emit each piece once, hand the pieces to the stages.

Everything that does not depend on the pipeline, the replicas or the micro-batch is kept with the graph, so that the next
plan with the same shardings only assembles.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Graph
from ..plan.model import Plan, Stage
from ..plan.problem import Recipe
from .assign import Choices, assign, defer
from .atoms import Atoms, refine
from .emit import Emitter
from .fold import Folded, fold, foldable
from .keep import keeping
from .parameters import ParameterPlan
from .program import Instr, Kept, Program, Segment, StageCode, Transfer


@dataclass(slots=True)
class _Lowered:
    """All pieces of a graph under one set of choices on one shape of mesh."""

    emit: Emitter
    choices: Choices
    """Held so that the identities in the cache key stay taken."""
    segments: list[Segment | None]
    constants: dict[int, Instr]
    """Index of op -> instruction."""
    params: dict[str, ParameterPlan]
    of_piece: list[list[str]]
    """Parameters read by each piece, folded names."""
    instructions: dict[tuple[str, bool, tuple[int, ...]], tuple[list[Instr], list[Instr]]] = field(default_factory=dict)
    stages: dict[object, tuple[StageCode, tuple[int, ...]]] = field(default_factory=dict)
    """Codes of stages, by what they hold."""
    programs: dict[object, tuple[tuple[StageCode, ...], tuple[Transfer, ...]]] = field(default_factory=dict)
    per_block: dict[tuple[int, str], bool] = field(default_factory=dict)
    """(piece, parameter) -> every block has its own."""


def lower(graph: Graph, plan: Plan, recipe: Recipe) -> Program:
    """The explicit distributed program of `plan` on `graph`.

    Raises:
        InputError: the plan speaks of another graph.
        Unsupported: a placement that has no lowering here (weighted cuts, cuts of halo factors).
    """
    if plan.graph != graph.digest:
        raise InputError(f"the plan is for graph {plan.graph[:12]}, not for {graph.digest[:12]}: plan this model again")
    choices = _choices(graph, plan)
    owner, folded = _stages_of(graph, plan, choices)
    low = _lowered(graph, folded, choices, plan, recipe)
    # Plans that differ in micro-batch or schedule only have the same stages.
    cut = (tuple(map(tuple, owner.spans)), tuple(s.mesh for s in plan.stages))
    if cut not in low.programs:
        tied = _tied(folded, owner, low) if len(plan.stages) > 1 else {}
        codes = tuple(_stage(graph, folded, k, stage, low, owner, tied) for k, stage in enumerate(plan.stages))
        low.programs[cut] = codes, tuple(_transfers(graph, folded, plan, low, owner))
    micro_batch = -(-plan.samples // max(plan.schedule.micro_batches, 1))
    return Program(graph.digest, micro_batch, *low.programs[cut])


def _choices(graph: Graph, plan: Plan) -> Choices:
    """The entries of all stages in one place: stages hold different ops, so they do not collide.

    Where two stages say different things of one representative, each entry is written out for the stage's own blocks.
    """
    first = plan.stages[0]
    if any(s.mesh.axes != first.mesh.axes or s.mesh.shape != first.mesh.shape for s in plan.stages):
        shapes = sorted({str(dict(zip(s.mesh.axes, s.mesh.shape))) for s in plan.stages})
        raise Unsupported(
            f"stages of unequal meshes ({' and '.join(shapes[:2])}) are not lowered yet: give all one shape"
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


# ---- which stage has what


_Span: TypeAlias = tuple[int, int, int]
"""(piece, first block, blocks)"""


@dataclass(slots=True)
class _Owner:
    spans: list[list[_Span]]
    """Per stage."""
    stage_of: dict[tuple[int, int], int]
    """(piece, block) -> stage, of pieces outside of folded runs (block 0)."""
    run_spans: dict[int, list[tuple[int, int, int]]]
    """Piece of a run -> (first block, blocks, stage), ascending."""

    def stage(self, piece: int, block: int) -> int:
        if piece not in self.run_spans:
            return self.stage_of[piece, block]
        return next(s for first, n, s in self.run_spans[piece] if first <= block < first + n)


def _stages_of(graph: Graph, plan: Plan, choices: Choices) -> tuple[_Owner, Folded]:
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
    folded = _memo(graph, ("fold", key), lambda: fold(graph, *key))
    spans: list[list[_Span]] = [[] for _ in plan.stages]
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
    return _Owner(spans, stage_of, run_spans), folded


def unfoldable(graph: Graph) -> frozenset[str]:
    """Runs that must stay written out whatever the plan."""
    found: frozenset[str] = _memo(
        graph, "unfoldable", lambda: frozenset(r.name for r in graph.runs if not foldable(graph, r))
    )
    return found


def _differing(graph: Graph, choices: Choices) -> set[str]:
    """Runs of which some block after the first has an entry of its own."""
    if not graph.runs:
        return set()
    index: dict[str, str] = _memo(graph, "inner names", lambda: _inner_names(graph))
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


# ---- lowering, cached with the graph


_MOST_KEPT = 512
"""Lowerings remembered per graph; a search uses about thirty."""


def _memo(graph: Graph, key: object, make: Callable[[], Any]) -> Any:
    store = graph.__dict__.setdefault("_lowering", {})
    if key not in store:
        if len(store) >= _MOST_KEPT:
            store.clear()
        store[key] = make()
    return store[key]


def _lowered(graph: Graph, folded: Folded, choices: Choices, plan: Plan, recipe: Recipe) -> _Lowered:
    mesh = plan.stages[0].mesh
    sizes = dict(zip(mesh.axes, mesh.shape))
    same = (id(choices.shardings), id(choices.layouts), id(choices.storage))
    relevant = _memo(graph, ("axes", *same), lambda: (_size_axes(graph, choices), choices))[0]
    lengths = tuple(sorted((a, n) for a, n in sizes.items() if a in relevant or n == 1))
    key = ("lowered", id(folded), *same, choices.recompute, lengths, mesh.axes, recipe.grad_dtype)
    low: _Lowered = _memo(graph, key, lambda: _lower_pieces(graph, folded, choices, sizes, recipe))
    return low


def _size_axes(graph: Graph, choices: Choices) -> frozenset[str]:
    """Axes whose LENGTH shows in the instructions: those that cut anything but samples (storage is gathered whole)."""
    found: set[str] = set()
    for name, sharding in choices.shardings.items():
        rule = graph.ops[graph.position[name]].rule if name in graph.position else None
        for f, cuts in sharding.cuts.items():
            major = rule is not None and rule.factor(f).samples and rule.factor(f).size % graph.samples == 0
            found.update(c.axis for c in (cuts[1:] if major else cuts))
    for t, layout in choices.layouts.items():
        for d, subs in enumerate(layout.dims):
            for k, (_, cuts) in enumerate(subs):
                found.update(c.axis for c in cuts if (d, k) != (0, 0) or graph.tensor[t].role == "param")
    return frozenset(found)


def _lower_pieces(graph: Graph, folded: Folded, choices: Choices, mesh: Mapping[str, int], recipe: Recipe) -> _Lowered:
    atoms: Atoms = _memo(graph, ("atoms", id(folded)), lambda: refine(folded))
    done = assign(atoms, choices, mesh)
    sums = defer(atoms, done)
    emit = Emitter(atoms, choices, done, sums, mesh, float(ITEM_BYTES[recipe.grad_dtype]))
    segments: list[Segment | None] = []
    constants: dict[int, Instr] = {}
    of_piece: list[list[str]] = []
    start = 0
    for piece in folded.pieces:
        nodes = range(start, start + piece.length)
        start += piece.length
        w = emit.piece(nodes, any(r.first <= piece.first < r.first + r.length * r.count for r in graph.runs))
        for i in w.constants:
            constants[graph.position[i.on]] = i
        samples = _samples(emit, nodes)
        keep = keeping(emit, w, nodes, samples)
        forward = tuple(
            replace(i, group=keep.group[i.on]) if i.on in keep.group and i.kind == "compute" else i for i in w.forward
        )
        backward = tuple(
            replace(i, group=keep.group[i.on]) if i.on in keep.group and i.kind == "compute" else i
            for i in reversed(w.backward)
        )
        segments.append(
            Segment(
                piece.run,
                piece.first,
                piece.length,
                0,
                piece.count,
                forward,
                keep.rerun,
                backward,
                keep.kernels,
                keep.kept,
                samples,
            )
            if w.forward
            else None
        )
        reads = (t for n in nodes if n in w.used for t in atoms.nodes[n].inputs)
        of_piece.append(list(dict.fromkeys(t for t in reads if atoms.role[t] == "param")))
    params = {t: ParameterPlan(emit, t) for ts in of_piece for t in ts}
    return _Lowered(emit, choices, segments, constants, params, of_piece)


def _samples(emit: Emitter, nodes: range) -> tuple[str, ...]:
    """Axes that cut the samples of most of a piece's results."""
    votes: dict[tuple[str, ...], int] = {}
    for n in nodes:
        for t in emit.atoms.nodes[n].outputs:
            over = [a for a, s in zip(emit.done.rest[t], emit.atoms.samples[t]) if s]
            if over:
                key = tuple(x for a in over for x in a)
                votes[key] = votes.get(key, 0) + 1
    return max(votes, key=lambda k: votes[k]) if votes else ()


# ---- assembling stages


def _stage(
    graph: Graph, folded: Folded, k: int, stage: Stage, low: _Lowered, owner: _Owner, tied: dict[str, tuple[int, ...]]
) -> StageCode:
    """Stages that hold the same pieces, as many blocks of each, have the same code but for the number of the first block."""
    spans = owner.spans[k]
    shared = {t: tuple(s for s in stages if s != k) for t, stages in tied.items() if k in stages}
    key = (tuple((p, n) for p, _, n in spans), tuple(shared.items()), stage.mesh.shape)
    like = low.stages.get(key)
    if like is None:
        like = low.stages[key] = _assemble(graph, folded, stage, low, spans, shared)
    code, pieces = like
    starts = {p: first for p, first, _ in spans}
    segments = code.segments
    if any(starts.values()):
        segments = tuple(
            replace(s, block=starts[p]) if starts.get(p) else s for s, p in zip(segments, pieces, strict=True)
        )
    return replace(code, stage=k, mesh=stage.mesh, segments=segments)


def _assemble(
    graph: Graph, folded: Folded, stage: Stage, low: _Lowered, spans: list[_Span], shared: dict[str, tuple[int, ...]]
) -> tuple[StageCode, tuple[int, ...]]:
    """The code of a stage whose spans begin at block 0, and the piece of each of its segments (-1: constants)."""
    mesh = dict(zip(stage.mesh.axes, stage.mesh.shape))
    segments: list[Segment] = []
    pieces: list[int] = []
    counts: dict[str, int] = {}
    for p, _, n in spans:
        segment = low.segments[p]
        if segment is None:
            continue
        segments.append(replace(segment, count=n))
        pieces.append(p)
        for t in low.of_piece[p]:
            counts[t] = max(counts.get(t, 0), n if _per_block(folded, low, p, t) else 1)
    constants = _constants(graph, folded, spans, low)
    if constants:
        ops = [graph.position[i.on] for i in constants]
        segments.insert(0, Segment("constants", ops[0], len(ops), 0, 1, constants, (), (), (), Kept(), ()))
        pieces.insert(0, -1)
    params, every, update = [], [], []
    for t, n in counts.items():
        others = shared.get(t, ())
        params.append(low.params[t].param(n, others, mesh))
        key = (t, bool(others), stage.mesh.shape)
        if key not in low.instructions:
            low.instructions[key] = low.params[t].instructions(bool(others), mesh)
        a, b = low.instructions[key]
        every += a
        update += b
    reads = dict.fromkeys(t for p, _, _ in spans for t in _inputs(folded, low.emit.atoms, p))
    inputs = tuple((t, low.emit.layout(t, low.emit.done.rest[t])) for t in reads)
    code = StageCode(0, stage.mesh, tuple(segments), tuple(params), tuple(every), tuple(update), inputs)
    return code, tuple(pieces)


def _inputs(folded: Folded, atoms: Atoms, p: int) -> list[str]:
    return [t for n, q in enumerate(folded.piece) if q == p for t in atoms.nodes[n].inputs if atoms.role[t] == "input"]


def _tied(folded: Folded, owner: _Owner, low: _Lowered) -> dict[str, tuple[int, ...]]:
    """Parameters outside of runs, or shared by all blocks, that several stages read."""
    readers: dict[str, set[int]] = {}
    for s, spans in enumerate(owner.spans):
        for p, _, _ in spans:
            for t in low.of_piece[p]:
                if not _per_block(folded, low, p, t):
                    readers.setdefault(t, set()).add(s)
    return {t: tuple(sorted(ss)) for t, ss in readers.items() if len(ss) > 1}


def _per_block(folded: Folded, low: _Lowered, p: int, t: str) -> bool:
    """Whether each block of piece p has a parameter of its own in the place of `t`."""
    if (p, t) not in low.per_block:
        graph, piece = folded.graph, folded.pieces[p]
        own = False
        for k in range(piece.length if piece.run else 0):
            ins = graph.ops[piece.first + k].inputs
            if t in ins:
                own = graph.ops[piece.first + piece.length + k].inputs[ins.index(t)] != t
                break
        low.per_block[p, t] = own
    return low.per_block[p, t]


def _constants(graph: Graph, folded: Folded, spans: list[_Span], low: _Lowered) -> tuple[Instr, ...]:
    """Constants that the pieces of this stage read, with all that makes them: computed in every stage that needs them."""
    wanted: set[int] = set()
    atoms = low.emit.atoms
    mine = {p for p, _, _ in spans}
    todo = [
        t
        for n, p in enumerate(folded.piece)
        if p in mine
        for t in atoms.nodes[n].inputs
        if t in atoms.producer and atoms.nodes[atoms.producer[t]].index in low.constants
    ]
    while todo:
        index = atoms.nodes[atoms.producer[todo.pop()]].index
        if index not in wanted:
            wanted.add(index)
            todo += [t for t in graph.ops[index].inputs if t in graph.producer]
    return tuple(low.constants[i] for i in sorted(wanted))


def _transfers(graph: Graph, folded: Folded, plan: Plan, low: _Lowered, owner: _Owner) -> list[Transfer]:
    """Values that cross from the stage that makes them to each stage that reads them."""
    if len(plan.stages) == 1:
        return []
    reads = _memo(graph, ("outside reads", id(folded)), lambda: _outside_reads(graph, folded))
    starts = [p.first for p in folded.pieces]
    found: dict[tuple[str, int], Transfer] = {}
    for s, spans in enumerate(owner.spans):
        for p, first, _ in spans:
            piece = folded.pieces[p]
            for k, j in reads[p]:
                t = graph.ops[piece.first + first * piece.length + k].inputs[j]
                made = graph.producer.get(t)
                if made is None or made in low.constants or (t, s) in found:
                    continue
                q = bisect_right(starts, made) - 1
                src = owner.stage(q, (made - folded.pieces[q].first) // folded.pieces[q].length)
                if src != s:
                    found[t, s] = _transfer(folded, low, t, src, s)
    return sorted(found.values(), key=lambda x: (x.src, x.dst, x.value))


def _transfer(folded: Folded, low: _Lowered, t: str, src: int, dst: int) -> Transfer:
    emit, name = low.emit, folded.name(t)
    axes = emit.done.rest[name]
    nbytes, samples = emit.amount(name, axes)
    return Transfer(t, src, dst, emit.layout(name, axes), nbytes, samples, name in emit.atoms.grad)


def _outside_reads(graph: Graph, folded: Folded) -> list[list[tuple[int, int]]]:
    """Per piece: (op in the block, operand) of what it reads from other pieces or from the block before."""
    found: list[list[tuple[int, int]]] = []
    for piece in folded.pieces:
        inside = range(piece.first, piece.first + piece.length)
        reads = []
        for k in range(piece.length):
            op = graph.ops[piece.first + k]
            later = graph.ops[piece.first + piece.length + k] if piece.run else op
            for j, (t, u) in enumerate(zip(op.inputs, later.inputs, strict=True)):
                own = graph.producer.get(t, -1) in inside
                if not own and (t in graph.producer or graph.producer.get(u, -1) in inside):
                    reads.append((k, j))
        found.append(reads)
    return found
