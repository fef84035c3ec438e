"""The decision: a plan is pure data. How each field is used by the methods of the field is in the docs.

A stage is a set of ops that share one mesh. Compute placement (`OpSharding`) and rest placement (`Layout`, `Storage`)
are the two halves of every sharding; each collective is the difference between them, its backward the dual.

Names in `Stage` may be those of the representative (the copy in the first block of a run): an entry speaks for all
copies that have no entry of their own, so a plan of 126 equal layers says a layer once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .._views import Viewed
from ..cluster.model import Mesh
from ..cost.base import Collective
from ..graph.ir import Graph


@dataclass(frozen=True, slots=True)
class Cut:
    """Along mesh axis `axis`.

    weights () = blocks of ceil(size / n), the last may be short or empty; otherwise part i ends at
    round(size · sum(weights[: i + 1]) / sum(weights)).
    """

    axis: str
    weights: tuple[int, ...] = ()


SubDim: TypeAlias = tuple[int, tuple[Cut, ...]]
"""(size, cuts): size 0 stands for the whole dim."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Of one tensor on one mesh: per dim its sub-dimensions, major first, each with its cuts (order matters).

    Axes not named hold copies. `partial` axes hold unreduced sums. ((3, ()), (64, (tp,))) is a fused QKV weight,
    ((4, (dp,)), (16, (tp,))) a flattened batch × sequence.
    """

    dims: tuple[tuple[SubDim, ...], ...]
    partial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpSharding:
    """How an op computes: factor -> cuts, major first. Each axis at most once per op; unnamed axes compute copies."""

    cuts: Mapping[str, tuple[Cut, ...]] = field(default_factory=dict)
    variant: str = ""
    kept: tuple[str, ...] = ()
    """Operands whose gathered copy stays until the backward; all others rest and are gathered again."""
    backward: Mapping[int, Mapping[str, tuple[Cut, ...]]] = field(default_factory=dict)
    """Operand, counted from 0 -> factor -> cuts: how the gradient of that operand is computed. Missing = the dual: as the op
    itself is cut. Products compute each of their gradients alone, other ops all of them alike."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Of one parameter. Each None means "as the one before": ZeRO-1 sets state, ZeRO-2 grad too, ZeRO-3 param too."""

    param: Layout | None = None
    grad: Layout | None = None
    state: Layout | None = None
    home: tuple[int, ...] = ()
    resident: float = 1.0


@dataclass(frozen=True, slots=True)
class SumStep:
    kind: Collective
    axes: tuple[str, ...]
    at_zero: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SumProgram:
    """How sums over `axes` of this stage's mesh are carried out; none = the cost model's best single algorithm."""

    axes: tuple[str, ...]
    steps: tuple[SumStep, ...]


RecomputeAt = Literal["block", "stage"]
AS_VALUES: Mapping[str, Layout] = {}
"""Gradients that all rest as their activations do: one object, as lowering knows equal stages by their tables."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Ops that share a mesh."""

    ops: tuple[str, ...]
    """In program order. "model.layers[4:12]" stands for all ops of blocks 4 … 11 of that run; other entries are op names."""
    mesh: Mesh
    shardings: Mapping[str, OpSharding] = field(default_factory=dict)
    """Op -> how it computes; missing = copies everywhere."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Activation at rest, own or arriving; missing = as produced, with its sums completed."""
    storage: Mapping[str, Storage] = field(default_factory=dict)
    recompute: frozenset[str] = frozenset()
    """Ops run again before the backward of their block."""
    keep_last: int = 0
    """Of the last `keep_last` micro-batches of a step nothing in `recompute` runs again: what they make is kept."""
    offload: frozenset[str] = frozenset()
    deal: str = ""
    pipe: int = 0
    sums: tuple[SumProgram, ...] = ()
    recompute_at: RecomputeAt = "block"
    """stage: all recomputed ops of the stage run again as one group, so that of a stage recomputed whole only its input
    waits for the backward (GPipe's cells)."""
    recompute_blocks: int = 0
    """Of this stage's blocks only the first so many run again; 0 = all."""
    gradients: Mapping[str, Layout] = field(default_factory=lambda: AS_VALUES)
    """Activation -> how its gradient rests, complete; missing = as the activation does."""


@dataclass(frozen=True, slots=True)
class Weights:
    """When weights change and which version is read. Defaults = synchronous."""

    flush: bool = True
    update_every: int = 0
    reads: Literal["newest", "previous", "entry"] = "newest"
    stash: bool = True
    sync_every: int = 0
    distance: int = 0


ActionKind = Literal["F", "B", "I", "W", "UPDATE", "REDUCE", "GATHER", "FREE", "RUN", "SEND", "RECV", "LOAD", "EVICT"]


@dataclass(frozen=True, slots=True)
class Action:
    """F B I W UPDATE REDUCE GATHER FREE: `on` = stage index. RUN: op. SEND RECV LOAD EVICT: tensor. Text: "2F3"."""

    kind: ActionKind
    on: int | str
    micro_batch: int = 0
    span: int = 1
    peer: int = -1


@dataclass(frozen=True, slots=True)
class Row:
    """What these devices run, alike, in order. A pair runs jointly (DualPipe)."""

    devices: tuple[int, ...]
    """Positions: the row's rank in the pipeline (0 … p−1) for generated schedules, devices for custom ones."""
    actions: tuple[Action | tuple[Action, Action], ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """name + args rebuild the rows; rows are stored for "custom" only. "dataflow" = no rows: ready ops run."""

    name: str = "dataflow"
    micro_batches: int = 1
    args: Mapping[str, int | float | str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    weights: Weights = Weights()


InputLike: TypeAlias = tuple[tuple[int, ...], str]
"""(shape, dtype) of one input of a model; a dim of -k holds k elements a sample."""


@dataclass(frozen=True, slots=True)
class Plan(Viewed):
    graph: str
    """Digest of the graph it speaks of."""
    samples: int
    """Per optimizer step, all pipes and replicas together."""
    stages: tuple[Stage, ...]
    """Position = stage index in actions."""
    schedule: Schedule = Schedule()
    frozen: frozenset[str] = frozenset()
    cached: frozenset[str] = frozenset()
    rewritten: Graph | None = None
    inputs: Mapping[str, InputLike] = field(default_factory=dict, compare=False)
    """What the model is fed, in order: enough to capture it again from the module alone. No part of the decision."""
    precision: str = field(default="", compare=False)
    """What the plan was priced in: a dtype such as "bfloat16"; "" = not known."""
    folder: str = field(default="", compare=False)
    """Where it was read from; not written."""


@dataclass(frozen=True, slots=True)
class Move:
    """One piece of a parameter that a device must get when one plan replaces another (re-planning, resuming)."""

    tensor: str
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    """Indices lo <= i < hi of the whole tensor."""
    src: int
    dst: int
    nbytes: float
    part: Literal["param", "state"] = "param"
    """The parameter as used, or its master copy and optimizer state."""
