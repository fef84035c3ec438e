"""Convolutions, pools and resampling: batch and channels are plain factors, space is a window."""

from __future__ import annotations

from math import prod

from ..ir import Rule
from .call import Call, Kind, Saved, keeps_nothing, no_flops
from .space import Names, Space


def _each(values: tuple[int, ...], rank: int, default: int) -> tuple[int, ...]:
    if not values:
        return (default,) * rank
    return values if len(values) == rank else (values[0],) * rank


def _window(
    space: Space, name: str, source: int, out: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[Names, Names, Names]:
    """Factors of one spatial dim of (operand, kernel, result).

    kernel = stride, no padding     operand [out][kernel], kernel [kernel]: patches are free
    source = out · stride           operand [out][stride]: padding elements from below, the rest of the window from above;
                                    free where no window reaches beyond its own stride
    otherwise                       the dim stays whole
    """
    if kernel == stride and padding == 0 and dilation == 1 and source == out * kernel:
        patches, inside = space.factor(name, out), space.fixed(f"kernel_{name}", kernel)
        return patches + inside, inside, patches
    reach = dilation * (kernel - 1)
    if source == out * stride and 0 <= padding <= reach:
        halo = (padding, max(0, reach - padding - stride + 1))
        dim = space.factor(name, out, "halo" if any(halo) else "free", halo=halo)
        return dim + space.fixed(f"step_{name}", stride), space.fixed(f"kernel_{name}", kernel), dim
    return space.fixed(f"from_{name}", source), space.fixed(f"kernel_{name}", kernel), space.fixed(f"to_{name}", out)


def _conv(call: Call) -> Rule:
    """x[n, g · c, …] · W[g · o, c, …]: c is summed over. A bias operand would be added to every partial sum: c is then fixed."""
    space = Space()
    x, w = call.shape(0), call.shape(1)
    rank = len(w) - 2
    batched = len(x) == rank + 2
    groups = call.integer(6, "groups", 1)
    stride = _each(call.integers(3, "stride"), rank, 1)
    dilation = _each(call.integers(5, "dilation"), rank, 1)
    padding = _padding(call, w[2:], dilation)
    g, o = space.factor("groups", groups), space.factor("out", w[0] // groups)
    c = space.factor("in", w[1], "fixed" if len(call.operands) > 2 else "free")
    n = [space.factor("batch", x[0])] if batched else []
    spatial = [
        _window(space, f"s{i}", x[-rank + i], call.out[-rank + i], w[2 + i], stride[i], padding[i], dilation[i])
        for i in range(rank)
    ]
    source = [*n, g + c, *(s[0] for s in spatial)]
    weight = [g + o, c, *(s[1] for s in spatial)]
    out = [*n, g + o, *(s[2] for s in spatial)]
    return space.rule([source, weight, *([g + o] for _ in call.operands[2:])], [out])


def _padding(call: Call, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    value = call.get(4, "padding", 0)
    if value == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    if value == "valid":
        return (0,) * len(kernel)
    return _each(call.integers(4, "padding"), len(kernel), 0)


def _conv_transpose(call: Call) -> Rule:
    """x[n, g · c, …] · W[g · c, o, …]; with kernel = stride each element becomes its own patch, else space is whole."""
    space = Space()
    x, w = call.shape(0), call.shape(1)
    rank = len(w) - 2
    groups = call.integer(6, "groups", 1)
    stride = _each(call.integers(3, "stride"), rank, 1)
    padding = _each(call.integers(4, "padding"), rank, 0)
    g, o = space.factor("groups", groups), space.factor("out", w[1])
    c = space.factor("in", w[0] // groups, "fixed" if len(call.operands) > 2 else "free")
    n = [space.factor("batch", x[0])] if len(x) == rank + 2 else []
    spatial = []
    for i in range(rank):
        small, large, kernel = x[-rank + i], call.out[-rank + i], w[2 + i]
        if kernel == stride[i] and padding[i] == 0 and large == small * kernel:
            patches, inside = space.factor(f"s{i}", small), space.fixed(f"kernel_s{i}", kernel)
            spatial.append((patches, inside, patches + inside))
        else:
            spatial.append(
                (
                    space.fixed(f"from_s{i}", small),
                    space.fixed(f"kernel_s{i}", kernel),
                    space.fixed(f"to_s{i}", large),
                )
            )
    source = [*n, g + c, *(s[0] for s in spatial)]
    weight = [g + c, o, *(s[1] for s in spatial)]
    result = [*n, g + o, *(s[2] for s in spatial)]
    return space.rule([source, weight, *([g + o] for _ in call.operands[2:])], [result])


def _pool(call: Call) -> Rule:
    """Windows of max_pool and avg_pool; whole where indices, or counts that leave out the padding, depend on the place."""
    space = Space()
    shape = call.shape(0)
    rank = int(call.kind.split("pool")[1][0])
    kernel = _each(call.integers(1, "kernel_size"), rank, 1)
    stride = _each(call.integers(2, "stride"), rank, 0)
    padding = _each(call.integers(3, "padding"), rank, 0)
    maximum = call.kind.startswith("max")
    dilation = _each(call.integers(4, "dilation"), rank, 1) if maximum else (1,) * rank
    counted = maximum or not any(padding) or bool(call.get(5, "count_include_pad", True))
    lead = space.dims(shape[:-rank], "c")
    source, out = list(lead), list(lead)
    for i in range(rank):
        m, n, step = shape[-rank + i], call.out[-rank + i], stride[i] or kernel[i]
        patches = kernel[i] == step and padding[i] == 0
        if patches or (counted and len(call.results) == 1):
            before, _, after = _window(space, f"s{i}", m, n, kernel[i], step, padding[i], dilation[i])
        else:
            before, after = space.fixed(f"from_s{i}", m), space.fixed(f"to_s{i}", n)
        source.append(before)
        out.append(after)
    return space.rule([source], [out for _ in call.results])


def _im2col(call: Call) -> Rule:
    """x[n, c, h, w] -> [n, c · kernel, windows]; the windows overlap, so space stays whole."""
    space = Space()
    n, c, h, w = call.shape(0)
    batch, channels = space.factor("batch", n), space.factor("channels", c)
    inside = space.fixed("kernel", call.out[1] // c)
    source = [batch, channels, space.fixed("height", h), space.fixed("width", w)]
    return space.rule([source], [[batch, channels + inside, space.fixed("windows", call.out[2])]])


def _resampled(call: Call) -> Rule:
    """Adaptive pools, interpolation, pixel shuffles along the last dims: leading dims that keep their size are free."""
    space = Space()
    before, after = call.shape(0), call.out
    spatial = _spatial_rank(call)
    source: list[Names] = []
    out: list[Names] = []
    for i, (m, n) in enumerate(zip(before, after, strict=True)):
        if m == n and i < len(before) - spatial:
            names = space.factor(f"c{i}", m)
            source.append(names)
            out.append(names)
        else:
            source.append(space.fixed(f"from{i}", m))
            out.append(space.fixed(f"to{i}", n))
    return space.rule([source], [out for _ in call.results])


def _spatial_rank(call: Call) -> int:
    digits = [int(c) for c in call.kind if c in "123"]
    return digits[-1] if digits else len(call.out) - 2


def _conv_flops(call: Call) -> float:
    return 2.0 * prod(call.out) * prod(call.shape(1)[1:])


def _conv_transpose_flops(call: Call) -> float:
    return 2.0 * call.operands[0].elements * prod(call.shape(1)[1:])


def _both(call: Call) -> Saved:
    return Saved(operands=tuple(i for i in (0, 1) if call.need(1 - i)))


def _max_pool_saved(call: Call) -> Saved:
    """The input and one 64-bit index per result."""
    if len(call.results) > 1:
        return Saved(operands=(0,), results=(1,))
    return Saved(operands=(0,), extra=8.0 * call.results[0].elements)


def _input(call: Call) -> Saved:
    return Saved(operands=(0,))


KINDS = (
    *(Kind(name, _conv, _conv_flops, _both, light=False) for name in ("conv1d", "conv2d", "conv3d")),
    *(
        Kind(name, _conv_transpose, _conv_transpose_flops, _both, light=False)
        for name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
    ),
    *(Kind(f"max_pool{n}d", _pool, no_flops, _max_pool_saved, light=False) for n in (1, 2, 3)),
    *(Kind(f"max_pool{n}d_with_indices", _pool, no_flops, _max_pool_saved, light=False) for n in (2, 3)),
    *(Kind(f"avg_pool{n}d", _pool, no_flops, _input, light=False) for n in (1, 2, 3)),
    *(Kind(f"adaptive_max_pool{n}d", _resampled, no_flops, _max_pool_saved, light=False) for n in (1, 2, 3)),
    Kind("im2col", _im2col, no_flops, keeps_nothing, light=False),
    Kind("adaptive_avg_pool1d", _resampled, no_flops, keeps_nothing, light=False),
    *(Kind(f"adaptive_avg_pool{n}d", _resampled, no_flops, _input, light=False) for n in (2, 3)),
    *(
        Kind(name, _resampled, no_flops, keeps_nothing, light=False)
        for name in (
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_nearest3d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "upsample_linear1d",
            "upsample_trilinear3d",
        )
    ),
)
