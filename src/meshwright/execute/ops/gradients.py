"""How one rank computes gradients under cuts of their own, from values laid for them.

products          each gradient is a product of the gradient of the result and of the other operands; a convolution has
                  torch's own kernels for them
any other op      runs again under the cuts of its gradients and is differentiated by torch: on the values that its
                  backward keeps, zeros for what it does not keep, and with kept results in the place of those made again
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_letters
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...lower.apart import others, reads
from ...lower.halo import DATA
from ...lower.program import Instr
from .params import dtype_of
from .site import Local, Moment, Recorded, Site
from .windows import convolution

Gradient: TypeAlias = Callable[[Sequence[Tensor], Moment], Sequence[Tensor]]
"""From what an instruction reads to the gradients that it makes."""


def by_product(site: Site, instr: Instr) -> Gradient:
    """Of one operand of a product."""
    made = Convolution(site, instr) if site.op.kind.startswith("conv") else Product(site, instr)
    return lambda values, moment: (made(*values),)


class Product:
    """The gradient of one operand of a product from that of its result and the other operands: a product, too."""

    def __init__(self, site: Site, instr: Instr) -> None:
        rule, (k,) = site.op.rule, instr.targets
        letters = dict(zip((f.name for f in rule.factors), ascii_letters))
        self.shape = replace(site, instr=instr).local_operand(k)
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
    """The gradient of one operand of a convolution: torch's own kernel for it alone."""

    def __init__(self, site: Site, instr: Instr) -> None:
        (self.operand,) = instr.targets
        local = _under(site, instr)
        self.shapes = [local.local_operand(k) for k in range(len(site.op.inputs))]
        self.shapes[DATA] = _widened(local, self.shapes[DATA])
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


def by_running_again(site: Site, instr: Instr, localise: Callable[[Site], Local]) -> Gradient:
    """Of all operands of any op."""
    return _Again(site, instr, localise)


class _Again:
    def __init__(self, site: Site, instr: Instr, localise: Callable[[Site], Local]) -> None:
        op, described = site.op, site.graph.tensor
        local = _under(site, instr)
        self.call, self.device = localise(local), site.device
        self.operands, self.results = reads(site.graph, op)
        self.arriving, self.wanted = instr.arriving, instr.targets
        self.shapes = [local.local_operand(k) for k in range(len(op.inputs))]
        self.shapes[DATA] = _widened(local, self.shapes[DATA])
        self.dtypes = [dtype_of(described[t]) for t in op.inputs]

    def __call__(self, values: Sequence[Tensor], moment: Moment) -> Sequence[Tensor]:
        first, second = len(self.arriving), len(self.arriving) + len(self.operands)
        grads, kept, results = values[:first], dict(zip(self.operands, values[first:second])), values[second:]
        operands = [
            kept[k].detach() if k in kept else torch.zeros(shape, dtype=dtype, device=self.device)
            for k, (shape, dtype) in enumerate(zip(self.shapes, self.dtypes, strict=True))
        ]
        places: dict[int, Tensor] = {}

        def saved(x: Tensor) -> Tensor:
            own = places.get(x.data_ptr()) if x.numel() else None
            return own if own is not None and own.shape == x.shape else x

        with torch.enable_grad(), saved_tensors_hooks(lambda x: x, saved):
            for k in self.wanted:
                operands[k].requires_grad_()
            made = self.call(list(operands), moment)
        places.update((made[j].data_ptr(), x) for j, x in zip(self.results, results, strict=True))
        flowing = [(made[j], grad) for j, grad in zip(self.arriving, grads, strict=True) if made[j].requires_grad]
        wanted = [operands[k] for k in self.wanted]
        if not flowing:
            return [torch.zeros_like(x) for x in wanted]
        return torch.autograd.grad(
            [x for x, _ in flowing], wanted, [grad for _, grad in flowing], allow_unused=True, materialize_grads=True
        )


def _under(site: Site, instr: Instr) -> Site:
    """The op under the cuts of a gradient."""
    again = tuple(i for i in site.apart if i.kind == "stat")
    return replace(site, instr=instr, completes=(), apart=(), forward=again, running=None)


def _widened(site: Site, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The local data with the rows of neighbours."""
    rule, mesh = site.op.rule, site.view.mesh
    cut = {name for name, cuts in site.instr.cuts if any(mesh.size(c.axis) > 1 for c in cuts)}
    more = [
        sum(sum(rule.factor(f).halo) for f in names if f in cut and rule.factor(f).kind == "halo")
        for names in rule.operands[DATA]
    ]
    return tuple(n + m for n, m in zip(shape, more, strict=True))
