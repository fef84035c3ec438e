"""A plan becomes a program: refine to atoms, assign, defer, emit each piece once, hand the pieces to the stages.

Everything that does not depend on the pipeline, the replicas or the micro-batch is kept with the graph, so that the next
plan with the same shardings only assembles.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Graph
from ..plan.copies import copies_of, has_copies, one_copy
from ..plan.model import Layout, Plan, Stage
from ..plan.pieces import in_pieces
from ..plan.problem import Recipe
from .atoms import Atoms
from .choices import choices_of
from .copies import with_copies
from .fold import Folded
from .memo import memo
from .parameters import Over
from .pieces import Lowered, atoms_of, lowered
from .program import Instr, Kept, Program, Segment, StageCode, Transfer
from .shared import Elsewhere
from .stages import Owner, Span, stages_of


def lower(graph: Graph, plan: Plan, recipe: Recipe) -> Program:
    """The explicit distributed program of `plan` on `graph`; its stages are those of `in_pieces`.

    Raises:
        InputError: the plan speaks of another graph.
        Unsupported: a placement that has no lowering here (weighted cuts of windows, cuts of what a kernel must see whole); `keep_last` without a flush.
    """
    if plan.graph != graph.digest:
        raise InputError(f"the plan is for graph {plan.graph[:12]}, not for {graph.digest[:12]}: plan this model again")
    if has_copies(plan):
        copies = copies_of(plan)
        return with_copies(lower(graph, one_copy(plan), recipe), copies, float(ITEM_BYTES[recipe.grad_dtype]))
    plan = in_pieces(graph, plan)
    program = _program(graph, plan, recipe)
    keep = [s.keep_last if s.recompute else 0 for s in plan.stages]
    if not any(keep):
        return program
    if not plan.schedule.weights.flush:
        s = next(k for k, n in enumerate(keep) if n)
        raise Unsupported(
            f"stage {s} keeps what its last {keep[s]} micro-batches of a step make (keep_last), but under schedule "
            f"{plan.schedule.name} no step ends: set keep_last = 0",
            reason="schedule",
        )
    plain = _program(graph, replace(plan, stages=tuple(replace(s, recompute=frozenset()) for s in plan.stages)), recipe)
    stages = tuple(
        replace(code, keep_last=n, keeping=other.segments)
        for code, n, other in zip(program.stages, keep, plain.stages, strict=True)
    )
    return replace(program, stages=stages)


def _program(graph: Graph, plan: Plan, recipe: Recipe) -> Program:
    """Of a plan in pieces, one copy of each stage; every micro-batch alike."""
    meshes = list(dict.fromkeys((s.mesh.axes, s.mesh.shape) for s in plan.stages))
    of = [meshes.index((s.mesh.axes, s.mesh.shape)) for s in plan.stages]
    ones = [plan.stages[of.index(k)].mesh for k in range(len(meshes))]
    choices = [choices_of(graph, plan, mesh) for mesh in ones]
    owner, folded = stages_of(graph, plan, choices)
    whole = _whole(graph, folded, owner, of) if len(meshes) > 1 else frozenset()
    lows = [lowered(graph, folded, c, mesh, recipe, whole) for c, mesh in zip(choices, ones, strict=True)]
    own = [lows[k] for k in of]
    # Plans that differ in micro-batch or schedule only have the same stages. What is kept holds what its key names.
    cut = (tuple(map(tuple, owner.spans)), tuple(s.mesh for s in plan.stages), tuple(map(id, own)))
    kept = lows[0].programs
    if cut not in kept:
        crossing = _crossing(graph, folded, owner, lows[0]) if len(plan.stages) > 1 else []
        tied = _tied(folded, owner, lows[0]) if len(plan.stages) > 1 else {}
        alike = {t: len({(of[s], id(own[s])) for s in stages}) == 1 for t, stages in tied.items()}
        codes = tuple(
            _stage(graph, folded, k, stage, own[k], owner, tied, alike) for k, stage in enumerate(plan.stages)
        )
        transfers = tuple(
            _transfer(folded, t, own[src], own[dst], src, dst, of[src] == of[dst]) for src, dst, t in crossing
        )
        kept[cut] = codes, transfers, tuple(own)
    codes, transfers, _ = kept[cut]
    micro_batch = -(-plan.samples // max(plan.schedule.micro_batches, 1))
    return Program(graph.digest, micro_batch, codes, transfers)


def _stage(
    graph: Graph,
    folded: Folded,
    k: int,
    stage: Stage,
    low: Lowered,
    owner: Owner,
    tied: dict[str, tuple[int, ...]],
    alike: dict[str, bool],
) -> StageCode:
    """Stages that hold the same pieces, as many blocks of each, have the same code but for the number of the first block."""
    spans = owner.spans[k]
    shared = {t: (tuple(s for s in stages if s != k), alike[t]) for t, stages in tied.items() if k in stages}
    elsewhere = low.shared.elsewhere(spans)
    key = (tuple((p, n) for p, _, n in spans), tuple(elsewhere), tuple(shared.items()), stage.mesh.shape)
    like = low.stages.get(key)
    if like is None:
        like = low.stages[key] = _assemble(graph, folded, stage, low, spans, shared, elsewhere)
    code, pieces = like
    starts = {p: first for p, first, _ in spans}
    segments = code.segments
    if any(starts.values()):
        segments = tuple(
            s.placed(starts[p] + s.block, s.count) if starts.get(p) else s
            for s, p in zip(segments, pieces, strict=True)
        )
    return StageCode(
        k, stage.mesh, segments, code.params, code.grads, code.update, code.inputs
    )  # fmt: skip


def _assemble(
    graph: Graph,
    folded: Folded,
    stage: Stage,
    low: Lowered,
    spans: list[Span],
    shared: dict[str, tuple[tuple[int, ...], bool]],
    elsewhere: Sequence[Elsewhere],
) -> tuple[StageCode, tuple[int, ...]]:
    """The code of a stage whose spans begin at block 0, and the piece of each of its segments (-1: constants).

    `shared`: tied parameter -> (other stages that hold it, whether all of them hold it alike). `elsewhere`: by span.
    """
    mesh = dict(zip(stage.mesh.axes, stage.mesh.shape))
    segments: list[Segment] = []
    pieces: list[int] = []
    counts: dict[str, int] = {}
    for (p, _, n), (first, later) in zip(spans, elsewhere, strict=True):
        segment = low.segments[p]
        if segment is None:
            continue
        # A first block may keep what those behind it find kept by the block before.
        parts = [(0, 1, first), (1, n - 1, later)] if n > 1 and first != later else [(0, n, first)]
        for block, count, without in parts:
            segments.append(replace(segment.placed(block, count), kept=low.shared.kept(p, without)))
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
        others, alike = shared.get(t, ((), True))
        params.append(low.param(t).param(n, others, mesh))
        over: Over = "" if not others else "alike" if alike else "unlike"
        key = (t, over, stage.mesh.shape)
        if key not in low.instructions:
            low.instructions[key] = low.param(t).instructions(over, mesh)
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


def _crossing(graph: Graph, folded: Folded, owner: Owner, low: Lowered) -> list[tuple[int, int, str]]:
    """(stage, stage that reads it, value) of all values that stages take from each other, sorted; constants apart."""
    if not low.reads:
        low.reads = [
            [(k, j) for k, j in reads if graph.producer.get(graph.ops[p.first + k].inputs[j]) not in low.constants]
            for p, reads in zip(folded.pieces, _outside_reads(graph, folded), strict=True)
        ]
    return _crossing_reads(graph, folded, owner, low.reads)


def _crossing_reads(
    graph: Graph, folded: Folded, owner: Owner, reads: Sequence[Sequence[tuple[int, int]]]
) -> list[tuple[int, int, str]]:
    starts = [p.first for p in folded.pieces]
    found: set[tuple[int, int, str]] = set()
    for s, spans in enumerate(owner.spans):
        for p, first, _ in spans:
            at = folded.pieces[p].first + first * folded.pieces[p].length
            for k, j in reads[p]:
                t = graph.ops[at + k].inputs[j]
                made = graph.producer.get(t)
                if made is None:
                    continue
                q = bisect_right(starts, made) - 1
                src = owner.stage(q, (made - starts[q]) // folded.pieces[q].length)
                if src != s:
                    found.add((src, s, t))
    return sorted(found)


def _whole(graph: Graph, folded: Folded, owner: Owner, of: Sequence[int]) -> frozenset[str]:
    """Values made of parameters alone (folded names) that go from one kind of mesh to another: `of` [stage]."""
    atoms = atoms_of(graph, folded)
    crossing = _crossing_reads(graph, folded, owner, _outside_reads(graph, folded))
    names = {folded.name(t) for src, dst, t in crossing if of[src] != of[dst]}
    return frozenset(t for t in names if t in atoms.from_params and t not in atoms.const)


def _transfer(folded: Folded, t: str, source: Lowered, target: Lowered, src: int, dst: int, equal: bool) -> Transfer:
    """`equal`: meshes of equal axes and lengths."""
    layout, nbytes, samples, grad = _boundary(folded, source, t)
    arrives = _boundary(folded, target, t)[0]
    growing = source.emit.atoms.samples[folded.name(t)]
    batch = growing.index(True) if any(growing) else -1
    return Transfer(t, src, dst, layout, arrives, nbytes, samples, grad, batch, straight=equal and layout == arrives)


def _boundary(folded: Folded, low: Lowered, t: str) -> tuple[Layout, float, tuple[str, ...] | None, bool]:
    """Layout, bytes a sample, the axes that cut the samples, whether a gradient comes back."""
    emit, name = low.emit, folded.name(t)
    if name in emit.done.grads:
        raise Unsupported(
            f'the gradient of "{t}" goes to another stage, so it rests as the value does: leave its gradients out',
            reason="backward",
        )
    if name not in low.boundaries:
        axes = emit.done.rest[name]
        low.boundaries[name] = (emit.layout(name, axes), *emit.amount(name, axes), name in emit.atoms.grad)
    return low.boundaries[name]


def _outside_reads(graph: Graph, folded: Folded) -> list[list[tuple[int, int]]]:
    """Per piece: (op in the block, operand) of what it reads from other pieces or from the block before."""
    found: list[list[tuple[int, int]]] = memo(graph, ("reads", id(folded)), lambda: _find_outside_reads(graph, folded))
    return found


def _find_outside_reads(graph: Graph, folded: Folded) -> list[list[tuple[int, int]]]:
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
