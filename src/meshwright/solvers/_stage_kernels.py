"""Hot loops of `stage_programme`: the tables over (stages left, first layer, devices left)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel


@kernel(np.float64, np.int64, int, float)
def sums(price: Any, sizes: Any, devices: int, most: float) -> Any:
    """found[s, i, d]: least sum of s stages for layers i … on exactly d devices, none above `most`.

    Args:
        price: [stages that follow, sizes, first layer, last layer]; inf = impossible.
        sizes: devices of a stage, per size.
    """
    stages, layers = price.shape[0], price.shape[2]
    found = np.full((stages + 1, layers + 1, devices + 1), np.inf)
    found[0, layers, 0] = 0.0
    for s in range(1, stages + 1):
        for m in range(sizes.shape[0]):
            n = sizes[m]
            if n > devices:
                continue
            for i in range(layers):
                into = found[s, i, n:]
                for k in range(i, layers):
                    own = price[s - 1, m, i, k]
                    if own > most or own == np.inf:
                        continue
                    rest = found[s - 1, k + 1]
                    for d in range(devices + 1 - n):
                        x = own + rest[d]
                        into[d] = x if x < into[d] else into[d]
    return found


@kernel(np.float64, np.int64, int)
def slowest(price: Any, sizes: Any, devices: int) -> Any:
    """found[s, i, d]: the least slowest of s stages for layers i … on exactly d devices. Arguments as in `sums`."""
    stages, layers = price.shape[0], price.shape[2]
    found = np.full((stages + 1, layers + 1, devices + 1), np.inf)
    found[0, layers, 0] = -np.inf
    for s in range(1, stages + 1):
        for m in range(sizes.shape[0]):
            n = sizes[m]
            if n > devices:
                continue
            for i in range(layers):
                into = found[s, i, n:]
                for k in range(i, layers):
                    own = price[s - 1, m, i, k]
                    if own == np.inf:
                        continue
                    rest = found[s - 1, k + 1]
                    for d in range(devices + 1 - n):
                        x = rest[d] if rest[d] > own else own
                        into[d] = x if x < into[d] else into[d]
    return found
