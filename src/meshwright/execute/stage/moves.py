"""Conversions of a segment as functions of autograd: forward the instruction, backward its dual of the program.

    forward    v ──step──▶ w            backward    ∂v ◀──dual── ∂w

A value whose conversion has no dual carries no gradient. Steps and duals pair by their ends: a way from v to w may take
several instructions in one direction and one in the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ExecutionError
from ...lower.program import APART, GRAD, INSIDE, Instr, Segment
from ..ranks.collectives import apply
from ..ranks.mesh_groups import MeshView

LOCAL = frozenset({"compute"}) | INSIDE


@dataclass(frozen=True, slots=True)
class Move:
    source: str
    target: str
    steps: tuple[Instr, ...]
    duals: tuple[Instr, ...]
    """Empty: no gradient flows."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    home: str = ""
    """The value whose gradient the duals make, where that of the source rests apart."""

    @property
    def carries(self) -> bool:
        return bool(self.duals)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.source, self.home) if self.home else (self.source,)

    @property
    def carrying(self) -> str:
        """The value to which the gradient flows."""
        return self.home or self.source

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs

    def forward(self, x: Tensor, view: MeshView) -> Tensor:
        return self._through(self.steps, x, view)

    def backward(self, grad: Tensor, view: MeshView) -> Tensor:
        return self._through(self.duals, grad, view)

    def _through(self, instrs: Iterable[Instr], x: Tensor, view: MeshView) -> Tensor:
        for instr in instrs:
            x = apply(instr, x, self.shape, view)
        return x

    def run(self, x: Tensor, carries: Tensor, view: MeshView, done: set[str]) -> Tensor:
        """With gradient, to `carries`: the source or its home. `done`: gets the target's name when the duals have run."""
        still = all(i.kind == "identity" or (i.kind != "home" and view.size(i.axes) == 1) for i in self._all)
        if still and carries is x:
            done.add(self.target)
            return x
        return _Moved.apply(carries, x.detach(), self, view, done)  # type: ignore[no-any-return, no-untyped-call]

    @property
    def _all(self) -> tuple[Instr, ...]:
        return (*self.steps, *self.duals)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carries: Tensor, x: Tensor, move: Move, view: MeshView, done: set[str]) -> Tensor:
        ctx.move, ctx.view, ctx.done = move, view, done
        out = move.forward(x, view)
        return out.view_as(out) if out is x else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        ctx.done.add(ctx.move.target)
        return ctx.move.backward(grad, ctx.view), None, None, None, None


def moves_of(segment: Segment, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Move]:
    """Value -> the move that makes it. `shapes`: whole, by tensor.

    Raises:
        ExecutionError: the duals in the backward list lead elsewhere than the steps in the forward list.
    """
    into = {i.outputs[0]: i for i in segment.forward if i.kind not in LOCAL}
    out_of = {i.inputs[0]: i for i in segment.backward if i.kind not in LOCAL}
    known = {n for i in segment.forward for n in (*i.inputs, *i.outputs)}
    found: dict[str, Move] = {}
    for target, last in into.items():
        duals = tuple(_chain(GRAD + target, out_of, known))
        if duals:
            steps, end = [last], duals[-1].outputs[0].removeprefix(GRAD)
            if end.endswith(APART):  # its steps in front of the last have no duals of their own
                found[target] = Move(last.inputs[0], target, (last,), duals, shapes[last.on], end)
                continue
            while steps[0].inputs[0] != end:
                if steps[0].inputs[0] not in into:
                    raise ExecutionError(
                        f'the gradient of "{target}" goes to "{end}", of which it is not made: the program is damaged'
                    )
                steps.insert(0, into[steps[0].inputs[0]])
            found[target] = Move(end, target, tuple(steps), duals, shapes[last.on])
    passed = {s.outputs[0] for m in found.values() for s in m.steps[:-1]} - set(found)
    for target, last in into.items():
        if target not in found and target not in passed:
            found[target] = Move(last.inputs[0], target, (last,), (), shapes[last.on])
    return found


def _chain(grad: str, out_of: dict[str, Instr], known: set[str]) -> Iterator[Instr]:
    """Duals from a value's gradient to that of the first value that the forward list knows."""
    while grad in out_of:
        instr = out_of[grad]
        yield instr
        grad = instr.outputs[0]
        if grad.removeprefix(GRAD) in known:
            return
