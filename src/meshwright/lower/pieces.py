"""All pieces of a graph under one set of choices, lowered once.

    written    conversions, ops and kernels: whatever cuts ops, rests activations, and rests PARAMETERS
    kept       also what is recomputed
    params     also how gradients and optimizer state rest

Neither the pipeline nor the replicas nor the micro-batch shows in them, so a search lowers a few dozen times in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..cluster.model import Mesh
from ..graph.ir import ITEM_BYTES, Graph
from ..plan.model import Layout
from ..plan.problem import Recipe
from .assign import Choices, assign, defer
from .atoms import Atoms, refine
from .emit import Emitter
from .fold import Folded
from .keep import Keeper
from .kernels import Kernels, kernels
from .memo import memo
from .parameters import Over, ParameterPlan
from .program import Instr, Kept, Segment, StageCode, Transfer
from .shared import Shared
from .summa import SUMMA
from .values import Values


@dataclass(slots=True)
class _Piece:
    """One written piece."""

    values: Values
    kernels: Kernels
    segment: Segment
    """Without rerun and kept."""


@dataclass(slots=True)
class _Written:
    emit: Emitter
    choices: Choices
    """Held so that the identities in the cache key stay taken."""
    pieces: list[_Piece | None]
    constants: dict[int, Instr]
    of_piece: list[list[str]]


@dataclass(slots=True)
class Lowered:
    """All pieces of a graph under one set of choices on one shape of mesh."""

    emit: Emitter
    choices: Choices
    """Held so that the identities in the cache key stay taken."""
    segments: list[Segment | None]
    """Without `kept`, which depends on what else is in the stage."""
    constants: dict[int, Instr]
    """Index of op -> instruction."""
    of_piece: list[list[str]]
    """Parameters read by each piece, folded names."""
    shared: Shared
    """What segments of a stage keep of the same storages."""
    instructions: dict[tuple[str, Over, tuple[int, ...]], tuple[list[Instr], list[Instr]]] = field(default_factory=dict)
    stages: dict[object, tuple[StageCode, tuple[int, ...]]] = field(default_factory=dict)
    """Codes of stages, by what they hold."""
    programs: dict[object, tuple[tuple[StageCode, ...], tuple[Transfer, ...], tuple[Lowered, ...]]] = field(
        default_factory=dict
    )
    """Whole programs, and the lowerings of their stages."""
    reads: list[list[tuple[int, int]]] = field(default_factory=list)
    """Per piece: (op in the block, operand) of what it reads from elsewhere, constants apart."""
    boundaries: dict[str, tuple[Layout, float, tuple[str, ...] | None, bool]] = field(default_factory=dict)
    """What would cross if a stage ended behind this value."""
    per_block: dict[tuple[int, str], bool] = field(default_factory=dict)
    """(piece, parameter) -> every block has its own."""
    params: dict[str, ParameterPlan] = field(default_factory=dict)
    """Of those that stages hold, see `param`."""

    def param(self, name: str) -> ParameterPlan:
        """Made when a stage of this mesh holds it: what stages of other meshes say of theirs may not be possible here.

        Raises:
            Unsupported: gradient or state cut otherwise than the parameter.
        """
        if name not in self.params:
            self.params[name] = ParameterPlan(self.emit, name, self.choices.storage.get(name))
        return self.params[name]


def lowered(
    graph: Graph, folded: Folded, choices: Choices, mesh: Mesh, recipe: Recipe, whole: frozenset[str] = frozenset()
) -> Lowered:
    """`whole`: values whose gradient goes to a mesh of another kind, so that it must be complete."""
    sizes = dict(zip(mesh.axes, mesh.shape))
    same = (id(choices.shardings), id(choices.layouts), id(choices.gradients))
    relevant = memo(graph, ("axes", *same), lambda: (_size_axes(graph, choices), choices))[0]
    relevant |= memo(graph, ("stored axes", id(choices.storage)), lambda: (_between(choices), choices))[0]
    lengths = tuple(sorted((a, n) for a, n in sizes.items() if a in relevant or n == 1))
    place = (id(folded), *same, lengths, mesh.axes, recipe.grad_dtype, recipe.routing_skew, recipe.fused, whole)
    operand = float(ITEM_BYTES[recipe.kept_dtype]) if recipe.kept_dtype else 0.0
    key = ("lowered", *place, operand, id(choices.storage), choices.recompute)

    def make() -> Lowered:
        # Storages that leave parameters as they are used differ in what follows the backward only.
        moved = tuple((t, s.param) for t, s in choices.storage.items() if s.param is not None)
        written = memo(graph, ("written", *place, moved), lambda: write(graph, folded, choices, sizes, recipe, whole))
        return _lower(written, folded, choices, recipe.fused, operand)

    found: Lowered = memo(graph, key, make)
    return found


def _size_axes(graph: Graph, choices: Choices) -> frozenset[str]:
    """Axes whose LENGTH shows in the instructions: those that cut anything but samples. Of storage see `_between`."""
    found: set[str] = set()
    for name, sharding in choices.shardings.items():
        rule = graph.ops[graph.position[name]].rule if name in graph.position else None
        for f, cuts in sharding.cuts.items():
            major = rule is not None and rule.factor(f).samples and rule.factor(f).size % graph.samples == 0
            major = major and sharding.variant != SUMMA  # the rows' axis cuts the matrix, too
            found.update(c.axis for c in (cuts[1:] if major else cuts))
        found.update(c.axis for own in sharding.backward.values() for cuts in own.values() for c in cuts)
    for t, layout in (*choices.layouts.items(), *choices.gradients.items()):
        for d, subs in enumerate(layout.dims):
            for k, (_, cuts) in enumerate(subs):
                found.update(c.axis for c in cuts if (d, k) != (0, 0) or graph.tensor[t].role == "param")
    return frozenset(found)


def _between(choices: Choices) -> frozenset[str]:
    """Axes of parameters that rest cut over several: gathered over one, they are still as small as the others make them.
    What rests cut over one axis is gathered whole."""
    found: set[str] = set()
    for storage in choices.storage.values():
        if storage.param is not None:
            axes = {c.axis for subs in storage.param.dims for _, cuts in subs for c in cuts}
            found |= axes if len(axes) > 1 else set()
    return frozenset(found)


def atoms_of(graph: Graph, folded: Folded) -> Atoms:
    found: Atoms = memo(graph, ("atoms", id(folded)), lambda: refine(folded))
    return found


def write(
    graph: Graph, folded: Folded, choices: Choices, mesh: Mapping[str, int], recipe: Recipe, whole: frozenset[str]
) -> _Written:
    atoms = atoms_of(graph, folded)
    done = assign(atoms, choices, mesh)
    sums = defer(atoms, done, whole)
    emit = Emitter(atoms, done, sums, mesh, float(ITEM_BYTES[recipe.grad_dtype]), recipe.routing_skew)
    found = _Written(emit, choices, [], {}, [])
    start = 0
    for piece in folded.pieces:
        nodes = range(start, start + piece.length)
        start += piece.length
        w = emit.piece(nodes, any(r.first <= piece.first < r.first + r.length * r.count for r in graph.runs))
        found.constants.update((graph.position[i.on], i) for i in w.constants)
        reads = (t for n in nodes if n in w.used for t in atoms.nodes[n].inputs)
        found.of_piece.append(list(dict.fromkeys(t for t in reads if atoms.role[t] == "param")))
        if not w.forward:
            found.pieces.append(None)
            continue
        samples = _samples(emit, nodes)
        values = Values(emit, w, nodes, samples)
        fused = kernels(values, recipe.fused)
        of_op = fused.of_op
        forward, backward = (
            tuple(i.grouped(of_op[i.on]) if i.kind == "compute" and i.on in of_op else i for i in instrs)
            for instrs in (w.forward, reversed(w.backward))
        )
        segment = Segment(
            piece.run, piece.first, piece.length, 0, piece.count, forward, (), backward, fused.kernels, samples=samples
        )  # fmt: skip
        found.pieces.append(_Piece(values, fused, segment))
    return found


def _lower(written: _Written, folded: Folded, choices: Choices, fused: bool, operand: float) -> Lowered:
    segments: list[Segment | None] = []
    keepers: list[Keeper | None] = []
    again: list[set[str]] = []
    for piece in written.pieces:
        if piece is None:
            segments.append(None)
            keepers.append(None)
            again.append(set())
            continue
        keeper = Keeper(piece.values, piece.kernels, choices.shardings, choices.recompute, operand)
        rerun, made = keeper.rerun()
        keepers.append(keeper)
        again.append(made)
        segments.append(replace(piece.segment, rerun=rerun))

    def kept(p: int, elsewhere: frozenset[str]) -> Kept:
        keeper, segment = keepers[p], segments[p]
        assert keeper is not None and segment is not None
        if fused:
            return keeper.kept(again[p], elsewhere)
        return keeper.op_by_op(again[p], segment.rerun, segment.backward, elsewhere)

    shared = Shared(folded, keepers, kept)
    return Lowered(written.emit, choices, segments, written.constants, written.of_piece, shared)


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
