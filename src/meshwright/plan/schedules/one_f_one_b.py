"""1F1B with a flush (PipeDream-Flush; Narayanan et al. 2020, arXiv 2006.09503, section 3.2).

min(m, p − r) forwards, then one backward and one forward in turn: rank r never holds more than p − r micro-batches.
"""

from __future__ import annotations

from ..model import Action


def one_f_one_b(p: int, m: int, r: int) -> tuple[Action, ...]:
    """Actions of rank r."""
    warm_up = min(m, p - r)
    actions = [Action("F", r, j) for j in range(warm_up)]
    for j in range(m):
        actions.append(Action("B", r, j))
        if warm_up + j < m:
            actions.append(Action("F", r, warm_up + j))
    return tuple(actions)
