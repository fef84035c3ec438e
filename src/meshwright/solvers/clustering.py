"""Consecutive ops into layers: Alpa's clustering, so that little data crosses a boundary and layers have like work.

    G(k, r) = min over i of max(G(i − 1, r − 1), C(i, k)),   C(i, k) = bytes made before op i and read by ops i … k

Of equal largest boundaries (within 1e-4) the least sum of boundaries, of these the most even numbers of ops. Source: Zheng et
al., "Alpa" (OSDI 2022), section 5.2, equation 7; the rule of what a layer may be, which the paper leaves open, is the
authors' program's:

    scanning right, with h heavy ops of f FLOPs so far and H = min(3, ⌊heavy ops / layers⌋):
        h < H                                            legal only if f ≥ (1 + tolerance) · all FLOPs / layers
        f at that bound, the op is heavy and h > H       ends the scan
        else                                             legal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from ..errors import InputError
from ._clustering_kernels import relax

HEAVY_IN_A_LAYER = 3


@dataclass(frozen=True, slots=True)
class Clustered:
    boundary: float
    """Bytes of the largest boundary; inf: no layers are legal."""
    ends: tuple[int, ...]
    """Where each layer ends; () if there are none."""


def cluster(
    heavy: Sequence[bool],
    flops: Sequence[float],
    nbytes: Sequence[float],
    reads: Sequence[Sequence[int]],
    layers: int,
    *,
    tolerance: float = 0.5,
) -> Clustered:
    """The best cut of ops in program order into `layers`.

    Args:
        heavy: is it a product or a convolution? Only these count as work.
        flops: of each op.
        nbytes: of what each op makes.
        reads: per op the ops whose results it reads; each earlier than itself.

    Raises:
        InputError: no layers, more layers than ops, lengths that differ, an op that reads a later one.
    """
    n = len(heavy)
    if not n or not 1 <= layers <= n:
        raise InputError(f"{n} ops cannot be {layers} layers: wanted at least one layer and one op for each")
    if not len(flops) == len(nbytes) == len(reads) == n:
        raise InputError(f"{n} ops with {len(flops)} FLOPs, {len(nbytes)} sizes and {len(reads)} operand lists")
    for i, own in enumerate(reads):
        if any(not 0 <= j < i for j in own):
            raise InputError(f"op {i} reads op {max(own)}, which does not come before it: ops are in program order")
    work = sum(f for f, h in zip(flops, heavy, strict=True) if h)
    first = np.concatenate(([0], np.cumsum([len(own) for own in reads])))
    flat = np.array([j for own in reads for j in own], np.int64)
    least_heavy = min(HEAVY_IN_A_LAYER, sum(map(bool, heavy)) // layers)
    largest, start = relax(
        np.asarray(heavy, np.uint8), np.asarray(flops, np.float64), np.asarray(nbytes, np.float64), first, flat,
        layers, work / layers * (1 + tolerance), least_heavy,
    )  # fmt: skip
    if largest[n, layers] == inf:
        return Clustered(inf, ())
    ends = [n]
    for q in range(layers, 1, -1):
        ends.append(int(start[ends[-1], q]))
    return Clustered(float(largest[n, layers]), tuple(reversed(ends)))
