"""Element-wise kinds: every dim of the result is a free factor, operands are broadcast."""

from __future__ import annotations

from collections.abc import Callable

from ..ir import Rule
from .call import Call, Kind, Saved, keeps_nothing, no_flops
from .space import Space, broadcast

SAVES_INPUT = [
    "abs",
    "atan2",
    "cos",
    "digamma",
    "elu",
    "erf",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log",
    "log1p",
    "log2",
    "log10",
    "log_sigmoid",
    "logsigmoid",
    "mish",
    "pow",
    "silu",
    "sin",
    "softplus",
    "square",
    "tan",
    "clamp",
    "clamp_min",
    "clamp_max",
]
SAVES_OUTPUT = ["exp", "expm1", "reciprocal", "relu", "relu6", "rsqrt", "selu", "sigmoid", "sqrt", "tanh"]
SAVES_NOTHING = [
    "add",
    "sub",
    "rsub",
    "neg",
    "ceil",
    "floor",
    "round",
    "sign",
    "trunc",
    "fill",
    "copy",
    "zero",
    "positive",
    "nan_to_num",
    "threshold",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "isfinite",
    "isinf",
    "isnan",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
]
CASTS = ("to", "_to_copy", "contiguous", "clone", "type_as", "float", "half", "bfloat16")


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


def _minmax(call: Call) -> Saved:
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
    *(_row(name, _input) for name in SAVES_INPUT if name != "pow"),
    *(_row(name, _result) for name in SAVES_OUTPUT),
    *(_row(name) for name in (*SAVES_NOTHING, *CASTS)),
    *(_row(name, _minmax) for name in ("maximum", "minimum", "fmod", "remainder", "lerp", "addcmul", "addcdiv")),
    _row("detach", alias=True, differentiable=False),
    _row("alias", alias=True),
    _row("mul", _mul),
    _row("div", _div),
    _row("true_divide", _div),
    _row("floor_divide", differentiable=False),
    _row("pow", _pow),
    _row("where", _condition),
    _row("masked_fill", _mask),
    _row("dropout", _dropout),
    _row("native_dropout", _dropout),
    _row("bernoulli", differentiable=False),
    Kind("prelu", _prelu, no_flops, _minmax),
    Kind("glu", _glu, no_flops, _input),
)
