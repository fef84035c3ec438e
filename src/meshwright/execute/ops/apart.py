"""An op whose gradients are computed apart (lower/apart.py): one function of autograd that carries out what the program says.

    forward    the op's own call on its local operands, then the instructions that bring its result to rest
    backward   the op's backward list: values re-laid, one local product for each gradient, each brought to where it goes

It saves what the list reads of the forward, as it rests or as the op read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor

from ...lower.apart import others
from ...lower.program import GRAD, Instr
from ...plan.layout import local_shape
from ..ranks.collectives import apply
from .site import Local, Moment, Recorded, Site
from .windows import convolution


def apart(site: Site, call: Local) -> Local:
    """`call`: the op as it computes, its gradients apart."""
    op = _Op(site, call)
    return lambda operands, moment: (_Apart.apply(op, moment, *operands),)  # type: ignore[no-untyped-call]


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: _Op, moment: Moment, *operands: Tensor) -> Tensor:
        ctx.save_for_backward(*(operands[k] for k in op.saved))
        ctx.op = op
        return op.forward(operands, moment)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.op.backward(grad, ctx.saved_tensors))


class _Op:
    """One op on one rank."""

    def __init__(self, site: Site, call: Local) -> None:
        self.site, self.call = site, call
        names = site.instr.inputs
        made = {name for i in site.apart for name in i.outputs}
        read = dict.fromkeys(name for i in site.apart for name in i.inputs if name not in made)
        self.enters = next(name for name in read if name.startswith(GRAD))
        """The gradient of the result at rest."""
        self.saved = [names.index(name) for name in read if name != self.enters]
        self.leaves = [GRAD + name for name in names]
        """Per operand: its gradient, if one of these is made."""
        self.products = {id(i): _gradient(site, i) for i in site.apart if i.kind == "compute"}

    def forward(self, operands: Sequence[Tensor], moment: Moment) -> Tensor:
        (x,) = self.call(list(operands[: len(self.site.op.inputs)]), moment)
        for instr in self.site.completes:
            x = self._moved(instr, x)
        return x

    def backward(self, grad: Tensor, saved: Sequence[Tensor]) -> list[Tensor | None]:
        """Per operand of the forward: its gradient; of several of the same name the first has all of it."""
        values = {self.enters: grad}
        values.update((self.site.instr.inputs[k], x) for k, x in zip(self.saved, saved, strict=True))
        for i in self.site.apart:
            operands = [values[name] for name in i.inputs]
            product = self.products.get(id(i))
            x = product(*operands) if product is not None else self._moved(i, operands[0])
            name = i.outputs[0]
            values[name] = values[name] + x if name in values else x
        return [values.pop(name, None) for name in self.leaves]

    def _moved(self, instr: Instr, x: Tensor) -> Tensor:
        return apply(instr, x, self.site.graph.tensor[instr.on].shape, self.site.view)


def _gradient(site: Site, instr: Instr) -> Callable[..., Tensor]:
    """From the gradient of the result and the operands that `others` names, all as the instruction reads them."""
    return Convolution(site, instr) if site.op.kind.startswith("conv") else Product(site, instr)


class Product:
    """The gradient of one operand of a product from that of its result and the other operands: a product, too."""

    def __init__(self, site: Site, instr: Instr) -> None:
        rule, k = site.op.rule, instr.dim
        letters = dict(zip((f.name for f in rule.factors), ascii_letters))
        whole = site.graph.tensor[site.op.inputs[k]].shape
        self.shape = local_shape(instr.operands[k], whole, site.view.mesh, site.view.coords)
        sides = [rule.results[0], *(rule.operands[j] for j in others(site.op, k))]
        terms = ["".join(letters[name] for names in dims for name in names) for dims in sides]
        own = ["".join(letters[name] for name in names) for names in rule.operands[k]]
        known = {letter for term in terms for letter in term}
        self.single = [[d for d, names in enumerate(dims) if not names] for dims in sides]
        """Per tensor that is read: dims of one element that belong to no factor."""
        self.equation = f"{','.join(terms)}->{''.join(x for x in own if x in known)}"
        self.narrow = [n if x in known else 1 for n, x in zip(self.shape, own, strict=True)]
        """The shape before it is spread over what neither the result nor another operand has."""

    def __call__(self, *values: Tensor) -> Tensor:
        laid = [x.reshape([n for d, n in enumerate(x.shape) if d not in own]) for x, own in zip(values, self.single)]
        return torch.einsum(self.equation, *laid).reshape(self.narrow).expand(self.shape).contiguous()


class Convolution:
    """The gradient of one operand of a convolution whose windows are whole: torch's own kernel for it alone."""

    def __init__(self, site: Site, instr: Instr) -> None:
        self.operand = instr.dim
        local = replace(site, instr=instr, completes=(), apart=())
        self.shapes = [local.local_operand(k) for k in range(len(site.op.inputs))]
        call = convolution(local)
        named = dict(zip(ARGUMENTS, call.args)) | dict(call.kwargs) if isinstance(call, Recorded) else {}
        rank = int(site.op.kind[4])
        self.how = [_each(named.get(name, default), rank) for name, default in DEFAULTS]
        self.groups = int(named.get("groups", 1))

    def __call__(self, grad: Tensor, *others: Tensor) -> Tensor:
        shape = self.shapes[self.operand]
        if self.operand == BIAS:
            return grad.sum([d for d in range(grad.dim()) if d != 1])
        (other,) = others
        if not (grad.numel() and other.numel() and all(shape)):  # torch refuses to convolve no channels
            return grad.new_zeros(shape)
        own = grad.new_empty(shape)  # its shape alone is asked for
        x, weight = (other, own) if self.operand else (own, other)
        stride, padding, dilation = self.how
        mask = [k == self.operand for k in range(3)]
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0] * len(stride), self.groups, mask
        )
        return found[self.operand]  # type: ignore[no-any-return]


ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Of torch's convolutions, in order."""
DEFAULTS = (("stride", 1), ("padding", 0), ("dilation", 1))
BIAS = 2


def _each(value: Any, rank: int) -> list[int]:
    found = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return found if len(found) == rank else found * rank
