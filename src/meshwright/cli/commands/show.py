"""`show`: the table of a plan again; opens its report, writes its trace, or sets it beside another plan."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import options as o
from ..screen import Screen

if TYPE_CHECKING:
    from ...answer import Reopened
    from ...report.answers import ShardingsAnswer


def show(
    plan: o.PlanPath,
    text: Annotated[bool, typer.Option("--text", help="Only the table: do not open the report.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Write the trace for ui.perfetto.dev again.")] = False,
    diff: Annotated[
        Path | None,
        typer.Option("--diff", metavar="PLAN2", help="Set beside another plan.", autocompletion=o.plan_paths),
    ] = None,
    shardings: Annotated[
        bool, typer.Option("--shardings", help="How each operator is cut, and where values are converted.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Print the table of a plan again and open its report."""
    from ... import answer, save, to_trainer
    from ...output_folder import REPORT, TRACE
    from ...report.diff import diff_lines, diff_object
    from ...report.gains import gain_lines, gain_object
    from ...report.lines import Line
    from ...report.payload import plan_object
    from ...report.table import plan_lines

    screen = Screen(as_json, quiet, verbose, color)
    first = answer.reopened(save.open_plan(plan))
    if shardings:
        return _shardings(screen, first, answer.reopened(save.open_plan(diff)) if diff is not None else None)
    if diff is not None:
        other = answer.reopened(save.open_plan(diff))
        screen.lines(diff_lines(first.outcome, other.outcome, screen.width))
        found = diff_object(first.outcome, other.outcome)
        if (gains := to_trainer.changes_between(first, other)) is not None:
            start, changes = gains
            screen.lines(
                [Line(""), Line("One change after the other", "title"), *gain_lines(start, changes, screen.width)]
            )
            found["gains"] = gain_object(start, changes)
        screen.json(found)
        return 0
    screen.lines(plan_lines(first.outcome, screen.width))
    screen.json(plan_object(first.outcome))
    if trace:
        target = first.folder / TRACE
        save.write_trace_again(first.outcome, target)
        screen.lines([Line(f"Wrote    {target}   open it in ui.perfetto.dev")])
    report = first.folder / REPORT
    if not text and not as_json and not trace and report.exists():
        # In a terminal without a browser this does nothing, and the path is printed either way.
        opened = screen.may_open and webbrowser.open(report.resolve().as_uri())
        screen.lines([Line(f"Report   {report}" + ("   opened" if opened else ""))])
    return 0


def _shardings(screen: Screen, first: Reopened, other: Reopened | None) -> int:
    from ...report.shardings import sharding_diff_lines, sharding_lines, sharding_object, sharding_rows

    rows = [
        sharding_rows(x.stated.problem.graph, x.outcome.plan, x.stated.problem.recipe)
        for x in (first, other)
        if x is not None and x.outcome.plan is not None
    ]
    if len(rows) == 2:
        screen.lines(sharding_diff_lines(rows[0], rows[1], screen.width))
    else:
        screen.lines(sharding_lines(rows[0], screen.width))
    answer: ShardingsAnswer = {
        "schema": "meshwright.shardings/1",
        "status": "ok",
        "plans": [sharding_object(r) for r in rows],
    }
    screen.json(answer)
    return 0
