"""Section 3: what every class of devices does in one step. One row a stream, one bar an action or collective."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d

from ..._words import GIB, number, time_part
from ...simulate.result import Event, Simulation
from ..colors import BLACK, HATCHED, color
from .base import Chart, legend_outside, plot, table

STREAMS = ("compute", "tp", "dp", "ep", "send", "recv", "offload", "optimizer")
NAMES = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient", "UPDATE": "optimizer"}
TALLEST = 900
ROW_HEIGHT = {"compute": 1.0}
"""Other streams are drawn thinner."""
TABLE_ROWS = 200


def timeline_chart(sim: Simulation) -> Chart:
    rows = _rows(sim)
    if not rows:
        return Chart(None, _table(sim))
    place, y, ticks = {}, 0.0, {}
    for lane, stream in reversed(rows):
        height = ROW_HEIGHT.get(stream, 0.55)
        place[lane, stream] = (y, y + height)
        if stream == "compute" or (lane, "compute") not in rows:
            ticks[y + height / 2] = sim.lanes[lane].name
        else:
            ticks[y + height / 2] = stream
        y += height + (0.25 if stream == rows[0][1] or stream == "compute" else 0.08)
    made = plot(
        int(min(TALLEST, 110 + 26 * y)), "xwheel_zoom,xpan,xbox_zoom,reset,save",
        x_range=Range1d(0, sim.step_seconds * 1.005, bounds=(0, sim.step_seconds * 1.01)), y_range=Range1d(-0.15, y),
        x_axis_label="seconds of one step",
    )  # fmt: skip
    made.toolbar.active_drag = None
    made.yaxis.ticker = sorted(ticks)
    made.yaxis.major_label_overrides = {float(k): v for k, v in ticks.items()}
    made.ygrid.grid_line_color = None
    by_kind: dict[str, list[Event]] = defaultdict(list)
    for event in sim.events:
        by_kind[event.kind].append(event)
    for index, (kind, events) in enumerate(by_kind.items()):
        _bars(made, kind, index, events, place)
    legend_outside(made)
    return Chart(made, _table(sim))


def _bars(
    made: object, kind: str, index: int, events: list[Event], place: dict[tuple[int, str], tuple[float, float]]
) -> None:
    source = ColumnDataSource(
        {
            "left": np.array([e.start for e in events], np.float32),
            "right": np.array([e.start + e.duration for e in events], np.float32),
            "bottom": np.array([place[e.lane, e.stream][0] for e in events], np.float32),
            "top": np.array([place[e.lane, e.stream][1] for e in events], np.float32),
            "ms": np.array([1e3 * e.duration for e in events], np.float32),
            "stage": np.array([e.stage for e in events], np.int32),
            "micro": np.array([e.micro_batch for e in events], np.int32),
            "mib": np.array([e.nbytes / 2**20 for e in events], np.float32),
        }
    )
    word = NAMES.get(kind, time_part(kind).removeprefix("exposed "))
    hatch = (
        {"hatch_pattern": "right_diagonal_line", "hatch_color": BLACK, "hatch_alpha": 0.5} if kind in HATCHED else {}
    )
    glyph = made.quad(  # type: ignore[attr-defined]
        "left", "right", "top", "bottom", source=source, fill_color=color(kind, index), line_color=None, legend_label=word, hover_line_color=BLACK, **hatch,
    )  # fmt: skip
    tips = [
        ("what", word),
        ("stage", "@stage"),
        ("micro-batch", "@micro"),
        ("start", "@left{0.0000} s"),
        ("takes", "@ms{0,0.000} ms"),
    ]
    if any(e.nbytes for e in events):
        tips.append(("bytes", "@mib{0,0.0} MiB"))
    made.add_tools(HoverTool(renderers=[glyph], tooltips=tips))  # type: ignore[attr-defined]


def _rows(sim: Simulation) -> list[tuple[int, str]]:
    present = {(e.lane, e.stream) for e in sim.events}
    order = {s: i for i, s in enumerate(STREAMS)}
    return sorted(present, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))


def _table(sim: Simulation) -> str:
    """Per class of devices, stream and kind: how often, how long, how much. Long lists of single bars say less."""
    totals: dict[tuple[int, str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for e in sim.events:
        entry = totals[e.lane, e.stream, e.kind]
        entry[0] += 1
        entry[1] += e.duration
        entry[2] += e.nbytes
    rows = [
        [
            sim.lanes[lane].name,
            stream,
            NAMES.get(kind, time_part(kind).removeprefix("exposed ")),
            f"{n:,.0f}",
            number(seconds),
            f"{nbytes / GIB:,.2f}",
        ]
        for (lane, stream, kind), (n, seconds, nbytes) in sorted(totals.items())[:TABLE_ROWS]
    ]
    return table(["devices", "stream", "what", "bars", "seconds", "GiB moved"], rows, left=3)
