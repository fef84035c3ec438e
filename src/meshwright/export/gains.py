"""From one layout to another, one option at a time: what each change is worth.

The path is greedy: of the changes that are left, the one after which the step is shortest comes next, those that fit before those
that do not. What a change is worth depends on those before it, so the figures belong to this order; they add up to the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import MeshwrightError
from ..simulate.price import Pricer
from .outcome import priced
from .setup import Setup

TOGETHER: Sequence[tuple[str, ...]] = (
    ("dp", "tp", "pp", "cp", "ep", "whole_experts", "replicate"),
    ("micro_batch",),
    ("zero", "reshard"),
    ("recompute",),
    ("sequence",),
    ("context",),
    ("schedule", "chunks", "parts"),
)
"""Words that change together: degrees multiply to the devices, a schedule has its stages."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change."""

    words: tuple[str, ...]
    before: Setup
    after: Setup
    seconds: float
    """Of a step after it."""
    memory: float
    """Bytes on the fullest device after it."""
    fits: bool

    def options(self, spelled: Callable[[Setup], Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
        """Option -> (before, after), None where one does not write it."""
        a, b = spelled(self.before), spelled(self.after)
        return {k: (a.get(k), b.get(k)) for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)}


def path(theirs: Setup, ours: Setup, as_run: Callable[[Setup], Setup] = lambda setup: setup) -> Iterator[Step]:
    """Changes that lead from one layout to the other, of the same problem.

    Args:
        as_run: a layout on the way as the target runs it, where that is more than its words say (`Setup.sums_each`).
    """
    problem = theirs.problem
    usable = min(problem.limits.usable(t.memory) for t in problem.cluster.types)
    pricer = Pricer(problem.graph, problem.cluster, problem.cost, problem.recipe)
    here, left = theirs, [g for g in TOGETHER if _differ(theirs, ours, g)]
    while left:
        tried = []
        for group in left:
            changed = _changed(here, ours, group)
            if changed is None:
                continue
            changed = as_run(changed)
            try:
                found = priced(changed, pricer=pricer)
            except MeshwrightError:
                continue  # a mixture of the two that no layout has
            peak = float(found.peak.max())
            tried.append(Step(group, here, changed, found.step_seconds, peak, peak <= usable))
        if not tried:  # nothing can change alone any more
            found = priced(ours, pricer=pricer)
            peak = float(found.peak.max())
            yield Step(tuple(w for g in left for w in g), here, ours, found.step_seconds, peak, peak <= usable)
            return
        step = min(tried, key=lambda s: (not s.fits, s.seconds))
        yield step
        here, left = step.after, [g for g in left if g != step.words and _differ(step.after, ours, g)]


def gaining(theirs: Setup, steps: Iterable[Step], spelled: Callable[[Setup], Mapping[str, Any]]) -> Iterator[Step]:
    """Steps of `path`, each a change that is worth making: it makes the step shorter, or fit.

    A change that the target has no option for belongs to the one before it, whose options bring it about; one that makes the step
    longer, to those behind it that it makes room for; and those at the end that only cost are left out.
    """
    problem = theirs.problem
    found = priced(theirs)
    usable, peak = min(problem.limits.usable(t.memory) for t in problem.cluster.types), float(found.peak.max())
    rows = [Step((), theirs, theirs, found.step_seconds, peak, peak <= usable)]
    waiting: Step | None = None
    for step in steps:
        if waiting is None and len(rows) > 1 and not step.options(spelled):
            waiting = rows.pop()
        waiting = step if waiting is None else replace(step, words=waiting.words + step.words, before=waiting.before)
        if waiting.options(spelled) and _better(waiting, rows[-1]):
            rows.append(waiting)
            waiting = None
    yield from rows[1:]


def _better(step: Step, before: Step) -> bool:
    if step.fits != before.fits:
        return step.fits
    return step.seconds < before.seconds * (1 - 1e-9)


def _differ(a: Setup, b: Setup, group: Sequence[str]) -> bool:
    return any(_word(a, w) != _word(b, w) for w in group)


def _word(setup: Setup, word: str) -> Any:
    return setup.layout.parts if word == "parts" else getattr(setup.point, word)


def _changed(here: Setup, ours: Setup, group: Sequence[str]) -> Setup | None:
    """With the words of one group; None where that is no layout: a batch that does not split, stages that do not fit."""
    words = {w: _word(ours, w) for w in group}
    if "pp" in words:
        words |= {"chunks": here.point.chunks, "schedule": here.point.schedule, "parts": here.layout.parts}
        if words["pp"] != here.point.pp:
            words |= {w: _word(ours, w) for w in ("schedule", "chunks", "parts")}
        if words["tp"] == 1:
            words["sequence"] = False
        if words["dp"] == 1:
            words |= {"zero": 0, "reshard": True}
    elif "parts" in words and ours.point.pp != here.point.pp:
        return None
    point = here.with_words(**words).point
    each = point.replicas * point.micro_batch
    if here.layout.samples % each or point.replicate > point.dp:
        return None
    return here.with_words(**words)
