"""An op whose gradients are computed apart (lower/apart.py): one function of autograd that carries out what the program says.

    forward    the op's own call on its local operands, then the instructions that bring its results to rest
    backward   the op's backward list: values re-laid, gradients from them, each brought to where it goes

It saves what the list reads of the forward, as it rests or as the op read it. Where a gradient rests apart, what it is the
gradient of (lower/joined.py) is among the operands or the results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...lower.apart import alone
from ...lower.joined import joint
from ...lower.program import GRAD, Instr
from ...plan.layout import local_shape
from ..ranks.collectives import apply
from .gradients import Gradient, by_product, by_running_again
from .site import Local, Moment, Site

Localise: TypeAlias = Callable[[Site], Local]


def apart(site: Site, localise: Localise) -> Local:
    """The op as it computes, its gradients apart. `localise`: the local form of an op whose gradients are not."""
    op = _Op(site, localise)
    return lambda operands, moment: _Apart.apply(op, moment, *operands)  # type: ignore[no-untyped-call]


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: _Op, moment: Moment, *operands: Tensor) -> tuple[Tensor, ...]:
        results = op.forward(operands, moment)
        named = dict(zip((*op.inputs, *op.outputs), (*operands, *results), strict=True))
        ctx.save_for_backward(*(named[name] for name in op.saved))
        ctx.op, ctx.moment = op, moment
        ctx.mark_non_differentiable(*(x for x in results if not x.is_floating_point()))
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.op.backward(grads, ctx.saved_tensors, ctx.moment))


class _Op:
    """One op on one rank."""

    def __init__(self, site: Site, localise: Localise) -> None:
        self.site, self.call = site, localise(_itself(site))
        own = joint(site.instr, site.completes, site.apart)
        self.inputs, self.outputs = own.inputs, own.outputs
        self.entering = [self.outputs.index(name.removeprefix(GRAD)) for name in own.entering]
        """Results whose gradient is read."""
        made = {name for i in site.apart for name in i.outputs}
        read = dict.fromkeys(name for i in site.apart for name in i.inputs if name not in made)
        self.saved = [name for name in read if not name.startswith(GRAD)]
        self.homes = {name: i for i in reversed(site.apart) for name in i.inputs if name in own.entering}
        """Gradient of a result -> the first instruction that reads it."""
        make = by_product if alone(site.op) else lambda s, i: by_running_again(s, i, localise)
        self.gradients: Mapping[int, Gradient] = {id(i): make(site, i) for i in site.apart if i.kind == "compute"}

    def forward(self, operands: Sequence[Tensor], moment: Moment) -> tuple[Tensor, ...]:
        found = self.call(list(operands[: len(self.site.op.inputs)]), moment)
        values = dict(zip(self.site.instr.outputs, found, strict=True))
        for i in self.site.completes:
            values[i.outputs[0]] = self._moved(i, values[i.inputs[0]])
        like = found[0]
        return tuple(values[name] if name in values else self._home(name, like) for name in self.outputs)

    def _home(self, name: str, like: Tensor) -> Tensor:
        """What the gradient of a result that rests apart is the gradient of."""
        i = self.homes[GRAD + name]
        k = i.arriving[i.inputs.index(GRAD + name)] if i.kind == "compute" else 0
        layout = i.before if i.before is not None else i.results[k]
        t = self.site.op.outputs[k] if i.kind == "compute" else i.on
        shape = local_shape(layout, self.site.graph.tensor[t].shape, self.site.view.mesh, self.site.view.coords)
        return like.new_zeros(()).expand(shape)

    def backward(self, grads: Sequence[Tensor], saved: Sequence[Tensor], moment: Moment) -> list[Tensor | None]:
        """Per operand of the forward: its gradient; of several of the same name the first has all of it."""
        values = {GRAD + self.outputs[k]: grads[k] for k in self.entering}
        values.update(zip(self.saved, saved, strict=True))
        for i in self.site.apart:
            if i.kind == "stat":
                continue  # carried out by what is computed again
            operands = [values[name] for name in i.inputs]
            gradient = self.gradients.get(id(i))
            made = gradient(operands, moment) if gradient is not None else [self._moved(i, operands[0])]
            for name, x in zip(i.outputs, made, strict=True):
                values[name] = values[name] + x if name in values else x
        return [values.pop(GRAD + name, None) for name in self.inputs]

    def _moved(self, instr: Instr, x: Tensor) -> Tensor:
        return apply(instr, x, self.site.graph.tensor[instr.on].shape, self.site.view)


def _itself(site: Site) -> Site:
    """The op as its forward computes it; the statistics of the backward are those of its gradients."""
    return replace(site, completes=(), apart=(), backward=())
