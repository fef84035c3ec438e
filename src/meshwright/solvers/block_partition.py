"""Block partitions of sequences (Bárány and Grinberg 2013, arXiv 1308.2452), move for move as in torchgpipe's balancer.

Any two blocks of the result differ by at most 1 in costs normalised to [0, 1]: x becomes (x − least) / (largest − least).
Long runs of cheap items look free that way; it is a heuristic for the largest block.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from ..errors import InputError


def block_partition(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Ends of `parts` non-empty blocks. O(parts · n³) moves at most.

    Raises:
        InputError: no part, fewer items than parts, or a cost that is not finite.
    """
    n = len(costs)
    if parts < 1:
        raise InputError(f"{parts} parts: there must be at least one")
    if n < parts:
        raise InputError(f"{n} items cannot fill {parts} parts: there must be as many items as parts")
    if not all(isfinite(x) for x in costs):
        raise InputError("costs must be finite")
    least = min(costs)
    spread = max(costs) - least
    normal = [(x - least) / spread if spread else 0.0 for x in costs]
    ends = [n // parts * (t + 1) for t in range(parts - 1)] + [n]

    def blocks() -> list[tuple[float, int]]:
        return [(sum(normal[a:b]), i) for i, (a, b) in enumerate(zip([0, *ends], ends))]

    for _ in range(parts * n**3 + 1):
        largest, p = max(blocks())  # of equals the last
        giver = -1
        while giver != p:
            smallest, q = min(blocks())  # of equals the first
            if largest <= smallest + 1:
                return tuple(ends)
            if p < q:
                giver = q - 1
                ends[giver] -= 1
            else:
                giver = q + 1
                ends[q] += 1
            if _fill(ends, giver, p):
                break
    return tuple(ends)


def _fill(ends: list[int], block: int, p: int) -> bool:
    """Was this block left empty? Then the next block of several items on p's side helps it out, over those between.

    The original goes on with an empty block there, which items of normalised cost 0 make possible, and may return it. The
    largest block p has several items, since it is above 1.
    """
    sizes = [b - a for a, b in zip([0, *ends], ends)]
    if sizes[block]:
        return False
    step = 1 if p > block else -1
    source = block + step
    while sizes[source] < 2 and source != p:
        source += step
    for t in range(block, source):
        ends[t] += 1
    for t in range(source, block):
        ends[t] -= 1
    return True
