"""Early backward scheduling of DAPPLE (Fan et al. 2021, arXiv 2007.01045, section 4): 1F1B that admits few micro-batches.

Policy A admits what 1F1B admits; policy B about twice as much, which hides the transfers. D is what fits in memory.
"""

from __future__ import annotations

from ..model import Action


def admitted(policy: str, p: int, m: int, r: int, fitting: int) -> int:
    """Forwards of rank r before its first backward; also its peak of micro-batches held. fitting 0 = no limit."""
    wanted = p - r if policy == "A" else 2 * (p - r) - 1
    return min(wanted, m, fitting or m)


def early_backward(p: int, m: int, r: int, policy: str, fitting: int) -> tuple[Action, ...]:
    """Actions of rank r."""
    first = admitted(policy, p, m, r, fitting)
    actions = [Action("F", r, j) for j in range(first)]
    for j in range(m):
        actions.append(Action("B", r, j))
        if first + j < m:
            actions.append(Action("F", r, first + j))
    return tuple(actions)
