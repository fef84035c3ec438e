"""Kinds with statistics (softmax, norms, losses) when the dims of a statistic are cut: local parts plus small all-reduces.

The all-reduces are those of the program, taken in its order: forward ones complete maxima, sums and counts, backward ones
complete the inner products of the gradient. Uncut, each kind runs as captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...errors import Unsupported
from ...graph.ir import Slot
from ...plan.layout import interval
from .ranges import must_be_below
from .running import RunningPart
from .site import Local, Moment, Site

IGNORED = -100
"""torch's default label that counts for nothing."""
NONE, MEAN = 0, 1
"""torch's enumeration of reductions."""


def _statistics_cut(site: Site) -> bool:
    """Whether some stat factor of the op is cut over an axis of more than one member."""
    cut = {name for name, cuts in site.instr.cuts if any(site.view.mesh.size(c.axis) > 1 for c in cuts)}
    return any(site.op.rule.factor(name).kind == "stat" for name in cut)


# ------------------------------------------------------------------ softmax


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: torch's own kernels keep statistics of bfloat16 so too."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor, dim: int, logarithm: bool, site: Site) -> Tensor:
        x = _wide(given)
        shifted = x - site.complete(_maximum(x, dim), "forward", "max")
        total = site.complete(shifted.exp().sum(dim, keepdim=True), "forward", "sum")
        out = (shifted - total.log() if logarithm else shifted.exp() / total).to(given.dtype)
        ctx.save_for_backward(out)
        ctx.dim, ctx.logarithm, ctx.site = dim, logarithm, site
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (out,) = ctx.saved_tensors
        dtype, out, grad = out.dtype, _wide(out), _wide(grad)
        inner = grad if ctx.logarithm else grad * out
        total = ctx.site.complete(inner.sum(ctx.dim, keepdim=True), "backward", "sum")
        found = grad - out.exp() * total if ctx.logarithm else out * (grad - total)
        return found.to(dtype), None, None, None


def _maximum(x: Tensor, dim: int) -> Tensor:
    """Over `dim`, kept; the lowest number where the own part is empty."""
    if x.shape[dim] == 0:
        shape = list(x.shape)
        shape[dim] = 1
        return x.new_full(shape, torch.finfo(x.dtype).min)
    return x.amax(dim, keepdim=True)


def _softmax(site: Site, logarithm: bool) -> Local:
    if not _statistics_cut(site):
        return site.plain()
    dim = int(site.arg(1, "dim", -1))  # type: ignore[arg-type]
    return lambda operands, moment: (_Softmax.apply(operands[0], dim, logarithm, site),)  # type: ignore[no-untyped-call]


def softmax(site: Site) -> Local:
    return _softmax(site, logarithm=False)


def log_softmax(site: Site) -> Local:
    return _softmax(site, logarithm=True)


# -------------------------------------------------------------------- norms


class _Standardise(torch.autograd.Function):
    """(x − mean) / sqrt(variance + eps) over `dims` of `count` elements in all parts; without the mean for rms norms.

    `told`: gets the mean and the unbiased variance.
    """

    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor,
        dims: tuple[int, ...],
        count: int,
        eps: float,
        mean: bool,
        site: Site,
        told: Callable[[Tensor, Tensor], None] | None,
    ) -> Tensor:
        x = _wide(given)
        middle = None
        if mean:
            middle = site.complete(x.sum(dims, keepdim=True), "forward", "sum", 0) / count
            x = x - middle
        square = site.complete((x * x).sum(dims, keepdim=True), "forward", "sum", int(mean)) / count
        if told is not None and middle is not None:
            told(middle.flatten(), square.flatten() * (count / (count - 1)))
        scale = torch.rsqrt(square + eps)
        out = (x * scale).to(given.dtype)
        ctx.save_for_backward(out, scale)
        ctx.dims, ctx.count, ctx.mean, ctx.site = dims, count, mean, site
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        out, scale = ctx.saved_tensors
        dtype, out, grad = out.dtype, _wide(out), _wide(grad)
        inner = (grad * out).sum(ctx.dims, keepdim=True)
        found = grad - out * (ctx.site.complete(inner, "backward", "sum", 0) / ctx.count)
        if ctx.mean:
            total = ctx.site.complete(grad.sum(ctx.dims, keepdim=True), "backward", "sum", 1)
            found = found - total / ctx.count
        return (found * scale).to(dtype), None, None, None, None, None, None


def _normed(site: Site, mean: bool) -> Local:
    sizes = site.arg(1, "normalized_shape", ())
    rank = len(site.shape(0))
    first = rank - (len(sizes) if isinstance(sizes, tuple) else 1)
    if not _statistics_cut(site):
        return site.plain()
    dims, count = tuple(range(first, rank)), prod(site.shape(0)[first:])
    weight = site.arg(2, "weight", None)
    bias = site.arg(3, "bias", None) if mean else None
    eps = site.arg(4, "eps", 1e-5) if mean else site.arg(3, "eps", None)
    width = torch.finfo(getattr(torch, site.graph.tensor[site.op.inputs[0]].dtype)).eps
    small = width if eps is None else float(eps)  # type: ignore[arg-type]

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        out = _Standardise.apply(operands[0], dims, count, small, mean, site, None)  # type: ignore[no-untyped-call]
        if isinstance(weight, Slot):
            out = out * operands[weight.index]
        if isinstance(bias, Slot):
            out = out + operands[bias.index]
        return (out,)

    return call


def layer_norm(site: Site) -> Local:
    return _normed(site, mean=True)


def rms_norm(site: Site) -> Local:
    return _normed(site, mean=False)


def batch_norm(site: Site) -> Local:
    """Statistics over the samples of all parts; those that keep running ones tell of them, and read them while evaluating."""
    kept = site.running
    whole = not _statistics_cut(site)
    empty = not site.local_operand(0)[1]  # torch refuses to norm no channels
    if kept is not None and site.evaluating:
        return _normed_as_before(site, kept)
    if whole and not empty:
        return site.plain() if kept is None else _told(site, kept)
    shape = site.shape(0)
    dims, count = (0, *range(2, len(shape))), prod(shape) // shape[1]
    eps = float(site.arg(7, "eps", 1e-5))  # type: ignore[arg-type]
    slots = [site.arg(1, "weight"), site.arg(2, "bias")]

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        x = operands[0]
        told = partial(kept.record, moment) if kept is not None else None
        if whole and kept is not None:
            kept.record(moment, *kept.scratch())
        out = x if whole else _Standardise.apply(x, dims, count, eps, True, site, told)  # type: ignore[no-untyped-call]
        weight, bias = (operands[s.index] if isinstance(s, Slot) else None for s in slots)
        along = (1, -1, *([1] * (len(shape) - 2)))
        if weight is not None:
            out = out * weight.reshape(along)
        if bias is not None:
            out = out + bias.reshape(along)
        return (out,)

    return call


def _told(site: Site, kept: RunningPart) -> Local:
    """The captured call, which leaves the statistics of its micro-batch alone in buffers of its own."""
    n = len(site.op.inputs)
    plain = site.plain(_3=Slot(n), _4=Slot(n + 1), _6=1.0)

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        mean, var = kept.scratch()
        out = plain([*operands, mean, var], moment)
        kept.record(moment, mean, var)
        return out

    return call


def _normed_as_before(site: Site, kept: RunningPart) -> Local:
    """With the running statistics, as torch does in evaluation mode: every element alone."""
    eps = float(site.arg(7, "eps", 1e-5))  # type: ignore[arg-type]
    slots = [site.arg(1, "weight"), site.arg(2, "bias")]

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        x = operands[0]
        weight, bias = (operands[s.index] if isinstance(s, Slot) else None for s in slots)
        if not x.numel():
            return (x.clone(),)
        return (torch.nn.functional.batch_norm(x, kept.mean, kept.var, weight, bias, False, 0.0, eps),)

    return call


def group_norm(site: Site) -> Local:
    """Statistics over the space, and the channels of a group, of all parts."""
    whole = site.shape(0)[1]
    groups = int(site.arg(1, "num_groups", 1))  # type: ignore[arg-type]
    cuts = next((c for name, c in site.instr.cuts if name == "groups"), ())
    own = interval(groups, cuts, site.view.mesh, site.view.coords)[1]
    if not _statistics_cut(site):
        return site.plain(_1=max(1, own))  # torch takes no groups of nothing
    return _standard_by_group(site, own, whole // groups, 2, float(site.arg(4, "eps", 1e-5)))  # type: ignore[arg-type]


def instance_norm(site: Site) -> Local:
    """Statistics over the space of all parts."""
    if not _statistics_cut(site):
        return site.plain()
    return _standard_by_group(site, site.local_operand(0)[1], 1, 1, float(site.arg(7, "eps", 1e-5)))  # type: ignore[arg-type]


def _standard_by_group(site: Site, groups: int, channels: int, weight: int, eps: float) -> Local:
    """x[N, C, …] seen as [N, groups, channels of a group, …]. `weight`: position of the weight, the bias behind it."""
    shape = site.shape(0)
    dims, count = tuple(range(2, len(shape) + 1)), channels * prod(shape[2:])
    slots = [site.arg(weight, "weight"), site.arg(weight + 1, "bias")]
    along = (1, -1, *([1] * (len(shape) - 2)))

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        x = operands[0]
        parts = x.reshape(x.shape[0], groups, x.shape[1] // max(1, groups), *x.shape[2:])
        out = _Standardise.apply(parts, dims, count, eps, True, site, None).reshape(x.shape)  # type: ignore[no-untyped-call]
        scale, shift = (operands[s.index].reshape(along) if isinstance(s, Slot) else None for s in slots)
        out = out if scale is None else out * scale
        return (out if shift is None else out + shift,)

    return call


# ------------------------------------------------------------------- losses


class _TokenLosses(torch.autograd.Function):
    """log Σ exp(logits) − logit of the label, per token, with classes cut: [samples, own classes, …], [samples, …] -> [samples, …]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, start: int, site: Site) -> Tensor:
        shifted = logits - site.complete(_maximum(logits, 1), "forward", "max")
        exponentials = shifted.exp()
        own = labels - start
        other = (own < 0) | (own >= logits.shape[1])
        own = own.masked_fill(other, 0)
        if logits.shape[1]:
            picked = shifted.gather(1, own.unsqueeze(1)).squeeze(1).masked_fill(other, 0)
        else:
            picked = logits.new_zeros(labels.shape)
        total = site.complete(exponentials.sum(1), "forward", "sum", 0)
        picked = site.complete(picked, "forward", "sum", 1)
        ctx.save_for_backward(exponentials / total.unsqueeze(1), own, other)
        return total.log() - picked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, own, other = ctx.saved_tensors
        found = probabilities.clone()
        if found.shape[1]:
            found.scatter_add_(1, own.unsqueeze(1), -(~other).to(found.dtype).unsqueeze(1))
        return found * grad.unsqueeze(1), None, None, None


def cross_entropy(site: Site) -> Local:
    """Cross entropy and negative log-likelihood. A mean divides by the count of labels in ALL parts."""
    likelihood = site.op.kind.startswith("nll")
    reduction = int(site.arg(3, "reduction", MEAN))  # type: ignore[arg-type]
    ignored = int(site.arg(4, "ignore_index", IGNORED))  # type: ignore[arg-type]
    rank = len(site.shape(0))
    place = 1 if rank > 1 else 0
    classes = _statistics_cut(site)
    tokens = any(site.operand_cut(0, d) for d in range(rank) if d != place)
    if not classes and (not tokens or reduction == NONE):
        return site.plain()
    if rank == 1 and classes:
        raise Unsupported(
            f"{site.op.name} cuts the classes of a loss of one token: give it a dim of tokens, or keep them whole",
            reason="statistic",
        )
    weight = site.arg(2, "weight", None)
    start = site.start(0, place) if classes else 0
    loss = torch.nn.functional.nll_loss if likelihood else torch.nn.functional.cross_entropy
    smoothing = {} if likelihood else {"label_smoothing": float(site.arg(5, "label_smoothing", 0.0) or 0.0)}  # type: ignore[arg-type]
    count = tokens and reduction == MEAN

    def call(operands: list[Tensor], moment: Moment) -> Sequence[Tensor]:
        logits, labels = operands[0], operands[1]
        weights = operands[weight.index] if isinstance(weight, Slot) else None
        if labels.is_floating_point():  # class probabilities: every token counts
            kept = labels.new_ones(labels.shape[:place] + labels.shape[place + 1 :])
            total = kept.sum()
        else:
            kept = labels != ignored
            total = kept.sum() if weights is None else (weights[labels.clamp_min(0)] * kept).sum(dtype=torch.float64)
        if classes:
            must_be_below(site.shape(0)[place], labels, f"{site.op.name}: labels", ignored)
            losses = _TokenLosses.apply(logits, labels, start, site) * kept  # type: ignore[no-untyped-call]
            out = losses if reduction == NONE else losses.sum()
        else:
            how = "none" if reduction == NONE else "sum"
            out = loss(logits, labels, weight=weights, ignore_index=ignored, reduction=how, **smoothing)  # type: ignore[arg-type]
        if reduction == MEAN:
            out = out / (site.complete(total, "forward", "count") if count else total).to(out.dtype)
        return (out, total.to(out.dtype))[: len(site.op.outputs)]

    return call
