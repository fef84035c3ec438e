"""Interleaved 1F1B (Narayanan et al. 2021, arXiv 2104.04473, section 2.2): v chunks a rank divide the bubble by v.

Micro-batches go through a rank in groups of p: p of them through chunk 0, the same p through chunk 1, and so on.
"""

from __future__ import annotations

from ..model import Action
from .one_f_one_b import one_f_one_b


def interleaved(p: int, m: int, r: int, v: int, *, short: bool = False) -> tuple[Action, ...]:
    """Actions of rank r; m is a multiple of p. With v = 1 this is 1F1B.

    short: steps of p micro-batches warm up no longer than others. Peak memory of Megatron-LM's tests of 2025 is of that.
    """
    if v == 1:
        return one_f_one_b(p, m, r)
    total = m * v

    def action(kind: str, k: int) -> Action:
        """The k-th forward or backward of this rank."""
        group, inside = divmod(k, p * v)
        chunk, j = divmod(inside, p)
        if kind == "F":
            return Action("F", chunk * p + r, group * p + j)
        return Action("B", (v - 1 - chunk) * p + r, group * p + j)

    # With m = p the pairs would begin before the first backward can arrive: all forwards are warm-up.
    warm_up = total if m == p and not short else min(total, 2 * (p - r - 1) + (v - 1) * p)
    actions = [action("F", k) for k in range(warm_up)]
    for k in range(total):
        if warm_up + k < total:
            actions.append(action("F", warm_up + k))
        actions.append(action("B", k))
    return tuple(actions)
