"""GPipe (Huang et al. 2018, arXiv 1811.06965, section 2.3): all forwards, then all backwards in reverse order.

rank 0   F0 F1 F2 F3 . . . . . . B3 B2 B1 B0
rank 1   . F0 F1 F2 F3 . . B3 B2 B1 B0          (backwards drawn as long as forwards)
"""

from __future__ import annotations

from ..model import Action


def gpipe(p: int, m: int, r: int) -> tuple[Action, ...]:
    """Actions of rank r."""
    return (
        *(Action("F", r, j) for j in range(m)),
        *(Action("B", r, j) for j in reversed(range(m))),
    )
