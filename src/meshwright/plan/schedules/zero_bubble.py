"""Zero bubble, ZB-H1 (Qi et al. 2023, arXiv 2401.10241, section 3): weight gradients fill the bubble of 1F1B.

The backward is two actions, I (gradient of the input) and W (gradient of the weights). W of rank r comes r micro-batches
late, so that every rank holds p micro-batches at most, as rank 0 of 1F1B does.
"""

from __future__ import annotations

from ..model import Action


def zb_h1(p: int, m: int, r: int) -> tuple[Action, ...]:
    """Actions of rank r."""
    warm_up = min(m, p - r - 1)
    actions = [Action("F", r, j) for j in range(warm_up)]
    for j in range(m):
        if warm_up + j < m:
            actions.append(Action("F", r, warm_up + j))
        actions.append(Action("I", r, j))
        if j >= r:
            actions.append(Action("W", r, j - r))
    actions += [Action("W", r, j) for j in range(max(0, m - r), m)]
    return tuple(actions)
