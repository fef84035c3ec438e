"""One call of an operator, as the table of op kinds sees it: shapes and plain arguments, no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ..ir import ITEM_BYTES, Arg, Rule, Slot


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype ("float32") of one tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def item(self) -> int:
        return ITEM_BYTES.get(self.dtype, 4)

    @property
    def nbytes(self) -> float:
        return float(self.elements * self.item)


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments are positional or by keyword, as the op was written; `Slot(i)` stands for operand i."""

    kind: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]
    needs: tuple[bool, ...] = ()
    """Per operand: a gradient flows to it."""

    def get(self, position: int, name: str, default: Arg = None) -> Arg:
        """The argument at `position`, or called `name`, or `default`."""
        if position < len(self.args):
            return self.args[position]
        return next((value for key, value in self.kwargs if key == name), default)

    def integer(self, position: int, name: str, default: int = 0) -> int:
        value = self.get(position, name, default)
        return int(value) if isinstance(value, (int, float)) else default

    def integers(self, position: int, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A list argument; one number stands for a list of one."""
        value = self.get(position, name, default)
        if isinstance(value, tuple):
            return tuple(int(v) for v in value if isinstance(v, (int, float)))
        return (int(value),) if isinstance(value, (int, float)) else default

    def slot(self, position: int, name: str) -> int | None:
        """Which operand the argument is; None if it is no tensor."""
        value = self.get(position, name)
        return value.index if isinstance(value, Slot) else None

    def shape(self, operand: int) -> tuple[int, ...]:
        return self.operands[operand].shape

    @property
    def out(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.results[0].shape

    def need(self, operand: int | None) -> bool:
        return operand is not None and operand < len(self.needs) and self.needs[operand]


@dataclass(frozen=True, slots=True)
class Saved:
    """What autograd keeps for the backward of one call, given that a gradient flows through it."""

    operands: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    extra: float = 0.0
    """Bytes of tensors that are neither: statistics, log-sum-exp, indices."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table of op kinds."""

    name: str
    rule: Callable[[Call], Rule]
    flops: Callable[[Call], float]
    """Forward FLOPs as torch.utils.flop_counter counts them: multiply-adds of products twice, all else zero."""
    saved: Callable[[Call], Saved]
    light: bool = True
    """Element-wise, view-like, small reductions and norms: a fused kernel takes it along."""
    alias: bool = False
    """The results share the storage of operand 0."""
    differentiable: bool = True
    """A gradient flows from its floating-point results to its floating-point operands."""


def no_flops(call: Call) -> float:
    return 0.0


def keeps_nothing(call: Call) -> Saved:
    return Saved()
