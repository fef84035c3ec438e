"""Why this plan: what limits it, what the runner-up gains and loses, what other ways of cutting would cost.

Every sentence is a difference of two simulations, so it can be checked against the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from .._words import GIB, gib, number, percent, time_part
from ..simulate.result import Simulation
from .candidates import Candidate

NEGLIGIBLE_SHARE = 0.002
"""Of the step: smaller differences are not worth a word."""
NEGLIGIBLE_BYTES = 0.05 * GIB


@dataclass(frozen=True, slots=True)
class Binding:
    """What keeps a faster plan away: "memory", "time" (nothing faster was refused), or "unknown"."""

    kind: str
    layout: str = ""
    needs_bytes: float = 0.0
    over_bytes: float = 0.0
    faster_by: float = 0.0
    """Share of the step that the refused layout would save; 0 where it was refused before it was priced."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Another candidate against the plan: positive = more than the plan."""

    layout: str
    rank: int
    bytes: float
    seconds: float
    step: float
    """Seconds of the plan's own step."""
    in_table: bool
    """Its row is shown."""
    by_part: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Why:
    binding: Binding
    runner_up: Difference | None
    others: tuple[Difference, ...]

    def sentences(self) -> list[str]:
        return [
            s
            for s in (
                binding_sentence(self.binding),
                runner_up_sentence(self.runner_up) if self.runner_up else "",
                others_sentence(self.others),
            )
            if s
        ]


def explain(
    candidates: Sequence[Candidate],
    misses: Sequence[Candidate],
    simulations: Sequence[Simulation],
    ranks: Sequence[int] = (),
    shown: int = 5,
) -> Why:
    """`candidates` fastest first; `simulations` of those at `ranks` (default: the first); `misses` nearest first.

    Args:
        shown: rows of the table, so that a sentence may name a row.
    """
    ranks = list(ranks) or list(range(min(len(candidates), len(simulations))))
    found = [
        difference(i, candidates[i], candidates[0], sim, simulations[0], i < shown)
        for i, sim in zip(ranks[1:], simulations[1:], strict=True)
    ]
    runner_up = next((d for d in found if d.rank == 1), None)
    return Why(_binding(candidates, misses), runner_up, tuple(d for d in found if d.rank != 1))


def worth_explaining(candidates: Sequence[Candidate]) -> list[int]:
    """Rows to compare: the plan, the runner-up, and the fastest of another pipeline depth and of another tensor degree."""
    if not candidates:
        return []
    best = degrees(candidates[0].layout)
    ranks = [0, 1][: len(candidates)]
    for axis in ("pp", "tp"):
        other = (i for i, c in enumerate(candidates) if i > 1 and degrees(c.layout).get(axis, 1) != best.get(axis, 1))
        ranks += [i for i in (next(other, -1),) if i > 0 and i not in ranks]
    return ranks


def degrees(layout: str) -> dict[str, int]:
    """ "dp32 tp2+sp pp2×6 z1" -> {"dp": 32, "tp": 2, "pp": 2}."""
    return {axis: int(n) for axis, n in re.findall(r"\b(dp|tp|pp)(\d+)", layout)}


def _binding(candidates: Sequence[Candidate], misses: Sequence[Candidate]) -> Binding:
    best = candidates[0].step_s if candidates else float("inf")
    faster = [m for m in misses if isfinite(m.step_s) and m.step_s < best]
    unpriced = [m for m in misses if not isfinite(m.step_s)]
    if faster:
        miss = min(faster, key=lambda m: m.over_bytes)
        return Binding("memory", miss.layout, miss.memory_bytes, miss.over_bytes, 1 - miss.step_s / best)
    if unpriced:
        miss = min(unpriced, key=lambda m: m.over_bytes)
        return Binding("unknown", miss.layout, miss.memory_bytes, miss.over_bytes)
    return Binding("time")


def difference(
    rank: int, other: Candidate, best: Candidate, theirs: Simulation, ours: Simulation, in_table: bool = True
) -> Difference:
    parts = {
        key: theirs.seconds_by.get(key, 0.0) - ours.seconds_by.get(key, 0.0)
        for key in (*ours.seconds_by, *(k for k in theirs.seconds_by if k not in ours.seconds_by))
    }
    return Difference(
        other.layout,
        rank,
        other.memory_bytes - best.memory_bytes,
        theirs.step_seconds - ours.step_seconds,
        ours.step_seconds,
        in_table,
        parts,
    )


def binding_sentence(b: Binding) -> str:
    if b.kind == "memory":
        return (
            f"Memory binds: {b.layout} would be {percent(b.faster_by)} faster but needs {gib(b.needs_bytes)} GiB, "
            f"{gib(b.over_bytes)} too much."
        )
    if b.kind == "unknown":
        return f"Memory refuses {b.layout}: it needs {gib(b.needs_bytes)} GiB, {gib(b.over_bytes)} too much."
    return "Memory does not bind: no faster layout was refused for it."


def runner_up_sentence(d: Difference) -> str:
    gains, losses = _changes(d)
    memory = ""
    if abs(d.bytes) >= NEGLIGIBLE_BYTES:
        memory = f"{'saves' if d.bytes < 0 else 'needs'} {gib(abs(d.bytes))} GiB{' more' if d.bytes > 0 else ''}"
    if not losses:
        return f"Runner-up {d.layout} is as fast" + (f" and {memory}." if memory else ".")
    loss = f"adds {losses[0]}" + (f" and saves {gains[0]}" if gains else "")
    return f"Runner-up {d.layout} " + (
        f"{memory} but {loss}." if d.bytes < 0 and memory else " and ".join(filter(None, (memory, loss))) + "."
    )


def others_sentence(others: Sequence[Difference]) -> str:
    parts = []
    for d in others[:2]:
        _, losses = _changes(d)
        if losses:
            row = f" (row {d.rank + 1})" if d.in_table else ""
            parts.append(f"{d.layout}{row} adds {losses[0]}")
    return ("; ".join(parts) + ".") if parts else ""


def _changes(d: Difference) -> tuple[list[str], list[str]]:
    """(what it saves, what it adds), largest first, each as "0.3 s of exposed all-gather"."""
    floor = NEGLIGIBLE_SHARE * d.step
    saved: list[str] = []
    added: list[str] = []
    for key, value in sorted(d.by_part.items(), key=lambda item: -abs(item[1])):
        if abs(value) <= floor:
            continue
        (added if value > 0 else saved).append(f"{number(abs(value), 2)} s of {time_part(key)}")
    return saved, added
