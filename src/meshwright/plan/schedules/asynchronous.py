"""Pipelines without a flush: PipeDream (SOSP 2019, DOI 10.1145/3341301.3359646) and PipeDream-2BW (arXiv 2006.09503).

The schedules are endless; a table is their first `m` mini-batches (2BW: the first `batches` batches of m micro-batches)
with the drain at the end. UPDATE makes a new version of the stage's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model import Action


def warm_up(replicas: Sequence[int], s: int) -> int:
    """Forwards of each replica of stage s before it alternates; it keeps one weight version more than that."""
    return (sum(replicas) - 1 - sum(replicas[:s])) // replicas[s]


def pipedream(m: int, replicas: Sequence[int]) -> tuple[tuple[Action, ...], ...]:
    """Actions of all workers: the replicas of stage 0, then those of stage 1, and so on; mini-batch b on replica b mod r."""
    found = []
    for s, count in enumerate(replicas):
        for replica in range(count):
            own = range(replica, m, count)
            first = min(warm_up(replicas, s), len(own))
            actions = [Action("F", s, b) for b in own[:first]]
            for k, b in enumerate(own):
                if first + k < len(own):
                    actions.append(Action("F", s, own[first + k]))
                actions += [Action("B", s, b), Action("UPDATE", s, b)]
            found.append(tuple(actions))
    return tuple(found)


def double_buffered(p: int, m: int, r: int, batches: int) -> tuple[Action, ...]:
    """Actions of rank r of 2BW: an update after every m-th backward, stages at different times."""
    total = m * batches
    first = min(p - 1 - r, total)
    actions = [Action("F", r, j) for j in range(first)]
    for j in range(total):
        if first + j < total:
            actions.append(Action("F", r, first + j))
        actions.append(Action("B", r, j))
        if (j + 1) % m == 0:
            actions.append(Action("UPDATE", r, j // m))
    return tuple(actions)


def version(k: int, m: int) -> int:
    """The weight version that micro-batch k of 2BW uses, forward and backward: never older than one update."""
    return max(k // m - 1, 0)
