"""Element-wise kinds: every dim of the result is a free factor, operands are broadcast."""

from __future__ import annotations

from collections.abc import Callable

from ..ir import Rule
from .call import Call, Kind, Saved, keeps_nothing, no_flops
from .space import Space, broadcast

SAVES_INPUT = """abs acos asin atan celu cos cosh digamma elu erf erfc gelu hardsigmoid hardswish hardtanh leaky_relu log log1p
log2 log10 log_sigmoid logit mish nan_to_num relu6 selu silu sin sinc sinh softplus softshrink square clamp clamp_min clamp_max
threshold"""
SAVES_OUTPUT = "exp exp2 expm1 reciprocal relu rsqrt sigmoid sqrt tan tanh"
SAVES_NOTHING = """add sub rsub neg ceil floor round sign trunc fill copy zero conj
bitwise_and bitwise_not bitwise_or bitwise_xor eq ne lt le gt ge isfinite isinf isnan logical_and logical_not logical_or
logical_xor real imag complex broadcast_tensors"""
SAVES_ALL = "maximum minimum fmod remainder lerp addcmul addcdiv atan2 hypot xlogy copysign logaddexp polar"
CASTS = "to contiguous clone"
RANDOM = "bernoulli exponential uniform normal_functional rand_like randn_like"
"""Random values in the shape of operand 0."""


def pointwise(call: Call) -> Rule:
    """Free factors d0, d1, … of the result; dims of size 1 of an operand are broadcast."""
    space = Space()
    out = space.dims(call.out)
    return space.rule([broadcast(out, spec.shape) for spec in call.operands], [out for _ in call.results])


def _prelu(call: Call) -> Rule:
    """The weight of PReLU belongs to dim 1, not to the last one."""
    space = Space()
    out = space.dims(call.out)
    weight = [out[1] if len(out) > 1 and call.shape(1)[0] != 1 else ()]
    return space.rule([out, weight], [out])


def _glu(call: Call) -> Rule:
    """The dim is [2 halves][half]: result i reads elements i and half + i."""
    space = Space()
    dim = call.integer(1, "dim", -1) % len(call.out)
    out = space.dims(call.out)
    source = list(out)
    source[dim] = space.fixed("halves", 2) + out[dim]
    return space.rule([source], [out])


def _bucketize(call: Call) -> Rule:
    """Every element is compared with all boundaries."""
    space = Space()
    out = space.dims(call.out)
    return space.rule([out, [space.fixed("boundaries", call.shape(1)[0])]], [out])


def _input(call: Call) -> Saved:
    return Saved(operands=(0,))


def _result(call: Call) -> Saved:
    return Saved(results=(0,))


def _mul(call: Call) -> Saved:
    """Each operand is kept for the gradient of its partner; a number is no tensor."""
    if len(call.operands) < 2:
        return Saved()
    return Saved(operands=tuple(i for i in (0, 1) if call.need(1 - i)))


def _div(call: Call) -> Saved:
    if call.slot(1, "other") is None or len(call.operands) < 2:
        return Saved()
    return Saved(operands=(0, 1) if call.need(1) else (1,))


def _pow(call: Call) -> Saved:
    if len(call.operands) < 2:
        return Saved(operands=(0,))
    return Saved(operands=(0, 1), results=(0,)) if call.need(1) else Saved(operands=(0, 1))


def _all(call: Call) -> Saved:
    return Saved(operands=tuple(range(len(call.operands))))


def _condition(call: Call) -> Saved:
    return Saved(operands=(0,))


def _mask(call: Call) -> Saved:
    return Saved(operands=(1,))


def _dropout(call: Call) -> Saved:
    """The mask, as the CPU keeps it: noise in the dtype of the input."""
    rate = call.get(1, "p", 0.0)
    if not isinstance(rate, (int, float)) or rate == 0 or call.get(2, "train", True) is False:
        return Saved()
    return Saved(extra=call.operands[0].nbytes)


def _row(
    name: str, saved: Callable[[Call], Saved] = keeps_nothing, alias: bool = False, differentiable: bool = True
) -> Kind:
    return Kind(name, pointwise, no_flops, saved, light=True, alias=alias, differentiable=differentiable)


KINDS = (
    *(_row(name, _input) for name in SAVES_INPUT.split()),
    *(_row(name, _result) for name in SAVES_OUTPUT.split()),
    *(_row(name) for name in f"{SAVES_NOTHING} {CASTS}".split()),
    *(_row(name, _all) for name in SAVES_ALL.split()),
    *(_row(name, differentiable=False) for name in f"{RANDOM} floor_divide".split()),
    _row("detach", alias=True, differentiable=False),
    _row("alias", alias=True),
    _row("mul", _mul),
    _row("div", _div),
    _row("pow", _pow),
    _row("where", _condition),
    _row("masked_fill", _mask),
    _row("dropout", _dropout),
    Kind("prelu", _prelu, no_flops, _all),
    Kind("glu", _glu, no_flops, _input),
    Kind("bucketize", _bucketize, no_flops, keeps_nothing, differentiable=False),
)
