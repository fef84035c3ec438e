"""The table of `compare`: what each planner found, judged by one simulator, and what it claimed itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import TYPE_CHECKING, Protocol

from .._views import Viewed
from .._words import MISSING, count, number, percent
from .answers import CompareAnswer, ComparedAnswer
from .candidates import Candidate, ties
from .error_model import error_model
from .lines import Line, Style, columns, labelled
from .outcome import Outcome, Question
from .payload import error_model_object, plan_object
from .table import sure

if TYPE_CHECKING:
    pass

NOT_SIMULATED = "not simulated"
HEADS = ("family", "step s", "to best", "memory", "own claim", "gap", "search s", "status")
DROPPED = ("family", "gap", "own claim", "search s")
"""Columns that a narrow terminal loses, first to last."""


class About(Protocol):
    """What the table needs to know of a planner."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def year(self) -> int: ...
    @property
    def reference(self) -> str: ...


@dataclass(frozen=True)
class Entry:
    """One planner's answer."""

    about: About
    status: str
    """The planner's own, "refused" (it cannot take this problem), "not simulated" (its plan has no price), or "failed"."""
    reason: str
    claim: float
    """By its own objective."""
    unit: str
    bound: float | None
    seconds: float
    outcome: Outcome | None
    """None: no plan."""

    @property
    def row(self) -> Candidate | None:
        """Its plan, judged by the simulator; None without a plan."""
        if self.outcome is None:
            return None
        rows = (*self.outcome.candidates, *self.outcome.misses)
        return rows[0] if rows else None

    @property
    def staleness(self) -> int:
        """Updates that its gradients are late at most; 0 = every step ends with a flush."""
        found = self.outcome.simulation if self.outcome is not None else None
        return found.staleness if found is not None else 0

    def order(self) -> tuple[int, float, str]:
        """Plans that fit by step time, those without a flush behind the others; then plans that do not fit, then those
        without one."""
        row = self.row
        if row is None:
            return 3, inf, self.about.name
        return (2 if not row.fits else 1 if self.staleness else 0), row.step_s, self.about.name

    @property
    def gap(self) -> float | None:
        """Relative distance from the planner's own proven bound."""
        if self.bound is None or not isfinite(self.claim) or self.claim == 0:
            return None
        return abs(self.claim - self.bound) / abs(self.claim)


@dataclass(frozen=True)
class Comparison(Viewed):
    question: Question
    entries: tuple[Entry, ...]
    """Best first."""
    seed: int
    budget: float | None

    @cached_property
    def ranked(self) -> list[tuple[Entry, Candidate]]:
        return [(e, e.row) for e in self.entries if e.row is not None and e.row.fits]

    @property
    def answered(self) -> bool:
        """Whether a planner found a plan that fits, or that only the simulator cannot price."""
        return bool(self.ranked) or any(e.status == NOT_SIMULATED for e in self.entries)

    @cached_property
    def best(self) -> Outcome | None:
        """The outcome of the first planner with a plan that fits."""
        return self.ranked[0][0].outcome if self.ranked else None

    @cached_property
    def tied_with(self) -> list[int]:
        steps = [row.step_s for e, row in self.ranked if not e.staleness]
        return [*ties(steps, error_model().pairs_within), *(-1 for _ in self.ranked[len(steps) :])]

    def records(self) -> list[ComparedAnswer]:
        """One row a planner; units in the keys."""
        best = self.ranked[0][1].step_s if self.ranked else inf
        return [_record(e, best) for e in self.entries]


def compare_lines(c: Comparison, width: int) -> list[Line]:
    q = c.question
    size = f"batch {count(q.batch)}" + (f" of {count(q.seq)}" if q.seq else "")
    budget = f", {number(c.budget)} s each" if c.budget else ""
    left, right = (
        f"{q.model} on {q.cluster.name}, {size}",
        f"judged by: simulator + analytic cost, seed {c.seed}{budget}",
    )
    heads = (
        [Line(f"{left}     {right}", "title")]
        if len(left) + len(right) + 5 <= width
        else [Line(left, "title"), Line(right)]
    )
    rows = planner_rows(c)
    texts, ties_below = _fitted(rows, c, width)
    styles: list[Style] = ["quiet"]
    styles += ["chosen" if i == 0 and _fits(e) else "" if _fits(e) else "refused" for i, e in enumerate(c.entries)]
    lines = [*heads, *(Line(t, s) for t, s in zip(texts, styles, strict=True))]
    if ties_below:
        lines += [Line(t) for t in labelled("", [ties_below], width, indent=0)]
    starred = any("*" in cell for row in rows for cell in row)
    if starred:
        note = "* gap and optimality are for the planner's own objective, not for the step time"
        lines += [Line(t, "quiet") for t in labelled("", [note], width, indent=0)]
    if any(e.staleness for e in c.entries):
        note = (
            "†k without a flush: gradients are up to k updates late, so its steps do not learn what those of the others do; "
            "it stands behind them however short its period is"
        )
        lines += [Line(t, "quiet") for t in labelled("", [note], width, indent=0)]
    if c.best is not None:
        lines += [Line(t) for t in labelled("Sure?", sure(c.best)[:1], width)]
    for entry in c.entries:
        if entry.reason and not _fits(entry):
            lines += [Line(t) for t in labelled("", [f"{entry.about.name}: {entry.reason}"], width, indent=0)]
    return lines


def _fits(entry: Entry) -> bool:
    return entry.row is not None and entry.row.fits


def planner_rows(c: Comparison) -> list[list[str]]:
    """The table without ties, its heads first."""
    wide = len(str(len(c.ranked)))
    rows = [[" " * (wide + 3) + "planner", *HEADS]]
    best = c.ranked[0][1].step_s if c.ranked else inf
    for i, entry in enumerate(c.entries):
        row, fits = entry.row, _fits(entry)
        rank = f"{'▶' if i == 0 else ' '} {i + 1:{wide}}" if fits else f"  {'–':>{wide}}"
        status = "ok" if fits else "does not fit" if row is not None else entry.status
        rows.append(
            [
                f"{rank} {entry.about.name}" + (f" †{entry.staleness}" if entry.staleness else ""),
                entry.about.family,
                number(row.step_s) if row else MISSING,
                MISSING if not fits or i == 0 or row is None else _to_best(row.step_s / best - 1),
                f"{100 * row.memory_bytes / c.question.usable:.0f} %" if row else MISSING,
                f"{number(entry.claim)} {_short(entry.unit)}" if isfinite(entry.claim) else MISSING,
                f"{percent(entry.gap)} *" if entry.gap is not None else MISSING,
                number(entry.seconds, 2),
                "optimal *" if entry.status == "optimal" and fits else status,
            ]
        )
    return rows


def _to_best(share: float) -> str:
    return f"{'+' if share >= 0 else '-'} {_above(abs(share))}"


def _above(share: float) -> str:
    return percent(share, 1 if share < 1 else 0)


def _short(unit: str) -> str:
    return unit.replace("micro-batch", "µbatch")


def _fitted(rows: list[list[str]], c: Comparison, width: int) -> tuple[list[str], str]:
    """(lines of the table, ties if they stand below it): what does not fit is first moved, then set closer, then left out."""
    tied = [(i, t) for i, t in enumerate(c.tied_with) if t >= 0]
    right = set(range(2, 8))
    beside = [[*r[:-1], r[-1]] for r in rows]
    for i, t in tied:
        beside[i + 1][-1] += f"   tie with {t + 1}"
    below = f"Ties: {', '.join(f'{i + 1} with {t + 1}' for i, t in tied)}" if tied else ""
    keep = list(range(len(rows[0])))
    for table, gap, note in ((beside, 2, ""), (rows, 2, below), (rows, 1, below)):
        texts = columns(table, right, gap)
        if max(map(len, texts)) <= width:
            return texts, note
    for name in DROPPED:
        keep.remove(1 + HEADS.index(name))
        kept, numbers = [[r[k] for k in keep] for r in rows], {j for j, k in enumerate(keep) if k in right}
        for gap in (2, 1):
            texts = columns(kept, numbers, gap)
            if max(map(len, texts)) <= width:
                return texts, below
    return texts, below


def compare_object(c: Comparison, files: Mapping[str, str]) -> CompareAnswer:
    q = c.question
    return {
        "schema": "meshwright.compare/1",
        "status": "ok" if c.answered else "infeasible",
        "problem": {"model": q.model, "cluster": q.cluster.name, "batch": q.batch, "seq": q.seq},
        "seed": c.seed,
        "budget_s": c.budget,
        "planners": c.records(),
        "error_model": error_model_object(c.best) if c.best is not None else None,
        "plans": {e.about.name: plan_object(e.outcome)["plan"] for e in c.entries if e.outcome is not None},
        "files": dict(files),
    }


def compare_csv(c: Comparison) -> str:
    out = io.StringIO()
    records = c.records()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def citations(c: Comparison) -> str:
    """BibTeX of the planners that took part."""
    return "\n".join(
        f"@misc{{meshwright-{e.about.name},\n  title = {{{e.about.title}}},\n  year = {{{e.about.year}}},\n"
        f"  note = {{{e.about.reference}}}\n}}\n"
        for e in c.entries
    )


def _record(e: Entry, best: float) -> ComparedAnswer:
    row = e.row
    fits = row is not None and row.fits
    low, high = (e.outcome.interval(row.step_s) if e.outcome and row else None) or (None, None)
    return {
        "planner": e.about.name,
        "family": e.about.family,
        "status": e.status,
        "fits": fits,
        "layout": row.layout if row else None,
        "step_s": row.step_s if row else None,
        "step_low_s": low,
        "step_high_s": high,
        "staleness": e.staleness,
        "to_best": row.step_s / best - 1 if row is not None and fits else None,
        "memory_bytes": row.memory_bytes if row else None,
        "claim": e.claim if isfinite(e.claim) else None,
        "claim_unit": e.unit,
        "bound": e.bound,
        "search_s": e.seconds,
        "reason": e.reason,
    }
