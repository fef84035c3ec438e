"""Kinds that move or regroup elements: reshape, transpose, slice, pad, cat, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir import FactorKind, Rule
from .call import Call, Kind, keeps_nothing, no_flops
from .space import Names, Space, broadcast, regroup


def reshape(call: Call) -> Rule:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: the same elements in row-major order."""
    space = Space()
    left, right = regroup(space, call.shape(0), call.out)
    return space.rule([left], [right])


def order_of(call: Call) -> tuple[int, ...]:
    """Which dim of the operand each dim of a transposed result is."""
    rank = len(call.shape(0))
    order = list(range(rank))
    if call.kind == "permute":
        return tuple(d % rank for d in call.integers(1, "dims"))
    if call.kind in ("t", "mT", "numpy_T", "adjoint"):
        return tuple(reversed(order)) if call.kind in ("t", "numpy_T") else (*order[:-2], rank - 1, rank - 2)
    if call.kind in ("movedim", "moveaxis"):
        source = [d % rank for d in call.integers(1, "source")]
        target = [d % rank for d in call.integers(2, "destination")]
        rest = iter(d for d in order if d not in source)
        return tuple(source[target.index(d)] if d in target else next(rest) for d in order)
    a, b = call.integer(1, "dim0") % rank, call.integer(2, "dim1") % rank
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _transpose(call: Call) -> Rule:
    space = Space()
    source = space.dims(call.shape(0))
    if not source:
        return space.rule([()], [()])
    return space.rule([source], [[source[d] for d in order_of(call)]])


def _expand(call: Call) -> Rule:
    """expand, expand_as, broadcast_to: a dim that grows from 1 is a factor of the result alone."""
    space = Space()
    out = space.dims(call.out)
    operands = [broadcast(out, call.shape(0))]
    operands += [list(out) for _ in call.operands[1:]]
    return space.rule(operands, [out])


def _repeat(call: Call) -> Rule:
    """repeat, tile: [repeats][dim]; every repeat is the same."""
    space = Space()
    shape = call.shape(0)
    whole = (1,) * (len(call.out) - len(shape)) + shape
    source = space.dims(whole)
    out = [space.factor(f"repeats{i}", call.out[i] // n) + source[i] for i, n in enumerate(whole)]
    return space.rule([source[len(whole) - len(shape) :]], [out])


def _repeat_interleave(call: Call) -> Rule:
    """repeat_interleave by one number: [dim][repeats]."""
    space = Space()
    shape = call.shape(0)
    dim = call.integer(2, "dim", 0) % len(shape)
    source = space.dims(shape)
    out = list(source)
    out[dim] = source[dim] + space.factor("repeats", call.out[dim] // shape[dim])
    return space.rule([source], [out])


def _changed(call: Call) -> Rule:
    """slice, narrow, pad: dims that keep their size are free, the others cannot be cut."""
    space = Space()
    before, after = call.shape(0), call.out
    source: list[Names] = []
    out: list[Names] = []
    for i, (m, n) in enumerate(zip(before, after, strict=True)):
        if m == n:
            names = space.factor(f"d{i}", n)
            source.append(names)
            out.append(names)
        else:
            source.append(space.fixed(f"from{i}", m))
            out.append(space.fixed(f"to{i}", n))
    return space.rule([source], [out])


def _select(call: Call) -> Rule:
    """One index of a dim: the dim vanishes."""
    space = Space()
    dim = call.integer(1, "dim") % len(call.shape(0))
    source = space.dims(call.shape(0), fixed=(dim,))
    return space.rule([source], [source[:dim] + source[dim + 1 :]])


def _flip(call: Call) -> Rule:
    """Elements move along some dims, which therefore cannot be cut."""
    space = Space()
    rank = len(call.shape(0))
    dims = space.dims(call.shape(0), fixed=[d % rank for d in call.integers(1, "dims")])
    return space.rule([dims], [dims])


PARTS = 8
"""A shift is passed on to the next of at least so many parts; a farther one leaves its dim whole."""


def _roll(call: Call) -> Rule:
    """A dim that is shifted by few elements reads those of one neighbour, the first part those of the last."""
    space, shape = Space(), call.shape(0)
    shifts = shifts_of(shape, call.integers(1, "shifts"), call.integers(2, "dims"))
    dims = []
    for d, n in enumerate(shape):
        by = shifts.get(d, 0) if shifts else n
        kind: FactorKind = "free" if not by else "halo" if abs(by) * PARTS <= n else "fixed"
        halo = (max(0, by), max(0, -by)) if kind == "halo" else (0, 0)
        dims.append(space.factor(f"d{d}", n, kind, halo=halo))
    return space.rule([dims], [dims])


def shifts_of(shape: Sequence[int], shifts: Sequence[int], dims: Sequence[int]) -> dict[int, int]:
    """Of a roll: dim -> by how many elements, the shorter way round; empty where it goes over all dims as one."""
    found: dict[int, int] = {}
    for d, by in zip(dims, shifts):
        found[d % len(shape)] = found.get(d % len(shape), 0) + by
    return {d: (by + shape[d] // 2) % shape[d] - shape[d] // 2 if shape[d] else 0 for d, by in found.items()}


def _triangle(call: Call) -> Rule:
    """tril, triu: what happens to an element depends on its place in the last two dims."""
    space = Space()
    rank = len(call.out)
    dims = space.dims(call.out, fixed=(rank - 2, rank - 1))
    return space.rule([dims], [dims])


def _diagonal(call: Call) -> Rule:
    space = Space()
    rank = len(call.shape(0))
    a, b = call.integer(2, "dim1", 0) % rank, call.integer(3, "dim2", 1) % rank
    source = space.dims(call.shape(0), fixed=(a, b))
    out = [names for i, names in enumerate(source) if i not in (a, b)]
    return space.rule([source], [[*out, space.fixed("diagonal", call.out[-1])]])


def _unfold(call: Call) -> Rule:
    """Windows along one dim, appended as the last dim."""
    space = Space()
    dim = call.integer(1, "dimension") % len(call.shape(0))
    source = space.dims(call.shape(0), fixed=(dim,))
    out = [*source, space.fixed("window", call.out[-1])]
    out[dim] = space.fixed("windows", call.out[dim])
    return space.rule([source], [out])


def _cat(call: Call) -> Rule:
    """Equal parts: the dim is [parts, together][part, free], as in the two halves of a rotation. Otherwise it is fixed."""
    space = Space()
    rank = len(call.out)
    dim = call.integer(1, "dim", 0) % rank
    out = space.dims(call.out, fixed=(dim,))
    sizes = {spec.shape[dim] for spec in call.operands if len(spec.shape) == rank}
    operands: list[list[Names]] = []
    if len(sizes) == 1 and all(len(spec.shape) == rank for spec in call.operands):
        part = space.factor("part", sizes.pop())
        out[dim] = space.fixed("parts", len(call.operands)) + part
        operands = [[*out[:dim], part, *out[dim + 1 :]] for _ in call.operands]
    else:
        for i, spec in enumerate(call.operands):
            if len(spec.shape) != rank:  # torch lets an empty one-dim tensor join any cat
                operands.append(space.dims(spec.shape, "empty", range(len(spec.shape))))
            else:
                operands.append([*out[:dim], space.fixed(f"part{i}", spec.shape[dim]), *out[dim + 1 :]])
    return space.rule(operands, [out])


def _stack(call: Call) -> Rule:
    space = Space()
    dim = call.integer(1, "dim", 0) % len(call.out)
    out = space.dims(call.out, fixed=(dim,))
    return space.rule([out[:dim] + out[dim + 1 :] for _ in call.operands], [out])


def _split(call: Call) -> Rule:
    """split, chunk: equal parts are [parts, together][part, free]; unequal ones fix the dim."""
    space = Space()
    dim = call.integer(2, "dim", 0) % len(call.shape(0))
    source = space.dims(call.shape(0), fixed=(dim,))
    sizes = [spec.shape[dim] for spec in call.results]
    if len(set(sizes)) == 1:
        part = space.factor("part", sizes[0])
        source[dim] = space.fixed("parts", len(sizes)) + part
        ends = [part] * len(sizes)
    else:
        ends = [space.fixed(f"part{i}", n) for i, n in enumerate(sizes)]
    return space.rule([source], [[*source[:dim], end, *source[dim + 1 :]] for end in ends])


def _unbind(call: Call) -> Rule:
    space = Space()
    dim = call.integer(1, "dim", 0) % len(call.shape(0))
    source = space.dims(call.shape(0), fixed=(dim,))
    return space.rule([source], [source[:dim] + source[dim + 1 :] for _ in call.results])


def _diff(call: Call) -> Rule:
    """Differences of neighbours along one dim, which stays whole; other operands are joined before and after."""
    space = Space()
    dim = call.integer(2, "dim", -1) % len(call.out)
    out = space.dims(call.out, fixed=(dim,))
    operands = []
    for i, spec in enumerate(call.operands):
        own = out[dim] if spec.shape[dim] == call.out[dim] else space.fixed(f"from{i}", spec.shape[dim])
        operands.append([*out[:dim], own, *out[dim + 1 :]])
    return space.rule(operands, [out])


def _meshgrid(call: Call) -> Rule:
    """Result i repeats operand i along all other dims."""
    space = Space()
    out = space.dims(call.out)
    order = list(range(len(call.out)))
    if call.get(1, "indexing") == "xy" and len(order) > 1:
        order[:2] = [1, 0]
    operands = [[out[order[i]]] if spec.shape else [] for i, spec in enumerate(call.operands)]
    return space.rule(operands, [out for _ in call.results])


def _pixel_shuffle(call: Call) -> Rule:
    """[…, c · r · r, h, w] <-> […, c, h · r, w · r]."""
    space = Space()
    r = call.integer(1, "upscale_factor" if call.kind == "pixel_shuffle" else "downscale_factor", 1)
    wide, tall = (call.shape(0), call.out) if call.kind == "pixel_shuffle" else (call.out, call.shape(0))
    lead = space.dims(wide[:-3], "batch")
    c, a, b = space.factor("channels", tall[-3]), space.fixed("up", r), space.fixed("across", r)
    h, w = space.factor("height", wide[-2]), space.factor("width", wide[-1])
    deep, large = [*lead, c + a + b, h, w], [*lead, c, h + a, w + b]
    return space.rule(*(([deep], [large]) if call.kind == "pixel_shuffle" else ([large], [deep])))


def _complex(call: Call) -> Rule:
    """view_as_complex, view_as_real: the last dim of the real tensor is (real, imaginary) and stays whole."""
    space = Space()
    pairs = max((call.shape(0), call.out), key=len)
    real = space.dims(pairs, fixed=(len(pairs) - 1,))
    ends = [real[:-1], real] if call.kind == "view_as_real" else [real, real[:-1]]
    return space.rule(ends[:1], ends[1:])


def _write(call: Call) -> Rule:
    """slice_scatter, select_scatter: the source replaces a part of one dim."""
    space = Space()
    dim = call.integer(2, "dim", 0) % len(call.out)
    out = space.dims(call.out, fixed=(dim,))
    if call.kind == "select_scatter":
        source = out[:dim] + out[dim + 1 :]
    else:
        source = list(out)
        if call.shape(1)[dim] != call.out[dim]:
            source[dim] = space.fixed("written", call.shape(1)[dim])
    return space.rule([out, source], [out])


def _rows(names: str, rule: Callable[[Call], Rule], alias: bool) -> tuple[Kind, ...]:
    return tuple(Kind(name, rule, no_flops, keeps_nothing, True, alias) for name in names.split())


KINDS = (
    *_rows("view squeeze unsqueeze", reshape, True),
    *_rows("reshape flatten unflatten _unsafe_view", reshape, False),
    *_rows("transpose permute t mT numpy_T adjoint movedim moveaxis swapaxes swapdims", _transpose, True),
    *_rows("expand expand_as broadcast_to", _expand, True),
    *_rows("repeat tile", _repeat, False),
    *_rows("repeat_interleave", _repeat_interleave, False),
    *_rows("slice narrow", _changed, True),
    *_rows("pad constant_pad_nd", _changed, False),
    *_rows("select", _select, True),
    *_rows("roll", _roll, False),
    *_rows("flip", _flip, False),
    *_rows("tril triu", _triangle, False),
    *_rows("diagonal", _diagonal, True),
    *_rows("unfold", _unfold, True),
    *_rows("view_as_complex view_as_real", _complex, True),
    *_rows("diff", _diff, False),
    *_rows("meshgrid", _meshgrid, False),
    *_rows("pixel_shuffle pixel_unshuffle", _pixel_shuffle, False),
    *_rows("cat", _cat, False),
    *_rows("stack", _stack, False),
    *_rows("split split_with_sizes chunk tensor_split", _split, True),
    *_rows("unbind", _unbind, True),
    *_rows("slice_scatter select_scatter", _write, False),
)
