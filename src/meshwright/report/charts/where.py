"""Section 5: where the step goes, as one stacked bar."""

from __future__ import annotations

from bokeh.models import ColumnDataSource, HoverTool, Range1d

from ..._words import GIB, number, percent, time_part
from ...simulate.result import Simulation
from ..colors import BLACK, HATCHED, color
from .base import Chart, legend_outside, plot, table


def where_chart(sim: Simulation) -> Chart:
    made = plot(130, x_axis_label="seconds", x_range=Range1d(0, sim.step_seconds * 1.01), y_range=Range1d(-0.5, 0.5))
    made.yaxis.visible = False
    made.grid.visible = False
    left = 0.0
    rows = []
    for index, (key, seconds) in enumerate(sim.seconds_by.items()):
        calls, nbytes = sim.calls_by.get(key), sim.bytes_by.get(key)
        word = time_part(key)
        rows.append(
            [
                word,
                number(seconds),
                percent(seconds / sim.step_seconds),
                f"{calls:,}" if calls else "",
                f"{nbytes / GIB:,.2f}" if nbytes else "",
            ]
        )
        if seconds <= 0:
            continue
        hatch = (
            {"hatch_pattern": "right_diagonal_line", "hatch_color": BLACK, "hatch_alpha": 0.5} if key in HATCHED else {}
        )
        data = {
            "left": [left], "right": [left + seconds], "s": [seconds], "share": [100 * seconds / sim.step_seconds],
            "calls": [calls or 0], "gib": [(nbytes or 0.0) / GIB],
        }  # fmt: skip
        glyph = made.quad(
            "left", "right", 0.35, -0.35, source=ColumnDataSource(data), fill_color=color(key, index),
            line_color="#ffffff", legend_label=word, **hatch,
        )  # fmt: skip
        tips = [("part", word), ("seconds", "@s{0.000}"), ("share", "@share{0.0} %")]
        tips += [("calls", "@calls{0,0}"), ("moved", "@gib{0,0.00} GiB")] if calls else []
        made.add_tools(HoverTool(renderers=[glyph], tooltips=tips))
        left += seconds
    legend_outside(made)
    rows.append(["total", number(sim.step_seconds), "100.0 %", "", ""])
    return Chart(made, table(["part", "seconds", "share", "calls", "GiB moved"], rows))
