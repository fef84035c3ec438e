"""Section 6: all priced layouts, step time against memory, with the limit and the front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Label, Range1d, Span, Whisker

from ..._words import GIB, count, gib, number, percent
from ..candidates import Candidate
from ..colors import BLACK, BLUE, GREY, ORANGE, VERMILLION
from .base import Chart, legend_outside, plot, table

POINTS = 2000
"""Above this the layouts that are neither fast nor small are drawn as a density."""
TABLE_ROWS = 300


def plans_chart(
    fitting: Sequence[Candidate],
    misses: Sequence[Candidate],
    usable: float,
    interval: Callable[[float], tuple[float, float] | None],
    tied: Sequence[int],
) -> Chart:
    """`interval`: where a predicted step may lie, drawn at the chosen plan; None = not known."""
    priced = [c for c in fitting if isfinite(c.step_s)]
    refused = [c for c in misses if isfinite(c.step_s)]
    rows = [_row(str(i + 1), c, f"tie with {tied[i] + 1}" if tied[i] >= 0 else "") for i, c in enumerate(fitting)]
    rows += [_row("✗", c, f"over by {gib(c.over_bytes)}") for c in misses]
    head = ["", "layout", "recompute", "schedule", "µbatch", "step s", "a device and second", "MFU", "GiB", ""]
    plain = table(head, rows[:TABLE_ROWS], left=5)
    if len(rows) > TABLE_ROWS:
        plain += f"<p>{len(rows) - TABLE_ROWS:,} more are left out of this table.</p>"
    if not priced:
        return Chart(None, plain)
    made = plot(
        340, "pan,wheel_zoom,box_zoom,reset,save", x_axis_label="memory, GiB a device", y_axis_label="step, seconds"
    )
    made.toolbar.active_drag = None
    best = priced[0]
    steps, most = [c.step_s for c in (*priced, *refused)], max(c.memory_bytes for c in (*priced, *refused))
    pad = 0.08 * (max(steps) - min(steps)) or 0.1 * best.step_s
    made.y_range = Range1d(min(steps) - pad, max(steps) + 1.5 * pad)
    made.x_range = Range1d(0, 1.08 * min(max(most, usable), 2 * usable) / GIB)
    front = pareto(priced)
    shown, rest = _thinned(priced, front)
    if rest:
        memory = np.array([c.memory_bytes / GIB for c in rest])
        step = np.array([c.step_s for c in rest])
        made.hexbin(memory, step, size=(memory.max() - memory.min() or 1.0) / 40, line_color=None)
    for label, group, fill, marker in (
        ("fits", shown, BLUE, "circle"),
        ("does not fit", refused[:POINTS], ORANGE, "x"),
    ):
        if group:
            glyph = made.scatter(
                "memory",
                "step",
                source=_source(group),
                size=8,
                color=fill,
                marker=marker,
                legend_label=label,
                alpha=0.8,
            )
            tips = [("layout", "@layout"), ("recompute", "@recompute"), ("micro-batch", "@micro"), ("step", "@step{0.000} s"), ("memory", "@memory{0.0} GiB")]  # fmt: skip
            made.add_tools(HoverTool(renderers=[glyph], tooltips=tips))
    ordered = sorted(front, key=lambda c: c.memory_bytes)
    made.line(
        [c.memory_bytes / GIB for c in ordered],
        [c.step_s for c in ordered],
        color=GREY,
        line_width=2,
        legend_label="front",
    )
    made.scatter(
        [best.memory_bytes / GIB],
        [best.step_s],
        size=18,
        fill_color=None,
        line_color=BLACK,
        line_width=2,
        legend_label="chosen",
    )
    if ends := interval(best.step_s):
        bars = ColumnDataSource({"base": [best.memory_bytes / GIB], "lower": [ends[0]], "upper": [ends[1]]})
        made.add_layout(Whisker(base="base", lower="lower", upper="upper", source=bars, line_color=BLACK))
    made.add_layout(
        Span(location=usable / GIB, dimension="height", line_color=VERMILLION, line_dash="dashed", line_width=2)
    )
    top = max(steps)
    made.add_layout(
        Label(x=usable / GIB, y=top, text=f"limit {gib(usable)}", x_offset=4, y_offset=-12, text_font_size="12px", text_color="#a04000")
    )  # fmt: skip
    legend_outside(made)
    return Chart(made, plain)


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in both step and memory."""
    found: list[Candidate] = []
    lowest = float("inf")
    for c in sorted(candidates, key=lambda c: (c.step_s, c.memory_bytes)):
        if c.memory_bytes < lowest:
            found.append(c)
            lowest = c.memory_bytes
    return found


def _thinned(priced: Sequence[Candidate], front: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """(points drawn one by one, points drawn as a density)."""
    if len(priced) <= POINTS:
        return list(priced), []
    on_front = set(map(id, front))
    return front, [c for c in priced if id(c) not in on_front]


def _source(group: Sequence[Candidate]) -> ColumnDataSource:
    return ColumnDataSource(
        {
            "memory": np.array([c.memory_bytes / GIB for c in group], np.float32),
            "step": np.array([c.step_s for c in group], np.float32),
            "layout": [f"{c.layout} {c.schedule}".strip() for c in group],
            "recompute": [c.recompute for c in group],
            "micro": [f"{c.micro_batch} × {c.micro_batches}" for c in group],
        }
    )


def _row(rank: str, c: Candidate, remark: str) -> list[str]:
    return [
        rank, c.layout, c.recompute, c.schedule, f"{c.micro_batch} × {c.micro_batches}", number(c.step_s),
        count(c.tokens_per_s_per_device), percent(c.mfu), gib(c.memory_bytes), remark,
    ]  # fmt: skip
