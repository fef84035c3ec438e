"""Steps with a flush whose micro-batches are dealt: those of a stage of d replicas go to them in turn (Piper, arXiv 2006.16423).

1f1b, replicas 2, 1     copy 0   F0 F2 B0 F4 B2 ... B4       micro-batch k of a stage runs on its replica k mod d
                        copy 1   F1 F3 B1    B3
                        copy 2   F0 B0 F1 B1 F2 B2 F3 B3 F4 B4

A replica warms up as PipeDream's do, so it holds at most ⌈s / d⌉ micro-batches, s being the replicas of its stage and of
all later ones: what Piper counts. GPipe's rows are those of its stage with the micro-batches of the others left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ...errors import InputError
from ..model import Action, Row
from .asynchronous import pipedream_workers
from .gpipe import gpipe

DEALT = ("1f1b", "gpipe")
"""Schedules with a flush under which replicas may take turns."""


def dealt_rows(name: str, replicas: Sequence[int], m: int) -> tuple[Row, ...]:
    """A row for each replica of each stage, stage after stage; an action's stage is the number of the replica in that order.

    Args:
        name: of `DEALT`.
        replicas: of each stage.
        m: micro-batches of a step.

    Raises:
        InputError: a replica would have none.
    """
    most = max(range(len(replicas)), key=replicas.__getitem__)
    if replicas[most] > m:
        raise InputError(
            f"stage {most} deals {m} micro-batches to {replicas[most]} replicas, so some would have none: take {m} replicas or "
            f"{replicas[most]} micro-batches"
        )
    return _rows(name, tuple(replicas), m)


@lru_cache(maxsize=64)
def _rows(name: str, replicas: tuple[int, ...], m: int) -> tuple[Row, ...]:
    found = []
    for e, worker in enumerate(pipedream_workers(replicas)):
        if name == "gpipe":
            own: Sequence[Action] = [a for a in gpipe(1, m, 0) if a.micro_batch % worker.replicas == worker.replica]
        else:
            own = [a for a in worker.table(m) if a.kind != "UPDATE"]
        found.append(Row((e,), tuple(replace(a, on=e) for a in own)))
    return tuple(found)
