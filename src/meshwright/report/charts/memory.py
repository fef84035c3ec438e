"""Section 4: memory over one step, one line a class of devices, with the limit and the peaks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Label, Span

from ..._words import gib, memory_unit
from ...graph.ir import Floats, Ints
from ...simulate.result import CATEGORIES, Simulation
from ..colors import BLACK, CYCLE, VERMILLION
from .base import Chart, legend_outside, plot, table

POINTS = 1200
"""A line keeps the lowest and the highest value of each of half as many stretches."""
LINES = 16
DASHES = ("solid", "dashed", "dotted", "dotdash")


def memory_chart(sim: Simulation, usable: float) -> Chart:
    """`usable` in bytes: the dashed limit, drawn where it is near."""
    unit, name = memory_unit(float(sim.peak.max()))
    made = plot(260, "xwheel_zoom,xpan,reset,save", x_axis_label="seconds of one step", y_axis_label=f"{name} a device")
    made.toolbar.active_drag = None
    most = float(sim.peak.max())
    made.x_range.start, made.x_range.end = 0, sim.step_seconds
    made.y_range.start, made.y_range.end = 0, 1.12 * (max(usable, most) if usable < 4 * most else most) / unit
    for i in _drawn(sim):
        times, values = np.asarray(sim.memory_at[i]), np.asarray(sim.memory[i])
        keep = thinned(values.sum(axis=1), POINTS)
        data = {name: (values[keep, k] / unit).astype(np.float32) for k, name in enumerate(CATEGORIES)}
        data |= {"t": times[keep].astype(np.float32), "total": (values[keep].sum(axis=1) / unit).astype(np.float32)}
        line = made.step(
            "t", "total", source=ColumnDataSource(data), mode="after", color=CYCLE[i % 7], line_width=2,
            line_dash=DASHES[i // 7 % 4], legend_label=sim.lanes[i].name,
        )  # fmt: skip
        tips = [("at", "@t{0.000} s"), ("total", f"@total{{0.0}} {name}"), *((c, f"@{c}{{0.0}}") for c in CATEGORIES)]
        made.add_tools(HoverTool(renderers=[line], tooltips=tips, mode="vline"))
        top = int(np.argmax(data["total"]))
        made.scatter([data["t"][top]], [data["total"][top]], size=7, color=CYCLE[i % 7], line_color=BLACK)
        if float(sim.peak[i]) == float(sim.peak.max()):
            made.add_layout(
                Label(
                    x=float(data["t"][top]),
                    y=float(data["total"][top]),
                    text=f"{gib(float(sim.peak[i]), unit)} {name}",
                    x_offset=6,
                    y_offset=4,
                    text_font_size="12px",
                    text_color=BLACK,
                )
            )
    made.add_layout(
        Span(location=usable / unit, dimension="width", line_color=VERMILLION, line_dash="dashed", line_width=2)
    )
    made.add_layout(
        Label(
            x=sim.step_seconds,
            y=usable / unit,
            text=f"limit {gib(usable, unit)}",
            text_align="right",
            x_offset=-4,
            y_offset=3,
            text_font_size="12px",
            text_color="#a04000",
        )
    )
    legend_outside(made)
    rows = [
        [
            lane.name,
            f"{lane.devices:,}",
            gib(float(sim.peak[i]), unit),
            *(gib(sim.peak_by[i].get(c, 0.0), unit) for c in CATEGORIES),
        ]
        for i, lane in enumerate(sim.lanes)
    ]
    return Chart(made, table(["devices", "count", f"peak {name}", *CATEGORIES], rows))


def _drawn(sim: Simulation) -> list[int]:
    """All classes of devices, or those of the highest peaks where there are too many lines to read."""
    order = np.argsort(-np.asarray(sim.peak), kind="stable")
    return sorted(int(i) for i in order[:LINES])


def thinned(values: Floats, points: int) -> Ints:
    """Indices that keep the shape: first, last, lowest and highest of equal stretches; all if there are few."""
    n = len(values)
    if n <= points:
        return np.arange(n)
    edges = np.linspace(0, n, points // 2).astype(np.int64)
    keep = {0, n - 1}
    for lo, hi in pairwise(edges.tolist()):
        if hi > lo:
            part = values[lo:hi]
            keep |= {int(lo + part.argmin()), int(lo + part.argmax())}
    return np.array(sorted(keep))
