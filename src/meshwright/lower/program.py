"""The explicit distributed program of a plan: every local op, collective, transfer and update, each with names.

The simulator prices it, the executor runs it, tests count its collectives: nothing else ever decides a collective.

    Program
    └─ StageCode (one per pipeline stage; devices of a stage do alike)
       ├─ Segment × count      forward   one micro-batch, in order
       │  (a block of equal    rerun     run again when the segment's backward begins: recomputed ops, gathers not kept
       │   layers stands once) backward  in order (already reversed)
       ├─ grads                after each micro-batch: gradients that rest cut (ZeRO-2, 3 are sums per micro-batch)
       └─ update               once a step: deferred gradient sums, optimizer, gathers of updated parameters

Names of values. A tensor's own name is its value AT REST (sums completed, in its rest layout); "t!" is the raw result of
the op before that; "t@2" is t converted for some use. "∂v" is the gradient of value v: it has the layout of v and is
complete, except that the gradient of a parameter may still be unsummed over its deferred axes until `update`.

Each forward conversion v -> w has exactly one dual instruction ∂w -> ∂v in `backward` if a gradient flows (possibly
kind "identity": nothing to do). Chains of several steps (v -> v@1 -> v@2) are several instructions. An op whose gradients
are computed apart (lower/apart.py) has instructions of its own for each of them instead.

The gradient of an activation t that rests otherwise than t is "∂t^": every reader brings what it says of it there, from
∂(t@k), and from there it is converted for the op that made t, as ∂(t!) or ∂t. There is no value t^.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..cluster.model import Mesh
from ..cost.base import Collective
from ..graph.ir import Graph, Phase
from ..plan.model import Cut, Layout
from .parts import local_count

GRAD = "∂"
RAW = "!"
APART = "^"
INSIDE = frozenset({"stat", "panel"})
"""Kinds of instructions that the local form of their op carries out."""

InstrKind = Literal[
    "compute",  # a local op; phase forward or backward (its whole backward)
    "collective",  # all_reduce, all_gather, reduce_scatter, all_to_all on the value
    "slice",  # keep the own part along `axes` of sub-dimension `dim`: no traffic
    "pad",  # the dual of a slice whose gradient may stay a partial sum: own part among zeros: no traffic
    "identity",  # nothing moves; stands so that a value or a gradient has a name
    "home",  # where the gradient of a value rests apart: only in segments as ranks run them (lower/joined.py)
    "halo",  # rows of both neighbours around the own part, before an op whose windows are cut (lower/halo.py)
    "stat",  # an all-reduce inside op `on`: maxima, sums, counts of a cut stat factor
    "panel",  # a block of an operand, or of its gradient, broadcast or summed inside product `on` (lower/summa.py)
    "update",  # optimizer on the state shard of parameter `on`
    "exchange",  # the gradient of a tied weight, complete: stages of unequal meshes send theirs to each other and add them
]


@dataclass(frozen=True, slots=True)
class Instr:
    """One step. Layouts are explicit: every sub-dimension (atom) of the tensor with its size and its cuts."""

    kind: InstrKind
    on: str
    """compute, stat: the op. Otherwise: the tensor whose value it is."""
    phase: Phase = "forward"
    """input_grad, weight_grad: of one operand, computed apart."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    collective: Collective | None = None
    axes: tuple[str, ...] = ()
    """Mesh axes that take part; one axis, except for joint all-reduces of partial sums."""
    dim: int = -1
    """Flat index of the sub-dimension (atom) that is gathered, scattered, sliced; for all_to_all: the one that is GATHERED.
    halo: the DIM of the tensor. panel: the member that the block comes from or goes to, as a coordinate."""
    dim2: int = -1
    """all_to_all: the sub-dimension that becomes cut. panel: the operand."""
    before: Layout | None = None
    after: Layout | None = None
    cuts: tuple[tuple[str, tuple[Cut, ...]], ...] = ()
    """compute: factor (of the op's rule) -> cuts."""
    operands: tuple[Layout, ...] = ()
    """compute: layout of each operand as it is read, in the order of `Op.inputs`."""
    results: tuple[Layout, ...] = ()
    """compute: layout of each raw result, in the order of `Op.outputs` (`partial` = axes still to be summed)."""
    sizes: tuple[float, ...] = ()
    """compute: largest local size of each factor; of factors that grow with the samples, per local sample.
    halo: rows from the lower and the upper neighbour, then per dim the rows that earlier exchanges added."""
    nbytes: float = 0.0
    """collective, stat: bytes held per member before it starts (all_gather: after); largest part."""
    samples: tuple[str, ...] | None = None
    """None: `nbytes` is absolute. Otherwise per local sample, where the samples are cut over these axes."""
    op: str = ""
    """stat: "max", "sum". halo: what pads both ends, "zero" or "lowest", or "wrap". update: unused."""
    group: int = -1
    """compute of light ops: the fused kernel of the segment that it belongs to; -1 = priced alone."""
    steps: int = 1
    """compute: products of `sizes` one after the other, whose operands come in as many blocks; 0: a sum alone, not priced."""
    within: str = ""
    """The op whose local form carries this out, with all that it makes of its gradients apart (lower/apart.py). A statistic
    so marked is one of the forward that is computed again."""
    arriving: tuple[int, ...] = ()
    """compute of gradients apart: the results whose gradients it reads, its first inputs."""
    targets: tuple[int, ...] = ()
    """compute of gradients apart: the operand of each gradient that it makes."""

    def grouped(self, group: int) -> Instr:
        """The same as a member of a fused kernel."""
        return Instr(
            self.kind, self.on, self.phase, self.inputs, self.outputs, self.collective, self.axes, self.dim, self.dim2,
            self.before, self.after, self.cuts, self.operands, self.results, self.sizes, self.nbytes, self.samples,
            self.op, group, self.steps, self.within, self.arriving, self.targets,
        )  # fmt: skip

    @property
    def communicates(self) -> bool:
        return self.kind in ("collective", "stat", "panel", "halo")

    @property
    def carrier(self) -> str:
        """The op whose local form carries this instruction out besides computing; "" where it stands alone."""
        return self.on if self.kind in INSIDE else self.within


@dataclass(frozen=True, slots=True)
class Kernel:
    """A fused group of light ops of one segment (`Instr.group` = its index): what it moves through memory.

    Bytes per local sample plus fixed bytes; forward reads + writes, backward reads + writes.
    """

    forward: tuple[float, float]
    """(fixed, per local sample)"""
    backward: tuple[float, float]
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that one micro-batch leaves behind in one segment (fixed, per local sample of the segment's sample axes)."""

    activations: tuple[float, float] = (0.0, 0.0)
    """Kept from forward to backward."""
    rerun: tuple[float, float] = (0.0, 0.0)
    """There again only while the segment's backward runs."""
    transient: tuple[float, float] = (0.0, 0.0)
    """Workspace of its largest kernel or gathered operand."""
    loss: tuple[float, float] = (0.0, 0.0)
    """Kept besides by a loss as torch computes it, its log-probabilities; a cost model may know better (`CostModel.loss`)."""
    loss_transient: tuple[float, float] = (0.0, 0.0)
    """Workspace of the casts of its logits, which belong to how a loss is computed."""
    op_by_op: tuple[tuple[float, float], tuple[float, float]] | None = None
    """Where ops run one by one: most bytes alive while its forward, its backward runs, `activations` and `loss` among them."""


@dataclass(frozen=True, slots=True)
class Segment:
    name: str
    """The run whose blocks it stands for ("model.layers"), or "" for the ops between runs."""
    first: int
    """Index in `Graph.ops` of its first op: of the REPRESENTATIVE (block 0 of a run)."""
    length: int
    """Ops of one block."""
    block: int
    """Number of the first block that it stands for; 0 outside of runs."""
    count: int
    """Blocks in a row that it stands for."""
    forward: tuple[Instr, ...]
    rerun: tuple[Instr, ...]
    backward: tuple[Instr, ...]
    kernels: tuple[Kernel, ...] = ()
    kept: Kept = Kept()
    samples: tuple[str, ...] = ()
    """Axes over which the samples of this segment are cut."""

    def placed(self, block: int, count: int) -> Segment:
        """The same code for `count` blocks from number `block` on."""
        return Segment(
            self.name, self.first, self.length, block, count, self.forward, self.rerun, self.backward, self.kernels,
            self.kept, self.samples,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter as one stage holds it. Elements are those of the largest part on one device."""

    name: str
    """The representative's name inside segments; `count` blocks have one each."""
    count: int
    rest: Layout
    """Storage of the parameter between uses."""
    grad: Layout
    """Storage of the accumulated gradient."""
    state: Layout
    """Storage of master copy and optimizer state."""
    deferred: tuple[str, ...]
    """Axes over which the accumulated gradient is summed at the end of the step."""
    elements: tuple[float, float, float]
    """Largest local elements of rest, grad, state; no grad and state of what is frozen."""
    shared: tuple[int, ...] = ()
    """Other stages that hold a copy (tied weights, pipes, replicas that take turns): one more sum over them at the end of
    the step."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A value that one stage sends to another in forward, and its gradient in backward.

    Between meshes of equal axes and lengths that hold it alike, position by position. Otherwise each receiver takes from
    the senders what the parts of both have in common (`crossing.py`).
    """

    value: str
    src: int
    dst: int
    layout: Layout
    """Where the value rests, and its gradient is complete, on the mesh of `src`."""
    arrives: Layout
    """The same on the mesh of `dst`."""
    nbytes: float
    """Per device of `src` and local sample (see `samples`)."""
    samples: tuple[str, ...] | None
    grad: bool
    """A gradient comes back."""
    batch: int = -1
    """Flat index of the sub-dimension that grows with the samples; -1: none."""
    straight: bool = True
    """Position by position."""


@dataclass(frozen=True, slots=True)
class StageCode:
    stage: int
    mesh: Mesh
    segments: tuple[Segment, ...]
    params: tuple[Param, ...]
    grads: tuple[Instr, ...]
    """After each micro-batch: instruction on parameters whose gradient rests cut; repeated per block like `Param.count`."""
    update: tuple[Instr, ...]
    """Once a step, on representative names, each to be repeated for `Param.count` blocks."""
    inputs: tuple[tuple[str, Layout], ...] = ()
    """Graph inputs that this stage reads (each rank loads its own part)."""
    turn: tuple[int, int] = (0, 1)
    """(q, r): one of r replicas that take turns; it runs the micro-batches k with k mod r = q."""
    keep_last: int = 0
    """Of the last micro-batches of a step, those with number >= m - `keep_last`, no op runs again."""
    keeping: tuple[Segment, ...] = ()
    """The segments without recompute; of all stages where one of the program has `keep_last`, else none."""

    @property
    def last(self) -> StageCode | None:
        """The code of the last `keep_last` micro-batches of a step, where that is another."""
        return replace(self, segments=self.keeping, keep_last=0, keeping=()) if self.keep_last else None


@dataclass(frozen=True, slots=True)
class Program:
    """All stages; who runs what when stands in the plan's schedule rows."""

    graph: str
    micro_batch: int
    """Samples of one micro-batch over a whole stage mesh (the largest micro-batch)."""
    stages: tuple[StageCode, ...]
    transfers: tuple[Transfer, ...]

    def local_samples(self, mesh: Mesh, axes: tuple[str, ...]) -> int:
        """Samples on the fullest device when a micro-batch is cut over `axes`."""
        return local_count(self.micro_batch, axes, mesh)


def tensor_of(value: str) -> str:
    """The tensor whose value, or gradient, is so named: "∂x@1" -> "x"."""
    value = value.removeprefix(GRAD).removesuffix(RAW).removesuffix(APART)
    stem, at, _ = value.rpartition("@")
    return stem if at else value


def unrolled(program: Program, graph: Graph) -> Program:
    """The same program with every block written out under its own names (count == 1 everywhere); what the executor runs."""
    from ._unroll import unroll

    return unroll(program, graph)


def instructions(stage: StageCode) -> Iterator[tuple[int, Instr]]:
    """(times it occurs, instruction) of all of one stage: forward, rerun and backward once a micro-batch, then grads, update."""
    for s in stage.segments:
        for i in (*s.forward, *s.rerun, *s.backward):
            yield s.count, i
    counts = {p.name: p.count for p in stage.params}
    for i in (*stage.grads, *stage.update):
        yield counts.get(i.on, 1), i
