"""Normalisations and softmax: their dims are `stat` factors, cut at the price of small all-reduces."""

from __future__ import annotations

from math import prod

from ..ir import Rule
from .call import Call, Kind, Saved, no_flops
from .space import Names, Space

MOMENTS = (2, 2)
"""Mean and variance forward; their two gradients backward."""
SQUARE = (1, 1)
"""The mean square alone."""
SOFTMAX = (2, 1)
"""Maximum and sum forward, one inner product backward."""
STAT_BYTES = 4
"""Statistics are kept in float32."""


def _normalised(call: Call, sums: tuple[int, int]) -> Rule:
    space = Space()
    shape = call.shape(0)
    first = len(shape) - len(call.integers(1, "normalized_shape"))
    dims = [
        space.factor(f"d{i}", n, "stat" if i >= first else "free", sums=sums if i >= first else (0, 0))
        for i, n in enumerate(shape)
    ]
    return space.rule([dims, *(dims[first:] for _ in call.operands[1:])], [dims])


def _layer_norm(call: Call) -> Rule:
    return _normalised(call, MOMENTS)


def _rms_norm(call: Call) -> Rule:
    return _normalised(call, SQUARE)


def _channel_operands(call: Call, channels: Names) -> list[list[Names]]:
    """Weights, biases and running statistics, each one value a channel."""
    return [[channels] for _ in call.operands[1:]]


def _group_norm(call: Call) -> Rule:
    """x[N, C, …]: channels are [groups][part of a group]."""
    space = Space()
    n, c, *spatial = call.shape(0)
    groups = call.integer(1, "num_groups", 1)
    channels = space.factor("groups", groups) + space.factor("channels", c // groups, "stat", sums=MOMENTS)
    dims = [space.factor("batch", n), channels]
    dims += [space.factor(f"s{i}", size, "stat", sums=MOMENTS) for i, size in enumerate(spatial)]
    return space.rule([dims, *_channel_operands(call, channels)], [dims])


def _batch_norm(call: Call) -> Rule:
    """Statistics over batch and space while training; with running statistics every factor is free."""
    space = Space()
    kind, sums = ("stat", MOMENTS) if call.get(5, "training", True) else ("free", (0, 0))
    n, c, *spatial = call.shape(0)
    channels = space.factor("channels", c)
    batch = space.factor("batch", n, "stat" if kind == "stat" else "free", sums=sums)
    dims = [batch, channels]
    dims += [space.factor(f"s{i}", m, "stat" if kind == "stat" else "free", sums=sums) for i, m in enumerate(spatial)]
    return space.rule([dims, *_channel_operands(call, channels)], [dims])


def _instance_norm(call: Call) -> Rule:
    space = Space()
    n, c, *spatial = call.shape(0)
    channels = space.factor("channels", c)
    dims = [space.factor("batch", n), channels]
    dims += [space.factor(f"s{i}", m, "stat", sums=MOMENTS) for i, m in enumerate(spatial)]
    return space.rule([dims, *_channel_operands(call, channels)], [dims])


def _softmax(call: Call) -> Rule:
    space = Space()
    rank = len(call.out)
    dim = call.integer(1, "dim", -1) % rank if rank else 0
    dims = [
        space.factor(f"d{i}", n, "stat" if i == dim else "free", sums=SOFTMAX if i == dim else (0, 0))
        for i, n in enumerate(call.out)
    ]
    return space.rule([dims], [dims])


def _weight_norm(call: Call) -> Rule:
    """v · g / |v|, with one norm per index of `dim`; the dims that the norm runs over stay whole."""
    space = Space()
    shape = call.shape(0)
    dim = call.integer(2, "dim", 0) % len(shape)
    v = space.dims(shape, fixed=[d for d in range(len(shape)) if d != dim])
    g = [v[i] if n != 1 else () for i, n in enumerate(call.shape(1))]
    return space.rule([v, g], [v])


def _weight_norm_saved(call: Call) -> Saved:
    return Saved(operands=(0, 1), extra=call.operands[1].nbytes)


def _moments_kept(rows: int) -> Saved:
    return Saved(operands=(0,), extra=2.0 * rows * STAT_BYTES)


def _layer_norm_saved(call: Call) -> Saved:
    return _moments_kept(call.operands[0].elements // prod(call.integers(1, "normalized_shape")))


def _rms_norm_saved(call: Call) -> Saved:
    return Saved(
        operands=(0,), extra=float(STAT_BYTES * call.operands[0].elements // prod(call.integers(1, "normalized_shape")))
    )


def _group_norm_saved(call: Call) -> Saved:
    return _moments_kept(call.shape(0)[0] * call.integer(1, "num_groups", 1))


def _batch_norm_saved(call: Call) -> Saved:
    return _moments_kept(call.shape(0)[1])


def _instance_norm_saved(call: Call) -> Saved:
    return _moments_kept(call.shape(0)[0] * call.shape(0)[1])


def _result(call: Call) -> Saved:
    return Saved(results=(0,))


KINDS = (
    Kind("layer_norm", _layer_norm, no_flops, _layer_norm_saved),
    Kind("rms_norm", _rms_norm, no_flops, _rms_norm_saved),
    Kind("group_norm", _group_norm, no_flops, _group_norm_saved),
    Kind("batch_norm", _batch_norm, no_flops, _batch_norm_saved),
    Kind("instance_norm", _instance_norm, no_flops, _instance_norm_saved),
    Kind("_weight_norm", _weight_norm, no_flops, _weight_norm_saved),
    Kind("softmax", _softmax, no_flops, _result),
    Kind("log_softmax", _softmax, no_flops, _result),
)
