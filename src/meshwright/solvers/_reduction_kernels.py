"""Hot loop of `reductions`: eliminating a variable between two others is a product of matrices over (min, +)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel


@kernel(np.float64, np.float64, np.float64)
def min_plus(left: Any, middle: Any, right: Any) -> Any:
    """found[a, b] = min over c of left[a, c] + middle[c] + right[c, b]; entries may be inf."""
    rows, inner = left.shape
    columns = right.shape[1]
    found = np.full((rows, columns), np.inf)
    for a in range(rows):
        # Slices, so that the inner loop has no index of another array in it and is vectorised.
        into = found[a]
        for c in range(inner):
            x = left[a, c] + middle[c]
            if x == np.inf:
                continue
            row = right[c]
            for b in range(columns):
                y = x + row[b]
                into[b] = y if y < into[b] else into[b]
    return found
