"""`simulate --from FILE`: what a trainer's settings cost, and which option would gain what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..screen import Screen
from ._asked import working

if TYPE_CHECKING:
    from ...report.answers import ImportedAnswer
    from ...request import Request
    from ...to_trainer import Imported


def simulate_from(screen: Screen, request: Request, file: Path, format_name: str, out: Path | None) -> int:
    """Price a trainer's settings, search what the same trainer would run fastest, and say which option gains what."""
    from ... import answer, save, to_trainer
    from ...export.outcome import priced
    from ...report.gains import gain_lines, gain_object
    from ...report.lines import Line, labelled
    from ...report.payload import plan_object
    from ...report.table import plan_lines

    with working(screen) as (progress, interrupt):
        theirs = to_trainer.imported(request, file, format_name, progress.line)
        price = priced(theirs.setup, detail=True)
        outcome = answer.of_plan(theirs.stated, theirs.setup.plan(), theirs.exporter.called, simulation=price)
        target = request.trainer or f"{theirs.exporter.name}@{theirs.exporter.version}"
        better = replace(theirs.stated, request=replace(theirs.stated.request, trainer=target))
        planner = answer.planner_of(better.request, 1)
        progress.planner, progress.unit = planner.info.name, planner.unit_of(better.problem)
        best = answer.search(better, planner, top=1, progress=progress.search, stopped=lambda: interrupt.count > 0)
        changes = to_trainer.changes(theirs, best.plan) if best.plan is not None else []
        if out is not None:
            interrupt.writing = True
            outcome = save.write(outcome, theirs.stated, out)
    screen.lines(plan_lines(outcome, screen.width))
    words = [f"{theirs.exporter.called} from {file}"]
    words += [f"not understood: {option} ({instead})" for option, instead in theirs.read.ignored.items()]
    screen.lines(Line(t) for t in labelled("Read", words, screen.width))
    first = outcome.simulation.step_seconds if outcome.simulation is not None else float("nan")
    screen.lines(
        [
            Line(""),
            Line(f"What {theirs.exporter.title} could do on the same machine, one change after the other", "title"),
        ]
    )
    screen.lines(gain_lines(first, changes, screen.width))
    screen.lines([Line(""), *_next(theirs, request, target)])
    found: ImportedAnswer = {
        **plan_object(outcome),
        "from": str(file),
        "trainer": theirs.exporter.called,
        "ignored": dict(theirs.read.ignored),
        "gains": gain_object(first, changes),
    }
    screen.json(found)
    return 0 if outcome.candidates else 3


def _next(theirs: Imported, request: Request, target: str) -> list[Any]:
    from ...report.lines import Line

    q = theirs.stated.request
    size = f" --batch {q.batch}" + (f" --seq {q.seq}" if q.seq else "")
    command = f"meshwright plan {request.model} -c {request.cluster}{size} --for {target}"
    return [Line(f"Next     {command}"), Line(f"         meshwright export PLAN --to {target}", "quiet")]
