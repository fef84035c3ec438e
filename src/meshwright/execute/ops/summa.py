"""A product whose operands come block by block (lower/summa.py): its broadcasts and sums are those of the program.

    forward   blocks of X and W arrive, are multiplied, added; the next ones are on their way meanwhile
    dX        blocks of W arrive; dY · Wᵀ is summed to the member where that block of X rests
    dW        blocks of X arrive; Xᵀ · dY is summed to the member where that block of W rests

Only blocks at rest are saved for the backward. Each rank multiplies matrices [rows, k_t] and [k_t, columns].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import ExecutionError
from ...lower.program import Instr
from ...lower.summa import W, X
from ...plan.layout import local_shape
from .site import Local, Site


def stepped(site: Site) -> Local:
    """The product of `site` in steps."""
    product = _Blocks(site)
    return lambda operands, moment: (_Product.apply(operands[X], operands[W], product),)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, blocks: _Blocks) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.blocks = blocks
        return blocks.product(x, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx = ctx.blocks.input_gradient(grad, x, w) if wanted[X] else None
        dw = ctx.blocks.weight_gradient(grad, x, w) if wanted[W] else None
        return dx, dw, None


@dataclass(frozen=True, slots=True)
class _Coming:
    """A block under way."""

    block: Tensor
    work: Any
    """None: it has no elements, or is there."""


class _Blocks:
    """The steps of one product on one rank."""

    def __init__(self, site: Site) -> None:
        self.site, self.view = site, site.view
        self.steps = site.instr.steps
        self._panels = {
            (i.phase, i.collective, i.dim2, i.dim): i for i in (*site.forward, *site.backward) if i.kind == "panel"
        }
        self._summed_last = site.op.rule.operands[W][-1] == site.op.rule.operands[X][-1]
        """Whether W is [columns, k], as a linear layer has it, or [k, columns]."""
        self._result = site.local_result()

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """[…, rows, columns] of this rank."""
        out: Tensor | None = None
        for a, b in self._arriving("forward", (X, x), (W, w)):
            left, right = a.reshape(-1, a.shape[-1]), self._matrix(b)
            out = left @ right if out is None else out.addmm_(left, right)
        assert out is not None
        return out.reshape(self._result)

    def input_gradient(self, grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """The own block of dX."""
        rows, found = self._rows(grad), x.new_empty(x.shape)
        for t, (block,) in enumerate(self._arriving("backward", (W, w))):
            part = rows @ self._matrix(block).t()
            if self._sum(X, t, part):
                found = part.reshape(x.shape)
        return found

    def weight_gradient(self, grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """The own block of dW; along axes that W is copied over, a part of the sum."""
        rows, found = self._rows(grad), w.new_empty(w.shape)
        for t, (block,) in enumerate(self._arriving("backward", (X, x))):
            own = block.reshape(-1, block.shape[-1])
            part = rows.t() @ own if self._summed_last else own.t() @ rows
            if self._sum(W, t, part):
                found = part
        return found

    def _rows(self, grad: Tensor) -> Tensor:
        return grad.reshape(-1, self._result[-1])

    def _matrix(self, w: Tensor) -> Tensor:
        """[k_t, columns]"""
        return w.t() if self._summed_last else w

    def _arriving(self, phase: str, *operands: tuple[int, Tensor]) -> Iterator[Sequence[Tensor]]:
        """The blocks of step after step; those of the next one are asked for before this one's are waited for."""
        coming = [self._fetch(phase, k, 0, own) for k, own in operands]
        for t in range(self.steps):
            here = coming
            if t + 1 < self.steps:
                coming = [self._fetch(phase, k, t + 1, own) for k, own in operands]
            with self.view.groups.clock.span("broadcast"):
                for one in here:
                    if one.work is not None:
                        one.work.wait()
            yield [one.block for one in here]

    def _fetch(self, phase: str, operand: int, t: int, own: Tensor) -> _Coming:
        instr = self._panel(phase, "broadcast", operand, t)
        who = self.view.members(instr.axes)
        mine = self.view.coords[instr.axes[0]] == t
        block = own.contiguous() if mine else own.new_empty(block_shape(self.site, operand, t))
        if not block.numel():
            return _Coming(block, None)
        work = dist.broadcast(block, src=who[t], group=self.view.group(instr.axes), async_op=True)
        return _Coming(block, work)

    def _sum(self, operand: int, t: int, part: Tensor) -> bool:
        """Whether `part` is now the sum, because the block rests here."""
        instr = self._panel("backward", "reduce", operand, t)
        if part.numel():
            with self.view.groups.clock.span("reduce"):
                dist.reduce(part, dst=self.view.members(instr.axes)[t], group=self.view.group(instr.axes))
        return self.view.coords[instr.axes[0]] == t

    def _panel(self, phase: str, collective: str, operand: int, t: int) -> Instr:
        try:
            return self._panels[phase, collective, operand, t]  # type: ignore[index]
        except KeyError:
            raise ExecutionError(
                f"the program has no {collective} of block {t} of operand {operand} in the {phase} of {self.site.op.name}"
            ) from None


def block_shape(site: Site, operand: int, t: int) -> tuple[int, ...]:
    """Of block t of an operand, as it lies at the other coordinates of this rank."""
    instr, graph, view = site.instr, site.graph, site.view
    axis = next(i.axes[0] for i in (*site.forward, *site.backward) if i.kind == "panel" and i.dim2 == operand)
    return local_shape(
        instr.operands[operand], graph.tensor[site.op.inputs[operand]].shape, view.mesh, {**view.coords, axis: t}
    )
