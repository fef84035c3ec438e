"""One op of a stage on one rank: what its local form depends on, and how its recorded call is made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ...errors import ExecutionError
from ...graph.ir import Arg, Graph, Op, Slot
from ...lower.program import Instr
from ...plan.layout import interval, local_shape
from ...plan.model import Layout
from ..ranks.collectives import all_reduce, atoms
from ..ranks.mesh_groups import MeshView
from .randomness import later_key, stream

if TYPE_CHECKING:
    from .running import RunningPart


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in training a call happens; random numbers depend on it. Scalar tensors in compiled graphs."""

    step: int | Tensor
    micro_batch: int | Tensor


Local: TypeAlias = Callable[[list[Tensor], Moment], Sequence[Tensor]]
"""The op on local operands: its results."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A torch operator with its arguments; `Slot(k)` stands for operand k."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: int
    """How many of the operator's results count."""

    def __call__(self, operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        args = (filled(a, operands) for a in self.args)
        out = self.target(*args, **{k: filled(a, operands) for k, a in self.kwargs.items()})
        return (out,) if isinstance(out, Tensor) else tuple(out)[: self.results]


@dataclass(frozen=True)
class Site:
    op: Op
    instr: Instr
    graph: Graph
    view: MeshView
    device: torch.device
    forward: tuple[Instr, ...] = ()
    """The collectives inside its forward, in program order."""
    backward: tuple[Instr, ...] = ()
    completes: tuple[Instr, ...] = ()
    """Where its gradients are computed apart: what brings its result to rest, and its backward list."""
    apart: tuple[Instr, ...] = ()
    seed: int = 0
    dropout: bool = True
    running: RunningPart | None = None
    """Statistics that the op leaves behind while training, and reads while evaluating."""
    evaluating: bool = False

    def shape(self, operand: int) -> tuple[int, ...]:
        """Of the whole operand."""
        return self.graph.tensor[self.op.inputs[operand]].shape

    def result_shape(self, result: int = 0) -> tuple[int, ...]:
        return self.graph.tensor[self.op.outputs[result]].shape

    def local_result(self, result: int = 0) -> tuple[int, ...]:
        return local_shape(self.instr.results[result], self.result_shape(result), self.view.mesh, self.view.coords)

    def local_operand(self, operand: int) -> tuple[int, ...]:
        return local_shape(self.instr.operands[operand], self.shape(operand), self.view.mesh, self.view.coords)

    def cut(self, layout: Layout, dim: int) -> bool:
        """Whether a dim is cut over an axis of more than one member."""
        return any(self.view.mesh.size(c.axis) > 1 for _, cuts in layout.dims[dim] for c in cuts)

    def operand_cut(self, operand: int, dim: int) -> bool:
        return self.cut(self.instr.operands[operand], dim)

    def start(self, operand: int, dim: int) -> int:
        """Global index of the first own element of a dim of one sub-dimension (cut in one piece)."""
        subs = self.instr.operands[operand].dims[dim]
        if len([n for n, _ in subs if n != 1]) > 1 and self.operand_cut(operand, dim):
            raise ExecutionError(f"dim {dim} of operand {operand} of {self.op.name} is cut in several pieces")
        n, cuts = next(((n, c) for n, c in subs if n != 1), (1, ()))
        return interval(n or self.shape(operand)[dim], cuts, self.view.mesh, self.view.coords)[0]

    def arg(self, position: int, name: str, default: Arg = None) -> Arg:
        return self.op.arg(position, name, default)

    @cached_property
    def target(self) -> torch._ops.OpOverload:
        """The torch operator that the op's call names."""
        from ...graph import dispatch  # noqa: F401  (its operators are torch's once it is loaded)

        try:
            namespace, *path = self.op.call.split(".")
            return reduce(getattr, path, getattr(torch.ops, namespace))
        except (AttributeError, ValueError) as error:
            raise ExecutionError(f'{self.op.name} calls "{self.op.call}", which this torch does not have') from error

    def plain(self, **replaced: Any) -> Recorded:
        """The call as it was captured, on local operands. `replaced`: "1" for a positional, a name for a keyword argument."""
        values = [self.decoded(a) for a in self.op.args]
        named = {name: self.decoded(a) for name, a in self.op.kwargs}
        for key, value in replaced.items():
            if key.startswith("_"):
                values[int(key[1:])] = value
            else:
                named[key] = value
        if not self.op.inputs and any(a.name == "device" for a in self.target._schema.arguments):
            named["device"] = self.device  # captured without one: where torch happened to be
        return Recorded(self.target, tuple(values), named, len(self.op.outputs))

    def decoded(self, value: Arg) -> Any:
        """Strings that name torch's enumerations become those; devices become this rank's."""
        if isinstance(value, str):
            if value.startswith("torch."):
                return getattr(torch, value.removeprefix("torch."))
            if value in ("cpu", "meta") or value.startswith("cuda"):
                return self.device
        if isinstance(value, tuple):
            return [self.decoded(v) for v in value]
        return value

    def key(self, moment: Moment) -> int | Tensor:
        """Of the random numbers that the op draws."""
        return later_key(stream(self.op.name, self.seed), moment.step, moment.micro_batch)

    def own_part(self, whole: Tensor, layout: Layout) -> Tensor:
        """This rank's part of a whole tensor."""
        return own_part(whole, layout, self.view)

    def statistic(self, phase: str, reduction: str, k: int = 0) -> tuple[Instr, ...]:
        """The all-reduces (one an axis) that complete the k-th statistic of its kind.

        Raises:
            ExecutionError: the program holds none although the factor is cut.
        """
        found: dict[tuple[str, ...], list[Instr]] = {}
        for instr in self.forward if phase == "forward" else self.backward:
            if instr.op == reduction:
                found.setdefault(instr.axes, []).append(instr)
        if any(len(instrs) <= k for instrs in found.values()) or not found:
            raise ExecutionError(f"the program has no {phase} all-reduce number {k} ({reduction}) for {self.op.name}")
        return tuple(instrs[k] for instrs in found.values())

    def complete(self, x: Tensor, phase: str, reduction: str, k: int = 0) -> Tensor:
        """`x` reduced over the members that hold the other parts of a cut factor."""
        for instr in self.statistic(phase, reduction, k):
            x = all_reduce(x, instr.axes, self.view, "max" if reduction == "max" else "sum")
        return x


def own_part(whole: Tensor, layout: Layout, view: MeshView) -> Tensor:
    """The part of a whole tensor that this rank holds under `layout`."""
    flat = atoms(layout, whole.shape)
    x = whole.reshape([n for n, _ in flat])
    for dim, (n, cuts) in enumerate(flat):
        x = x.narrow(dim, *interval(n, cuts, view.mesh, view.coords))
    return x.reshape(local_shape(layout, whole.shape, view.mesh, view.coords))


def filled(value: Any, operands: Sequence[Any]) -> Any:
    if isinstance(value, Slot):
        return operands[value.index]
    if isinstance(value, list):
        return [filled(v, operands) for v in value]
    return value
