"""The report of `compare`: the table, step times as bars, memory, and each planner's plan in words."""

from __future__ import annotations

from html import escape

from bokeh.models import ColumnDataSource, HoverTool

from .._words import MISSING, count, gib, number, percent
from .charts.base import Chart, plot, table
from .colors import BLUE, ORANGE
from .compare import Comparison, compare_object
from .html import page
from .plan_words import stage_table
from .table import sure


def compare_html(c: Comparison) -> str:
    q = c.question
    size = f"batch {count(q.batch)}" + (f" of {count(q.seq)} tokens" if q.seq else "")
    chart = steps_chart(c)
    place = '<div class="chart"><!--chart steps--></div>' if chart.plot is not None else ""
    why = "".join(f"<p><b>{escape(e.about.name)}</b>: {escape(e.reason)}</p>" for e in c.entries if e.reason)
    plans = "".join(
        f"<details><summary>{escape(e.about.name)}: {escape(e.row.layout if e.row else '')}</summary>{stage_table(e.outcome)}</details>"
        for e in c.entries
        if e.outcome is not None and e.outcome.plan is not None and e.outcome.simulation is not None
    )
    body = (
        f"<header><h1>{len(c.entries)} planners for {escape(q.model)} on {escape(q.cluster.name)}</h1>"
        f'<p class="soft">{escape(size)} · judged by the simulator and the analytic cost model · seed {c.seed}'
        f"{f' · {number(c.budget)} s each' if c.budget else ''}</p></header>"
        f"<h2>Step time and memory</h2>{place}{chart.table}"
        + (f"<p>{escape(sure(c.best)[0])}</p>" if c.best is not None else "")
        + "<p>The gap and the word optimal are for the planner's own objective, not for the step time.</p>"
        f"{'<h2>Remarks</h2>' + why if why else ''}<h2>The plans in words</h2>{plans or '<p>None.</p>'}"
    )
    return page(
        f"planners for {q.model} on {q.cluster.name} · meshwright", body, {"steps": chart}, compare_object(c, {})
    )


def steps_chart(c: Comparison) -> Chart:
    """A bar a planner; hatched where its plan does not fit."""
    rows = []
    best = c.ranked[0][1].step_s if c.ranked else float("inf")
    for i, e in enumerate(c.entries):
        row = e.row
        fits = row is not None and row.fits
        tie = c.tied_with[i] if fits else -1
        rows.append(
            [
                e.about.name,
                row.layout if row else MISSING,
                ("ok" + (f", tie with {tie + 1}" if tie >= 0 else "")) if fits else "does not fit" if row else e.status,
                number(row.step_s) if row else MISSING,
                percent(row.step_s / best - 1) if row and fits else MISSING,
                gib(row.memory_bytes) if row else MISSING,
                f"{number(e.claim)} {e.unit}",
                percent(e.gap) if e.gap is not None else MISSING,
                number(e.seconds, 2),
            ]
        )
    head = ["planner", "layout", "status", "step s", "to best", "GiB", "own claim", "gap", "search s"]
    plain = table(head, rows, left=3)
    drawn = [(e, e.row) for e in c.entries if e.row is not None]
    if not drawn:
        return Chart(None, plain)
    names = [e.about.name for e, _ in drawn]
    made = plot(90 + 34 * len(names), y_range=list(reversed(names)), x_axis_label="step, seconds")
    made.x_range.start = 0
    made.ygrid.grid_line_color = None
    source = ColumnDataSource(
        {
            "name": names,
            "step": [row.step_s for _, row in drawn],
            "layout": [row.layout for _, row in drawn],
            "fill": [BLUE if row.fits else ORANGE for _, row in drawn],
            "hatch": [" " if row.fits else "/" for _, row in drawn],
            "fits": ["fits" if row.fits else "does not fit" for _, row in drawn],
        }
    )
    glyph = made.hbar(
        y="name",
        right="step",
        height=0.7,
        source=source,
        fill_color="fill",
        hatch_pattern="hatch",
        line_color="#ffffff",
    )
    tips = [("planner", "@name"), ("layout", "@layout"), ("step", "@step{0.000} s"), ("memory", "@fits")]
    made.add_tools(HoverTool(renderers=[glyph], tooltips=tips))
    return Chart(made, plain)
