"""Seconds of matrix products. m, n, k: rows, columns and depth of one of `batch` products on one device."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from ..graph.ir import Floats

TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.78), (64, 64, 0.55))
"""(rows, columns, relative rate) of the output tiles that libraries choose from."""
A100_BALANCE = 312e12 / 2039e9
"""FLOPs per byte: the reference of `Rates.depth`; a device with more FLOPs per byte needs deeper products."""
SCALAR_ROWS = 6
"""Up to this many products, plain Python is faster than arrays."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What matrix products meet on one device."""

    flops: float
    """FLOP/s of a large product."""
    bandwidth: float
    """Bytes/s of memory that a kernel reaches."""
    sms: int
    item: float
    """Bytes of an element."""
    depth: float
    """Elements of depth that cost as much as they compute at A100's balance."""
    launch: float
    """Seconds of one product besides its work."""


def seconds(rates: Rates, batch: Floats, m: Floats, n: Floats, k: Floats) -> Floats:
    """Roofline with a depth term and whole waves of tiles. All arguments of one shape; zeros where a size is 0."""
    if len(m) <= SCALAR_ROWS:
        rows = zip(batch.tolist(), m.tolist(), n.tolist(), k.tolist(), strict=True)
        return np.array([_one(rates, *row) for row in rows])
    m, n, k = (np.maximum(x, 1.0) for x in (m, n, k))
    area = batch * m * n
    wave = np.full(m.shape, np.inf)
    for rows_, columns, rate in TILES:
        tiles = batch * np.ceil(m / rows_) * np.ceil(n / columns)
        wave = np.minimum(wave, np.ceil(tiles / rates.sms) * (rates.sms * rows_ * columns / rate) / area)
    depth = 1.0 + rates.depth * rates.flops / rates.bandwidth / A100_BALANCE / k
    compute = 2.0 * area * k / rates.flops * depth * wave
    memory = rates.item * batch * (m * n + m * k + n * k) / rates.bandwidth
    return np.asarray(np.where(batch > 0, np.maximum(compute, memory) + rates.launch, 0.0), dtype=np.float64)


def _one(rates: Rates, batch: float, m: float, n: float, k: float) -> float:
    """`seconds` of one product."""
    if batch <= 0:
        return 0.0
    m, n, k = max(m, 1.0), max(n, 1.0), max(k, 1.0)
    sms, area, wave = rates.sms, batch * m * n, inf
    for rows, columns, rate in TILES:
        waves = ceil(batch * ceil(m / rows) * ceil(n / columns) / sms) * (sms * rows * columns / rate) / area
        if waves < wave:
            wave = waves
    depth = 1.0 + rates.depth * rates.flops / rates.bandwidth / A100_BALANCE / k
    compute = 2.0 * area * k / rates.flops * depth * wave
    memory = rates.item * batch * (m * n + m * k + n * k) / rates.bandwidth
    return max(compute, memory) + rates.launch
