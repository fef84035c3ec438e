"""What is trained: operators over tensors, with the factor rule of each operator. Pure data, no torch.

Units: bytes and FLOPs. Names identify ops and tensors in plans and files; digests are over structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:  # numpy takes longer to load than a shell may wait for a completed name
    import numpy as np
    from numpy.typing import NDArray

Ints: TypeAlias = "NDArray[np.int64]"
Floats: TypeAlias = "NDArray[np.float64]"
Dims: TypeAlias = tuple[tuple[str, ...], ...]
"""Per dim of one tensor: the factors it is a product of, major first. A dim of size 1 has none."""
Phase = Literal["forward", "backward", "input_grad", "weight_grad", "update"]
Role = Literal["input", "param", "buffer", "activation", "grad", "state"]
FactorKind = Literal["free", "halo", "stat", "fixed", "opaque"]

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "complex64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Factor:
    """One axis of an op's iteration space. A factor in no result is summed over: cutting it leaves partial sums."""

    name: str
    size: int
    kind: FactorKind = "free"
    samples: bool = False
    """Its size is proportional to the samples of a micro-batch."""
    halo: tuple[int, int] = (0, 0)
    """Kind halo: elements needed from the lower and the upper neighbour."""
    sums: tuple[int, int] = (0, 0)
    """Kind stat: all-reduces forward and backward when cut, each as big as the result without this factor."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The factors of an op and, per dim of every operand and result, which of them make it up."""

    factors: tuple[Factor, ...]
    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]

    def factor(self, name: str) -> Factor:
        return next(f for f in self.factors if f.name == name)

    def summed(self) -> frozenset[str]:
        """Factors in no result: cutting one leaves the result partial. Stat factors are completed inside the op."""
        kept = {name for dims in self.results for dim in dims for name in dim}
        return frozenset(f.name for f in self.factors if f.name not in kept and f.kind != "stat")


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    nbytes: float
    """Of the whole tensor at `Graph.samples`; explicit, because imported profiles know bytes only."""
    shape: tuple[int, ...] = ()
    """() = unknown or a scalar; otherwise prod(shape) * item size == nbytes."""
    dtype: str = "float32"
    role: Role = "activation"
    frozen: bool = False
    """A parameter that computes but does not learn: no gradient, no optimizer state."""


@dataclass(frozen=True, slots=True)
class Slot:
    """In `Op.args`: the tensor `Op.inputs[index]` goes here."""

    index: int


Arg: TypeAlias = "Slot | bool | int | float | str | tuple[Arg, ...] | None"
"""Strings are enumerations of the call ("torch.float32", "mean"); tuples stand for lists."""


@dataclass(frozen=True, slots=True)
class Op:
    name: str
    """Module path + kind + occurrence: "model.layers.0.mlp.up_proj/linear". Stable under another batch or depth."""
    kind: str
    """Row of the op-kind table (aten name without overload), or the name a profile uses."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rule: Rule
    flops: float = 0.0
    """Of this op alone, forward, whole, at `Graph.samples`."""
    saved: tuple[str, ...] = ()
    """Tensors kept for its backward (derived graphs); the names of operands or results."""
    saved_extra: float = 0.0
    """Bytes kept besides `saved`: statistics, log-sum-exp, indices."""
    phase: Phase = "forward"
    of: str = ""
    """The forward op that this one is the backward or the update of (explicit graphs)."""
    module: str = ""
    """Path of the nn.Module that called it."""
    colocate: str = ""
    runs_on: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    call: str = ""
    """What re-executes it: "aten.linear.default"; empty for imported profiles."""
    args: tuple[Arg, ...] = ()
    kwargs: tuple[tuple[str, Arg], ...] = ()
    source: str = ""
    """file:line in the user's code."""

    def arg(self, position: int, name: str, default: Arg = None) -> Arg:
        """The argument at `position`, or called `name`, or `default`."""
        if position < len(self.args):
            return self.args[position]
        return next((value for key, value in self.kwargs if key == name), default)


@dataclass(frozen=True, slots=True)
class Running:
    """What a norm keeps of all that it saw while training, for evaluation: buffers of the user's module."""

    mean: str
    var: str
    count: str = ""
    """Of the updates; empty: nobody counts."""
    momentum: float = 0.1
    """Share of what is new."""


@dataclass(frozen=True, slots=True)
class Run:
    """`count` structurally equal blocks in a row: ops first … first + length·count − 1 in program order.

    Op first + b·length + k of block b is the copy of op first + k of block 0, its representative.
    """

    name: str
    """Common module path, e.g. "model.layers"."""
    first: int
    length: int
    count: int


@dataclass(frozen=True)
class Graph:
    """Ops in topological order.

    training: "derived" = forward ops only, the backward follows by duality; "explicit" = backward and update ops are
    ops; "none" = inference.
    """

    ops: tuple[Op, ...]
    tensors: tuple[Tensor, ...]
    samples: int
    training: Literal["derived", "explicit", "none"] = "derived"
    inputs: tuple[str, ...] = ()
    """Tensors of role input, in the order of the flattened example inputs."""
    outputs: tuple[str, ...] = ()
    loss: str = ""
    """The scalar that training minimises: the mean over the samples of a micro-batch."""
    runs: tuple[Run, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tied parameters: alias -> the name that `tensors` has."""
    values: Mapping[str, Ints | Floats] = field(default_factory=dict)
    """Constants whose VALUE matters (a GNN's CSR arrays; constants baked by capture)."""
    notes: tuple[str, ...] = ()
    """What capture wants said in every plan: "experts have room for every token (no-drop capacity)"."""
    digest: str = ""
    running: Mapping[str, Running] = field(default_factory=dict)
    """Op (a batch norm in training mode, which reads none of it) -> the statistics that it leaves behind."""

    def __getstate__(self) -> dict[str, object]:
        """Without what lowering keeps with a graph (`lower.memo`): its keys hold identities, which are another process's."""
        return {name: value for name, value in self.__dict__.items() if name != "_lowering"}

    @cached_property
    def tensor(self) -> Mapping[str, Tensor]:
        return {t.name: t for t in self.tensors}

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Op name -> index in `ops`."""
        return {op.name: i for i, op in enumerate(self.ops)}

    @cached_property
    def producer(self) -> Mapping[str, int]:
        """Tensor -> index of the op that makes it; inputs, parameters and buffers have none."""
        return {t: i for i, op in enumerate(self.ops) for t in op.outputs}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[tuple[int, int], ...]]:
        """Tensor -> (index of op, position among its inputs)."""
        found: dict[str, list[tuple[int, int]]] = {}
        for i, op in enumerate(self.ops):
            for k, name in enumerate(op.inputs):
                found.setdefault(name, []).append((i, k))
        return {name: tuple(uses) for name, uses in found.items()}

    @cached_property
    def representative(self) -> tuple[int, ...]:
        """Per op: the index of its copy in the first block of its run (itself outside of runs)."""
        index = list(range(len(self.ops)))
        for run in self.runs:
            for i in range(run.first, run.first + run.length * run.count):
                index[i] = run.first + (i - run.first) % run.length
        return tuple(index)

    @cached_property
    def representative_param(self) -> Mapping[str, str]:
        """Parameter -> the parameter in the same place of the first block of its run."""
        found: dict[str, str] = {}
        for i, r in enumerate(self.representative):
            for own, first in zip(self.ops[i].inputs, self.ops[r].inputs, strict=True):
                if self.tensor[own].role == "param":
                    found.setdefault(own, first)
        return found

    def params(self) -> Iterator[Tensor]:
        return (t for t in self.tensors if t.role == "param")
