"""A plan becomes a program: refine to atoms, assign, defer, emit each piece once, hand the pieces to the stages.

Everything that does not depend on the pipeline, the replicas or the micro-batch is kept with the graph, so that the next
plan with the same shardings only assembles.
"""

from __future__ import annotations

from bisect import bisect_right

from ..errors import InputError
from ..graph.ir import Graph
from ..plan.model import Layout, Plan, Stage
from ..plan.problem import Recipe
from .atoms import Atoms
from .fold import Folded
from .memo import memo
from .pieces import Lowered, lowered
from .program import Instr, Kept, Program, Segment, StageCode, Transfer
from .stages import Owner, Span, choices_of, stages_of


def lower(graph: Graph, plan: Plan, recipe: Recipe) -> Program:
    """The explicit distributed program of `plan` on `graph`.

    Raises:
        InputError: the plan speaks of another graph.
        Unsupported: a placement that has no lowering here (weighted cuts, cuts of halo factors).
    """
    if plan.graph != graph.digest:
        raise InputError(f"the plan is for graph {plan.graph[:12]}, not for {graph.digest[:12]}: plan this model again")
    choices = choices_of(graph, plan)
    owner, folded = stages_of(graph, plan, choices)
    low = lowered(graph, folded, choices, plan.stages[0].mesh, recipe)
    # Plans that differ in micro-batch or schedule only have the same stages.
    cut = (tuple(map(tuple, owner.spans)), tuple(s.mesh for s in plan.stages))
    if cut not in low.programs:
        tied = _tied(folded, owner, low) if len(plan.stages) > 1 else {}
        codes = tuple(_stage(graph, folded, k, stage, low, owner, tied) for k, stage in enumerate(plan.stages))
        low.programs[cut] = codes, tuple(_transfers(graph, folded, plan, low, owner))
    micro_batch = -(-plan.samples // max(plan.schedule.micro_batches, 1))
    return Program(graph.digest, micro_batch, *low.programs[cut])


def _stage(
    graph: Graph, folded: Folded, k: int, stage: Stage, low: Lowered, owner: Owner, tied: dict[str, tuple[int, ...]]
) -> StageCode:
    """Stages that hold the same pieces, as many blocks of each, have the same code but for the number of the first block."""
    spans = owner.spans[k]
    shared = {t: tuple(s for s in stages if s != k) for t, stages in tied.items() if k in stages} if tied else {}
    key = (tuple((p, n) for p, _, n in spans), tuple(shared.items()), stage.mesh.shape)
    like = low.stages.get(key)
    if like is None:
        like = low.stages[key] = _assemble(graph, folded, stage, low, spans, shared)
    code, pieces = like
    starts = {p: first for p, first, _ in spans}
    segments = code.segments
    if any(starts.values()):
        segments = tuple(
            s.placed(starts[p], s.count) if starts.get(p) else s for s, p in zip(segments, pieces, strict=True)
        )
    return StageCode(
        k, stage.mesh, segments, code.params, code.grads, code.update, code.inputs
    )  # fmt: skip


def _assemble(
    graph: Graph, folded: Folded, stage: Stage, low: Lowered, spans: list[Span], shared: dict[str, tuple[int, ...]]
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
        segments.append(segment.placed(0, n))
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


def _tied(folded: Folded, owner: Owner, low: Lowered) -> dict[str, tuple[int, ...]]:
    """Parameters outside of runs, or shared by all blocks, that several stages read."""
    readers: dict[str, set[int]] = {}
    for s, spans in enumerate(owner.spans):
        for p, _, _ in spans:
            for t in low.of_piece[p]:
                if not _per_block(folded, low, p, t):
                    readers.setdefault(t, set()).add(s)
    return {t: tuple(sorted(ss)) for t, ss in readers.items() if len(ss) > 1}


def _per_block(folded: Folded, low: Lowered, p: int, t: str) -> bool:
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


def _constants(graph: Graph, folded: Folded, spans: list[Span], low: Lowered) -> tuple[Instr, ...]:
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


def _transfers(graph: Graph, folded: Folded, plan: Plan, low: Lowered, owner: Owner) -> list[Transfer]:
    """Values that cross from the stage that makes them to each stage that reads them."""
    if len(plan.stages) == 1:
        return []
    if not low.reads:
        low.reads = [
            [(k, j) for k, j in reads if graph.producer.get(graph.ops[p.first + k].inputs[j]) not in low.constants]
            for p, reads in zip(
                folded.pieces, memo(graph, ("reads", id(folded)), lambda: _outside_reads(graph, folded))
            )
        ]
    starts = [p.first for p in folded.pieces]
    found: dict[tuple[str, int], Transfer] = {}
    for s, spans in enumerate(owner.spans):
        for p, first, _ in spans:
            at = folded.pieces[p].first + first * folded.pieces[p].length
            for k, j in low.reads[p]:
                t = graph.ops[at + k].inputs[j]
                made = graph.producer.get(t)
                if made is None or (t, s) in found:
                    continue
                q = bisect_right(starts, made) - 1
                src = owner.stage(q, (made - starts[q]) // folded.pieces[q].length)
                if src != s:
                    found[t, s] = Transfer(t, src, s, *_boundary(folded, low, t))
    return sorted(found.values(), key=lambda x: (x.src, x.dst, x.value))


def _boundary(folded: Folded, low: Lowered, t: str) -> tuple[Layout, float, tuple[str, ...] | None, bool]:
    """Layout, bytes a sample, the axes that cut the samples, whether a gradient comes back."""
    emit, name = low.emit, folded.name(t)
    if name not in low.boundaries:
        axes = emit.done.rest[name]
        low.boundaries[name] = (emit.layout(name, axes), *emit.amount(name, axes), name in emit.atoms.grad)
    return low.boundaries[name]


def _outside_reads(graph: Graph, folded: Folded) -> list[list[tuple[int, int]]]:
    """Per piece: (op in the block, operand) of what it reads from other pieces or from the block before."""
    found: list[list[tuple[int, int]]] = []
    for piece in folded.pieces:
        inside = range(piece.first, piece.first + piece.length)
        reads: dict[tuple[str, str], tuple[int, int]] = {}
        for k in range(piece.length):
            op = graph.ops[piece.first + k]
            later = graph.ops[piece.first + piece.length + k] if piece.run else op
            for j, (t, u) in enumerate(zip(op.inputs, later.inputs, strict=True)):
                own = graph.producer.get(t, -1) in inside
                if not own and (t in graph.producer or graph.producer.get(u, -1) in inside):
                    reads.setdefault((t, u), (k, j))
        found.append(list(reads.values()))
    return found
