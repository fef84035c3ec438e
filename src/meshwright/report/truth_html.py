"""The page of `validate --html`: every step predicted against measured, the tables, and every row by its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d

from .._words import number, plural
from .charts.base import Chart, legend_outside, plot, table
from .colors import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE
from .html import page
from .truth import HEADS, SECTIONS, facts, memory_rows, score_rows, share, signed

MARKS = (("dense", BLUE, "circle"), ("MoE", ORANGE, "triangle"), ("low precision", GREEN, "square"))
FLAGGED = ("apart", PURPLE, "x")
WORST = 200
"""Rows of the table of single steps."""


def truth_html(answer: Mapping[str, Any]) -> str:
    """The whole file as text."""
    steps = steps_chart(answer)
    worst = sorted(answer["predictions"], key=lambda p: -abs(p["error"]))
    body = (
        f"<header><h1>Predicted against measured</h1><p class='soft'>{answer['rows']:,} published steps of "
        f"{plural(len(answer['sources']), 'source')}, each predicted by constants fitted without it</p></header>"
        f"<div class='chart'><!--chart steps--></div><p class='soft'>{escape(steps.caption)}</p>"
        + "".join(_section(word, rows) for word, rows in _tables(answer))
        + (
            "<h2>Memory</h2>" + table(["kind", "steps", "error", "median", "90 %"], memory_rows(answer["memory"]))
            if answer["memory"]
            else ""
        )
        + "".join(
            f"<h2>{escape(label)}</h2>" + "".join(f"<p>{escape(words)}</p>" for words in paragraphs)
            for label, paragraphs in facts(answer).items()
        )
        + f"<h2>Steps that are furthest off</h2>{table(ROW_HEADS, [_row(p) for p in worst[:WORST]], left=6)}"
    )
    return page("predicted against measured · meshwright", body, {"steps": steps}, answer)


ROW_HEADS = (
    "source",
    "row",
    "where",
    "device",
    "kind",
    "layout",
    "devices",
    "measured s",
    "predicted s",
    "error",
    "memory",
)


def _row(p: Mapping[str, Any]) -> list[str]:
    return [
        p["source"], p["id"], p["where"], p["device"], p["kind"] + (" *" if p["flagged"] else ""), p["layout"],
        f"{p['devices']:,}", number(p["measured_s"]), number(p["predicted_s"]), signed(p["error"]),
        signed(p["memory_error"]),
    ]  # fmt: skip


def _tables(answer: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(first head, rows) of the tables that have rows."""
    found: list[tuple[str, list[list[str]]]] = []
    words = {word for _, word in SECTIONS}
    for row in score_rows(answer):
        if row[0] in words:
            found.append((row[0], []))
        elif row[0]:
            found[-1][1].append(row)
    return found


def _section(word: str, rows: Sequence[Sequence[str]]) -> str:
    return f"<h2>By {escape(word)}</h2>{table([word, *HEADS], rows)}"


def steps_chart(answer: Mapping[str, Any]) -> Chart:
    """Measured across, predicted up, both logarithmic; the line of equality and a tenth beside it."""
    rows = answer["predictions"]
    seconds = np.array([[p["measured_s"], p["predicted_s"]] for p in rows])
    low, high = float(seconds.min()) / 1.3, float(seconds.max()) * 1.3
    made = plot(
        520, "pan,wheel_zoom,box_zoom,reset,save", x_axis_type="log", y_axis_type="log", x_axis_label="measured step, seconds",
        y_axis_label="predicted step, seconds", x_range=Range1d(low, high), y_range=Range1d(low, high),
    )  # fmt: skip
    made.toolbar.active_drag = None
    ends = np.array([low, high])
    made.line(ends, ends, color=BLACK, line_width=1)
    for factor in (0.9, 1.1):
        made.line(ends, ends * factor, color=GREY, line_width=1, line_dash="dashed")
    for name, color, marker in (*MARKS, FLAGGED):
        group = [p for p in rows if (FLAGGED[0] if p["flagged"] else p["kind"]) == name]
        if group:
            glyph = made.scatter(
                "measured", "predicted", source=_source(group), size=6, color=color, marker=marker, alpha=0.6,
                legend_label=f"{name} ({len(group):,})",
            )  # fmt: skip
            tips = [("source", "@source"), ("row", "@id"), ("layout", "@layout on @devices @device"), ("measured", "@measured{0.000} s"), ("predicted", "@predicted{0.000} s"), ("error", "@error")]  # fmt: skip
            made.add_tools(HoverTool(renderers=[glyph], tooltips=tips))
    legend_outside(made)
    inside = float(np.mean(np.abs(seconds[:, 1] / seconds[:, 0] - 1) <= 0.1))
    return Chart(made, "", f"Dashed: 10 % off; {share(100 * inside)} of the steps are between.")


def _source(group: Sequence[Mapping[str, Any]]) -> ColumnDataSource:
    return ColumnDataSource(
        {
            "measured": np.array([p["measured_s"] for p in group], np.float32),
            "predicted": np.array([p["predicted_s"] for p in group], np.float32),
            "devices": np.array([p["devices"] for p in group], np.int32),
            "error": [signed(p["error"]) for p in group],
            **{key: [p[key] for p in group] for key in ("id", "source", "device", "layout")},
        }
    )
