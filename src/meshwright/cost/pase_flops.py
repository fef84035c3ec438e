"""Prices of PaSE's public prototype (Elango 2021, DOI 10.1109/IPDPS49936.2021.00111), in floating-point operations.

A configuration cuts each dim of an op's iteration space; sizes of parts are real quotients. A word exchanged counts as
`rate` operations, and with AR(w, g) = 2 rate (g − 1) w / g for the sum of w words over g devices (e = elements of a part):

    product (m, n, k)      3 mnk + 3 pw mn + AR(mn, cut of k) + AR(mk, cut of n) + AR(nk, cut of m), times the batch dims
                           (pw = element-wise ops fused into it)
      Conv                 m = b h w, n = output channels, k = c r s; h and w are not cut
      FC                   m = leading dims
      Einsum               batch = in both operands and the result; m, n = in one operand and the result; k = in no result
      LSTM                 batch = layers, m = sequence · b, 4n and 2k, pw = 3; and at each of its layers · sequence cells the
                           words by which the output, cut over (b, n), differs from the input, cut over (b, k)
    Pooling                e, and `rate` for each element of the windows that reach over a cut of h or w
    Norm                   16 e + 4 AR(e / local axis, cut of the axis) + 4 AR(local axis, all other cuts)
    Softmax                4 e + e · whole axis + 2 AR(e / local axis, cut) + AR(e / local axis · whole axis, cut of the axis)
    SoftmaxCrossEntropy    4 e + 2 b, and 2 rate b if the last dim is cut (b = local leading dims)
    Elementwise            (1 + pw) e
    ReduceMean             AR(e, cuts of the axes)
    all others             0
    edge                   2 rate (part that is needed − overlap with the part that is there); see `exchanged`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any, ClassVar

import numpy as np

from ..cluster.model import Cluster, DeviceType
from ..errors import InputError, Unsupported
from ..graph.ir import Floats, Ints, Op, Phase
from .base import Collective, CostModel, Group, OpMemory

FLOPS = 10.0
"""TFLOP/s of a device: the prototype's default."""
BANDWIDTH = 16.0
"""GB/s between devices: the prototype's default."""
WORD = 8.0
"""Bytes of a word."""
STATE = 3.0
"""Copies of a weight that `memory` counts: itself, gradient, momentum."""


CUTOFF = "cutoff"
"""In `Op.kwargs`: least elements that a cut leaves of a dim."""


class PaSEFlops(CostModel):
    """Prices in operations; `memory` counts elements, not bytes: three of each weight and one of each result."""

    name: ClassVar[str] = "pase-flops"
    unit: ClassVar[str] = "flop"

    def __init__(self, flops: float = FLOPS, bandwidth: float = BANDWIDTH) -> None:
        """TFLOP/s of a device, GB/s between devices.

        Raises:
            InputError: one of them is not above 0.
        """
        for name, value in (("flops", flops), ("bandwidth", bandwidth)):
            if not value > 0:
                raise InputError(f"pase-flops: {name} is {value:g}, wanted a number above 0", where=name)
        self.rate = 1000.0 * flops / (bandwidth / WORD)
        """Operations that a device could do while one word is exchanged."""

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        """Forward: everything inside the op, both directions and all sums; other phases nothing more."""
        full = np.array([f.size for f in op.rule.factors], float)
        cuts = full / np.asarray(sizes, float)
        return self.inside(op, cuts) if phase == "forward" else np.zeros(len(cuts))

    def inside(self, op: Op, cuts: Floats) -> Floats:
        """Price float64[n] of an op in n configurations; cuts[n, factors] in the order of its factors.

        Raises:
            Unsupported: a kind of op that the prototype has no price for.
        """
        if op.kind in FREE:
            return np.zeros(len(cuts))
        if op.kind not in PRICES:
            raise Unsupported(
                f'op {op.name}: pase-flops has no price for kind "{op.kind}": it knows {", ".join(sorted([*PRICES, *FREE]))}'
            )
        return PRICES[op.kind](_Parts(op, np.asarray(cuts, float), self.rate))

    def between(self, shape: tuple[int, ...], source: Floats, target: Floats) -> Floats:
        """Price float64[n, m] of a tensor that leaves one op cut as source[n, dims] and enters another as target[m, dims]."""
        return 2.0 * self.rate * exchanged(np.array(shape, float), source[:, None, :], target[None, :, :])

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        """Elements: three of each weight, one of what the op makes (of its whole domain where it is no product)."""
        full = np.array([f.size for f in op.rule.factors], float)
        part = _Parts(op, full / np.asarray(sizes, float), self.rate)
        none = np.zeros(len(sizes))
        if op.kind not in PRODUCTS:
            return OpMemory(none, part.size(part.names), none)
        weight = part.size(n for dim in op.rule.operands[-1] for n in dim) if _has_weight(op) else none
        weight = weight * (8.0 if op.kind == "LSTM" else 1.0)  # four gates, of input and state
        return OpMemory(STATE * weight, part.size(n for dim in op.rule.results[0] for n in dim), none)

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        raise Unsupported(_NO_SECONDS)

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        raise Unsupported(_NO_SECONDS)

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        raise Unsupported(_NO_SECONDS)


_NO_SECONDS = "pase-flops prices configurations of whole ops and the edges between them, no single message"


def configurations(op: Op, devices: int) -> tuple[tuple[int, ...], ...]:
    """Numbers of parts of each of an op's dims, the last varying fastest.

    A number divides its dim and leaves `cutoff` elements (1 where none does), their product is at most `devices`; flattened
    tensors are cut into ranges only.
    """
    least = int(dict(op.kwargs)[CUTOFF])  # type: ignore[arg-type]
    choices = [
        [1]
        if f.kind == "fixed"
        else [c for c in range(1, devices + 1) if f.size % c == 0 and f.size // c >= least] or [1]
        for f in op.rule.factors
    ]
    found: list[tuple[int, ...]] = [()]
    for options in choices:
        found = [(*c, n) for c in found for n in options if prod(c) * n <= devices]
    if op.kind in ("Ravel", "Unravel"):
        found = [c for c in found if _contiguous(c, [f.size for f in op.rule.factors])]
    return tuple(found)


def _contiguous(cuts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Are the parts ranges of the flattened tensor: leading dims cut to single elements, one dim cut, the rest whole?"""
    first = next((i for i, (c, n) in enumerate(zip(cuts, sizes, strict=True)) if c != n), len(cuts))
    return all(c == 1 for c in cuts[first + 1 :])


def tensor_cuts(op: Op, dims: Iterable[tuple[str, ...]], cuts: Floats) -> Floats:
    """float64[n, dims of a tensor]: how often each of its dims is cut where the op's factors are cut as cuts[n, factors]."""
    place = {f.name: i for i, f in enumerate(op.rule.factors)}
    columns = [_times((cuts[:, place[name]] for name in dim), np.ones(len(cuts))) for dim in dims]
    return np.stack(columns, axis=1) if columns else np.ones((len(cuts), 0))


def exchanged(shape: Floats, source: Floats, target: Floats) -> Floats:
    """Words that a device of the target lacks, float64[…].

    The prototype takes the smaller of the two parts in each dim as their overlap, and none where the target has more parts
    than the source: a bound from below, not an intersection of ranges.

    Args:
        shape: [dims]; source, target: [..., dims] numbers of parts.
    """
    there, here = shape / source, shape / target
    overlap = _times((np.minimum(there[..., i], here[..., i]) for i in range(len(shape))), np.ones(()))
    apart = np.prod(target, axis=-1) > np.prod(source, axis=-1)
    found: Floats = np.maximum(np.prod(here, axis=-1) - np.where(apart, 0.0, overlap), 0.0)
    return found


def _times(factors: Iterable[Floats], one: Floats) -> Floats:
    found: Floats = reduce(np.multiply, factors, one)
    return found


class _Parts:
    """Local sizes and cuts of one op's factors in n configurations, by name."""

    def __init__(self, op: Op, cuts: Floats, rate: float) -> None:
        self.op, self.rate = op, rate
        self.names = tuple(f.name for f in op.rule.factors)
        self.local = {f.name: f.size / cuts[:, i] for i, f in enumerate(op.rule.factors)}
        self.cut = {f.name: cuts[:, i] for i, f in enumerate(op.rule.factors)}
        self.one = np.ones(len(cuts))
        self.settings: Mapping[str, Any] = dict(op.kwargs)
        self.pw = float(self.settings.get("pw", 0))

    def size(self, names: Iterable[str]) -> Floats:
        return _times((self.local[n] for n in names), self.one)

    def cuts(self, names: Iterable[str]) -> Floats:
        return _times((self.cut[n] for n in names), self.one)

    def all_reduce(self, words: Floats, members: Floats) -> Floats:
        return self.rate * (words / members) * 2.0 * (members - 1.0)

    def product(
        self, m: Iterable[str], n: Iterable[str], k: Iterable[str], batch: Iterable[str] = (), pw: float = 0.0,
        gates: float = 1.0, operands: float = 1.0,
    ) -> Floats:  # fmt: skip
        """A batched product; `gates` times n columns, `operands` times k rows that are summed over."""
        m, n, k, batch = tuple(m), tuple(n), tuple(k), tuple(batch)
        rows, columns, summed = self.size(m), gates * self.size(n), operands * self.size(k)
        work = 3.0 * rows * columns * summed + 3.0 * pw * rows * columns
        sums = (
            self.all_reduce(rows * columns, self.cuts(k))
            + self.all_reduce(rows * summed, self.cuts(n))
            + self.all_reduce(columns * summed, self.cuts(m))
        )
        return self.size(batch) * (work + sums)


def _conv(p: _Parts) -> Floats:
    return p.product("bhw", "n", "crs", pw=p.pw)


def _fully_connected(p: _Parts) -> Floats:
    return p.product(p.names[:-2], p.names[-2:-1], p.names[-1:], pw=p.pw)


def _einsum(p: _Parts) -> Floats:
    (a, b), (c,) = (
        [{n for dim in dims for n in dim} for dims in side] for side in (p.op.rule.operands, p.op.rule.results)
    )
    kinds: tuple[list[str], ...] = ([], [], [], [])
    for name in p.names:
        if name in c:
            kinds[3 if name in a and name in b else 0 if name in a else 1].append(name)
        else:
            kinds[2].append(name)
    m, n, k, batch = kinds
    return p.product(m, n, k, batch, pw=p.pw)


def _lstm(p: _Parts) -> Floats:
    full = {f.name: float(f.size) for f in p.op.rule.factors}
    made = np.stack([p.cut["b"], p.cut["n"]], axis=1)
    wanted = np.stack([p.cut["b"], p.cut["k"]], axis=1)
    recurrent = full["l"] * full["s"] * p.rate * exchanged(np.array([full["b"], full["n"]]), made, wanted)
    return p.product("sb", "n", "k", "l", pw=3.0, gates=4.0, operands=2.0) + recurrent


def _pooling(p: _Parts) -> Floats:
    """Where h or w is cut, a part needs the rows or columns of a window more of its input."""
    high, wide = map(float, p.settings["input"])
    grown = {
        name: np.where(p.cut[name] > 1.0, size / p.cut[name] + window, size / p.cut[name])
        for name, size, window in zip("hw", (high, wide), p.settings["window"], strict=True)
    }
    plain = (high / p.cut["h"]) * (wide / p.cut["w"])
    extra: Floats = p.size("bc") * (grown["h"] * grown["w"] - plain)
    return p.size(p.names) + p.rate * extra


def _norm(p: _Parts) -> Floats:
    axis: str = p.names[p.settings["axis"]]
    elements, others = p.size(p.names), [n for n in p.names if n != axis]
    along = p.local[axis]
    return (
        16.0 * elements + 4.0 * p.all_reduce(elements / along, p.cut[axis]) + 4.0 * p.all_reduce(along, p.cuts(others))
    )


def _softmax(p: _Parts) -> Floats:
    factor = p.op.rule.factors[int(p.settings["axis"])]
    elements, cut = p.size(p.names), p.cut[factor.name]
    outer = elements / p.local[factor.name]
    size = float(factor.size)
    return 4.0 * elements + elements * size + 2.0 * p.all_reduce(outer, cut) + p.all_reduce(outer * size, cut)


def _loss(p: _Parts) -> Floats:
    leading = p.size(p.names[:-1])
    return 4.0 * p.size(p.names) + 2.0 * leading + np.where(p.cut[p.names[-1]] > 1.0, 2.0 * p.rate * leading, 0.0)


def _elementwise(p: _Parts) -> Floats:
    return (1.0 + p.pw) * p.size(p.names)


def _reduce_mean(p: _Parts) -> Floats:
    return p.all_reduce(p.size(p.names), p.cuts(p.names[i] for i in p.settings["axis"]))


PRICES: Mapping[str, Callable[[_Parts], Floats]] = {
    "Conv": _conv, "FC": _fully_connected, "Einsum": _einsum, "LSTM": _lstm, "Pooling": _pooling, "Norm": _norm,
    "Softmax": _softmax, "SoftmaxCrossEntropy": _loss, "Elementwise": _elementwise, "ReduceMean": _reduce_mean,
}  # fmt: skip
FREE = frozenset({"Concat", "Split", "Stack", "Unstack", "Transpose", "Ravel", "Unravel"})
PRODUCTS = frozenset({"Conv", "FC", "Einsum", "LSTM"})


def _has_weight(op: Op) -> bool:
    return op.inputs[-1].endswith(":weight")
