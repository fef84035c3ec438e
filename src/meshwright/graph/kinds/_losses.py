"""Losses: samples are summed over, classes are statistics."""

from __future__ import annotations

from ..ir import Rule
from .call import Call, Kind, Saved, no_flops
from .space import Names, Space, broadcast

CLASS_SUMS = (3, 0)
"""Maximum, sum of exponentials and the label's logit forward; the backward is local."""
NONE = 0
"""reduction = none, in torch's enumeration (1 mean, 2 sum)."""


def _classes(call: Call, weight: int | None, cuttable: bool) -> Rule:
    """logits[tokens, classes, …] (or [classes]) and target[tokens, …]; other operands are one weight a class."""
    space = Space()
    shape = call.shape(0)
    place = 1 if len(shape) > 1 else 0
    sums = CLASS_SUMS if cuttable else (0, 0)
    classes = space.factor("classes", shape[place], "stat" if cuttable else "fixed", sums=sums)
    names = ["tokens", *(f"s{i}" for i in range(len(shape) - 2))]
    rest = [space.factor(name, n) for name, n in zip(names, [*shape[:place], *shape[place + 1 :]])]
    logits: list[Names] = [*rest[:place], classes, *rest[place:]]
    target = rest if len(call.shape(1)) < len(shape) else logits
    operands = [logits, target]
    operands += [[classes] for i in range(2, len(call.operands)) if i == weight]
    whole = call.integer(3, "reduction", 1) == NONE
    out = rest if whole else []
    return space.rule(operands, [out, *([] for _ in call.results[1:])])


def _cross_entropy(call: Call) -> Rule:
    smoothing = call.get(5, "label_smoothing", 0.0)
    probabilities = len(call.shape(1)) == len(call.shape(0))
    plain = not smoothing and not probabilities and len(call.operands) == 2
    return _classes(call, call.slot(2, "weight"), plain)


def _nll(call: Call) -> Rule:
    return _classes(call, call.slot(2, "weight"), False)


def _elements(call: Call) -> Rule:
    """Element-wise losses: every dim is summed over, or kept with reduction = none."""
    space = Space()
    rank = max(len(spec.shape) for spec in call.operands)
    sizes = [1] * rank
    for spec in call.operands:
        for i, n in enumerate(reversed(spec.shape)):
            sizes[rank - 1 - i] = max(sizes[rank - 1 - i], n)
    dims = space.dims(sizes)
    out = dims if call.out else []
    return space.rule([broadcast(dims, spec.shape) for spec in call.operands], [out])


def _cross_entropy_saved(call: Call) -> Saved:
    """Log-probabilities, the target and the total weight."""
    logits = call.operands[0]
    return Saved(operands=(1, *range(2, len(call.operands))), extra=logits.nbytes + logits.item)


def _nll_saved(call: Call) -> Saved:
    return Saved(operands=tuple(range(len(call.operands))), extra=float(call.operands[0].item))


def _all(call: Call) -> Saved:
    return Saved(operands=tuple(range(len(call.operands))))


KINDS = (
    Kind("cross_entropy_loss", _cross_entropy, no_flops, _cross_entropy_saved, light=False),
    Kind("nll_loss", _nll, no_flops, _nll_saved, light=False),
    Kind("nll_loss_nd", _nll, no_flops, _nll_saved, light=False),
    Kind("nll_loss2d", _nll, no_flops, _nll_saved, light=False),
    *(
        Kind(name, _elements, no_flops, _all, light=False)
        for name in (
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
            "binary_cross_entropy",
            "binary_cross_entropy_with_logits",
            "kl_div",
            "soft_margin_loss",
        )
    ),
)
