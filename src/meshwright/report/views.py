"""How answers, plans and simulations look in a notebook and when printed: the table first, then step and memory as bars.

No script; without SVG all figures stay. `Viewed` (meshwright/_views.py) finds `html_of` and `text_of` here by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from html import escape
from pathlib import Path
from typing import Any

from .._words import MISSING, count, gib, number, percent, time_part
from ..errors import InputError
from ..plan.model import Plan
from ..simulate.result import Simulation
from .charts import timeline_chart, where_chart
from .compare import Comparison, compare_lines, planner_rows
from .html import CHARTS, page, report_html, section
from .lines import columns
from .outcome import Outcome
from .payload import simulation_object
from .plan_words import STAGE_HEADS, STAGES, schedule_words, stage_words
from .table import candidate_rows, money_words, plan_lines, recipe_words, searched_words

WIDTH, HEIGHT = 640, 26
TEXT_WIDTH = 100
CELL = "padding:2px 10px 2px 0;text-align:"
TABLE = "font-size:13px;border-collapse:collapse"
FIGURE = re.compile(r"[-+]? ?[\d,.]+(e\d+)?( ?[%s])?( \*)?$")
SHORT = 40
"""Letters of a cell that is not broken."""
COLORS = ("#56b4e9", "#e69f00", "#d55e00", "#cc79a7", "#f0e442", "#bbbbbb", "#009e73", "#0072b2")
"""Okabe and Ito's, in an order in which neighbours differ in lightness."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole page inside a notebook's cell; `html` is the page."""

    html: str
    height: int = 800
    """Pixels."""

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html)}" width="100%" height="{self.height}" style="border:0"></iframe>'


@singledispatch
def framed(thing: Any) -> Frame:
    """A page of its own in a frame."""
    raise TypeError(f"{type(thing).__name__} has no page")


@framed.register
def _(outcome: Outcome) -> Frame:
    return Frame(report_html(outcome))


@framed.register
def _(found: Comparison) -> Frame:
    from .compare_html import compare_html

    return Frame(compare_html(found))


@framed.register
def _(plan: Plan) -> Frame:
    report = Path(plan.folder or ".") / "report.html"
    if not plan.folder or not report.exists():
        raise InputError(
            "the plan lies in no folder with a report: show what mw.plan returned, or load the folder that it wrote"
        )
    return Frame(report.read_text(encoding="utf-8"))


@framed.register
def _(sim: Simulation) -> Frame:
    made = {"time": timeline_chart(sim), "where": where_chart(sim)}
    body = f"<header><h1>One step: {number(sim.step_seconds)} s</h1></header>"
    titles = dict(CHARTS)
    for n, (name, chart) in enumerate(made.items(), 1):
        body += section(n, name, titles[name], chart)
    return Frame(page("One step · meshwright", body, made, simulation_object(sim)))


@singledispatch
def records_of(thing: Any) -> list[dict[str, Any]]:
    """One mapping a row."""
    raise TypeError(f"{type(thing).__name__} has no rows")


@records_of.register
def _(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "stage": k, "ops": len(stage.ops), "devices": len(set(stage.mesh.devices)), "first_device": min(stage.mesh.devices),
            **{f"mesh_{axis}": size for axis, size in zip(stage.mesh.axes, stage.mesh.shape, strict=True)},
            "ops_cut": sum(1 for s in stage.shardings.values() if s.cuts), "recomputed_ops": len(stage.recompute),
        }
        for k, stage in enumerate(plan.stages)
    ]  # fmt: skip


@records_of.register
def _(sim: Simulation) -> list[dict[str, Any]]:
    return [
        {
            "lane": lane.name, "devices": lane.devices, "first_device": lane.first_device, "stages": list(lane.stages),
            "peak_bytes": float(sim.peak[k]), **{f"{part}_bytes": v for part, v in sim.peak_by[k].items()},
            **({f"{part}_s": v for part, v in sim.lane_seconds[k].items()} if sim.lane_seconds else {}),
        }
        for k, lane in enumerate(sim.lanes)
    ]  # fmt: skip


@singledispatch
def html_of(thing: Any) -> str:
    """Under 60 kB."""
    raise TypeError(f"{type(thing).__name__} has no view")


@singledispatch
def text_of(thing: Any) -> str:
    """For a terminal of `TEXT_WIDTH` columns."""
    raise TypeError(f"{type(thing).__name__} has no view")


@html_of.register
def _(outcome: Outcome) -> str:
    q = outcome.question
    rows = candidate_rows(outcome, with_bar=False)
    parts = _bars(outcome.simulation) if outcome.simulation is not None else ""
    money = "".join(f"<div>{escape(s)}</div>" for s in money_words(outcome))
    why = "".join(f"<div>{escape(s)}</div>" for s in outcome.sentences())
    about = f"<div>{escape(recipe_words(q))}; {escape(searched_words(outcome))}</div>"
    return _view(f"{q.model} on {q.cluster.name}", about + grid(rows) + parts + money + why)


@text_of.register
def _(outcome: Outcome) -> str:
    return text(plan_lines(outcome, TEXT_WIDTH, next_steps=False))


@html_of.register
def _(found: Comparison) -> str:
    q = found.question
    steps = {e.about.name: row.step_s for e, row in found.ranked}
    bars = "".join(bar(f"{name}, seconds", {"step": s}, max(steps.values())) for name, s in steps.items())
    reasons = "".join(f"<div>{escape(f'{e.about.name}: {e.reason}')}</div>" for e in found.entries if e.reason)
    title = f"{len(found.entries)} planners for {q.model} on {q.cluster.name}"
    return _view(title, grid(planner_rows(found)) + bars + reasons)


@text_of.register
def _(found: Comparison) -> str:
    return text(compare_lines(found, TEXT_WIDTH))


@html_of.register
def _(plan: Plan) -> str:
    rows = [dict(zip(STAGE_HEADS, row, strict=True)) for row in _stages(plan)]
    return _view(_plan_title(plan), records_table(rows) + f"<div>{escape(schedule_words(plan))}</div>")


@text_of.register
def _(plan: Plan) -> str:
    return "\n".join([_plan_title(plan), *columns([list(STAGE_HEADS), *_stages(plan)], ()), schedule_words(plan)])


@html_of.register
def _(sim: Simulation) -> str:
    return _view("One step", records_table([_headline(sim)]) + _bars(sim))


@text_of.register
def _(sim: Simulation) -> str:
    found = _headline(sim)
    parts = " + ".join(f"{time_part(k)} {number(v)}" for k, v in sim.seconds_by.items() if v > 0)
    return "\n".join([*columns([list(found), list(found.values())], range(len(found))), f"step  {parts}"])


def _headline(sim: Simulation) -> dict[str, str]:
    return {
        "step s": number(sim.step_seconds),
        "samples/s": number(sim.samples_per_second),
        "MFU": percent(sim.mfu),
        "bubble": percent(sim.bubble),
        "peak GiB": gib(float(sim.peak.max())) if len(sim.peak) else gib(0.0),
        "exposed communication s": number(sim.exposed_communication),
    }


def _plan_title(plan: Plan) -> str:
    devices = len({d for s in plan.stages for d in s.mesh.devices})
    stages = len(plan.stages)
    return f"Plan of {count(stages)} stage{'s' if stages > 1 else ''} on {count(devices)} device{'s' if devices > 1 else ''}"


def _stages(plan: Plan) -> list[list[str]]:
    return [stage_words(k, stage) for k, stage in enumerate(plan.stages[:STAGES])]


def _bars(sim: Simulation) -> str:
    lane = int(sim.peak.argmax())
    return bar("step, seconds", {time_part(k): v for k, v in sim.seconds_by.items()}) + bar(
        f"memory, GiB on {sim.lanes[lane].name}", {k: v / 2**30 for k, v in sim.peak_by[lane].items()}
    )


def _view(title: str, body: str) -> str:
    return f'<div style="font-family:sans-serif;font-size:13px"><b>{escape(title)}</b>{body}</div>'


def text(lines: Sequence[Any]) -> str:
    return "\n".join(line.text for line in lines)


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table, the first its heads; figures to the right. Columns that say nothing are left out."""
    texts = [[re.sub(r"\s{2,}", ", ", cell.strip()) for cell in row] for row in rows]
    keep = [k for k in range(len(rows[0])) if any(row[k] for row in texts[1:])]
    numbers = [all(FIGURE.match(row[k]) or row[k] in ("", MISSING) for row in texts[1:]) for k in range(len(rows[0]))]

    def line(row: Sequence[str], tag: str) -> str:
        cells = ""
        for k in keep:
            style = CELL + ("right" if numbers[k] else "left") + (";white-space:nowrap" if len(row[k]) < SHORT else "")
            cells += f'<{tag} style="{style}">{escape(row[k])}</{tag}>'
        return f"<tr>{cells}</tr>"

    return f'<table style="{TABLE}">{line(texts[0], "th")}{"".join(line(row, "td") for row in texts[1:])}</table>'


def records_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Mappings of one shape as a table."""
    return grid([list(rows[0]), *(list(r.values()) for r in rows)]) if rows else ""


def bar(title: str, parts: Mapping[str, float], whole: float = 0.0) -> str:
    """One stacked bar as inline SVG, with every figure as text below it."""
    shown = {k: v for k, v in parts.items() if v > 0}
    total = whole or sum(shown.values()) or 1.0
    x, boxes = 0.0, ""
    for i, (name, value) in enumerate(shown.items()):
        wide = WIDTH * value / total
        boxes += f'<rect x="{x:.1f}" y="0" width="{max(0.5, wide - 1):.1f}" height="{HEIGHT}" fill="{COLORS[i % len(COLORS)]}"><title>{escape(name)} {number(value)}</title></rect>'
        x += wide
    words = " · ".join(f"{escape(k)} {number(v)}" for k, v in shown.items())
    return f'<div style="margin-top:6px">{escape(title)}: {words}</div><svg width="{WIDTH}" height="{HEIGHT}" role="img">{boxes}</svg>'
