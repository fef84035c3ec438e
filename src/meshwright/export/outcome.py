"""Export one plan to one target: what level, which files, which sentences, and both prices where the target runs it otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import Unsupported
from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate.price import Pricer
from ..simulate.result import Simulation
from ..simulate.simulator import simulate
from .base import Exporter
from .said import WORDS, Level, Said
from .setup import Setup, setup_of

RANK: Mapping[str, int] = {"exact": 0, "close": 1, "refused": 2}
ROUNDS = 4
"""Times that what runs instead is asked for again, until the target has no more to change."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The answer of a target. Refused without `lossy`: no files."""

    exporter: Exporter
    level: Level
    sentences: tuple[str, ...]
    """Why it is close or refused, refused first."""
    said: tuple[Said, ...]
    files: Mapping[str, str]
    setup: Setup
    """As the plan has it."""
    runs: Setup
    """As the target runs it; the same where it is exact."""
    broken: bool = False
    """A condition of the target does not hold, so that nothing near it can be written either."""

    def prices(self) -> tuple[Simulation, Simulation]:
        """Simulated as the plan has it, and as the target runs it."""
        own = priced(self.setup)
        return own, own if self.runs == self.setup else priced(self.runs)


def priced(setup: Setup, *, detail: bool = False, pricer: Pricer | None = None) -> Simulation:
    """A setup, simulated. Where gradients are summed at every micro-batch, without a pipeline: each is a step of its own but
    for the optimizer and what a step takes once; then there is no timeline.

    Args:
        pricer: prices of earlier setups of the same problem, to be used again.
    """
    problem, m = setup.problem, setup.layout.micro_batches
    whole = simulate(problem, setup.plan(), detail=detail, pricer=pricer)
    if not setup.sums_each or m == 1 or setup.point.pp > 1:
        return whole
    samples = setup.layout.samples // m
    alone = replace(setup, problem=replace(problem, recipe=replace(problem.recipe, samples=samples)))
    one = simulate(alone.problem, alone.with_words(samples=samples).plan(), detail=detail)
    factor, fixed = problem.cost.step_overhead(setup.world)
    each, update = (one.step_seconds - fixed) / factor, one.seconds_by.get("optimizer", 0.0)
    seconds = factor * (m * (each - update) + update) + fixed
    return replace(
        whole,
        step_seconds=seconds,
        samples_per_second=setup.layout.samples / seconds,
        mfu=whole.mfu * whole.step_seconds / seconds,
        exposed_communication=m * one.exposed_communication,
        seconds_by=_times(one.seconds_by, m, seconds),
        events=(),
        calls_by={kind: m * n for kind, n in one.calls_by.items()},
        bytes_by={kind: m * n for kind, n in one.bytes_by.items()},
        lane_seconds=tuple(_times(parts, m, seconds) for parts in one.lane_seconds),
    )


def _times(parts: Mapping[str, float], m: int, seconds: float) -> dict[str, float]:
    """Parts of a step of one micro-batch as those of a step of `m`: the optimizer once, the rest to `seconds` idle."""
    found = {k: v * (1 if k == "optimizer" else m) for k, v in parts.items() if k != "idle"}
    return found | {"idle": max(0.0, seconds - sum(found.values()))}


def export(exporter: Exporter, problem: Problem, plan: Plan, *, name: str = "", lossy: bool = False) -> Exported:
    """One plan for one target.

    Args:
        name: of the model.
        lossy: write the nearest that the target can say, where it cannot say the plan.

    Raises:
        Unsupported: the plan says what no trainer but our own runner says; the sentence names it.
    """
    try:
        setup = setup_of(problem, plan, name)
    except Unsupported as error:
        raise Unsupported(
            f"{exporter.called} cannot say this plan: {error.message}; our own runner can (meshwright run)",
            where="--to",
        ) from None
    return answer(exporter, setup, lossy=lossy)


def answer(exporter: Exporter, setup: Setup, *, lossy: bool = False) -> Exported:
    """The same for a plan that is in words already."""
    found = verdict(exporter, setup)
    written = not found.broken and (found.level != "refused" or lossy)
    return replace(found, files=exporter.files(found.runs)) if written else found


def verdict(exporter: Exporter, setup: Setup) -> Exported:
    """The answer without the files."""
    said = tuple(exporter.said(setup))
    missing = set(WORDS) - {s.word for s in said}
    if missing:
        raise AssertionError(f"{exporter.name} says nothing of {', '.join(sorted(missing))}")
    runs = as_run(setup, said)
    new: dict[str, Said] = {}
    exact = {s.word for s in said} - {s.word for s in said if s.level != "exact"}
    for _ in range(ROUNDS if runs is not setup else 0):
        # What one word gives way to may be what another cannot have: a pipeline's ranks as replicas, say, that hold whole copies.
        theirs = tuple(exporter.said(runs))
        new |= {s.word: s for s in theirs if s.level != "exact" and s.word in exact}
        before, runs = runs, as_run(runs, theirs)
        if (before.layout, before.sums_each) == (runs.layout, runs.sums_each):
            break
    level: Level = max((s.level for s in (*said, *new.values())), key=RANK.__getitem__)
    broken = broken_conditions(exporter, runs)
    worst = sorted((s for s in (*said, *new.values()) if s.level != "exact"), key=lambda s: -RANK[s.level])
    sentences = dict.fromkeys([*(s.why for s in worst), *broken])
    return Exported(exporter, "refused" if broken else level, tuple(sentences), said, {}, setup, runs, bool(broken))


def as_run(setup: Setup, said: Iterable[Said]) -> Setup:
    """A setup with what the answers to its words say runs instead."""
    changed: dict[str, Any] = {}
    for s in said:
        changed.update(s.runs_as)
    return setup.with_words(**changed) if changed else setup


def broken_conditions(exporter: Exporter, setup: Setup) -> list[str]:
    """Sentences of the target's own conditions that do not hold."""
    found = []
    for condition in exporter.conditions():
        if words := condition.broken(setup):
            ours = " (our own runner takes it, unevenly)" if condition.unevenly else ""
            found.append(f"{exporter.called} needs {words}{ours}")
    return found
