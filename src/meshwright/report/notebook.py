"""How an answer looks in a notebook: the table first, then step and memory as bars. No script; without SVG all figures stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .words import number, time_part

if TYPE_CHECKING:
    from .compare import Comparison
    from .outcome import Outcome

WIDTH, HEIGHT = 640, 26
TEXT_WIDTH = 100
CELL = "padding:2px 10px 2px 0;text-align:"
COLORS = ("#56b4e9", "#e69f00", "#d55e00", "#cc79a7", "#f0e442", "#bbbbbb", "#009e73", "#0072b2")
"""Okabe and Ito's, in an order in which neighbours differ in lightness."""


def outcome_html(outcome: Outcome) -> str:
    """Under 60 kB."""
    from .payload import candidate_object
    from .table import recipe_words, searched_words

    q = outcome.question
    rows = [candidate_object(c, outcome.tied_with[i]) for i, c in enumerate(outcome.shown())]
    rows += [candidate_object(c) for c in outcome.misses[:1]]
    body = records_table([_plain(r) for r in rows])
    parts = ""
    sim = outcome.simulation
    if sim is not None:
        lane = int(sim.peak.argmax())
        parts = bar("step, seconds", {time_part(k): v for k, v in sim.seconds_by.items()})
        parts += bar(f"memory, GiB on {sim.lanes[lane].name}", {k: v / 2**30 for k, v in sim.peak_by[lane].items()})
    why = "".join(f"<div>{escape(s)}</div>" for s in outcome.sentences())
    head = f"<b>{escape(q.model)} on {escape(q.cluster.name)}</b><div>{escape(recipe_words(q))}; {escape(searched_words(outcome))}</div>"
    return f'<div style="font-family:sans-serif;font-size:13px">{head}{body}{parts}{why}</div>'


def comparison_html(found: Comparison) -> str:
    q = found.question
    head = f"<b>{len(found.entries)} planners for {escape(q.model)} on {escape(q.cluster.name)}</b>"
    steps = {e.about.name: row.step_s for e, row in found.ranked}
    rows = [_plain(r) for r in found.to_frame()]
    bars = "".join(bar(f"{name}, seconds", {"step": s}, max(steps.values())) for name, s in steps.items())
    return f'<div style="font-family:sans-serif;font-size:13px">{head}{records_table(rows)}{bars}</div>'


def text(lines: Sequence[Any]) -> str:
    return "\n".join(line.text for line in lines)


def records_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Mappings of one shape as a table; figures to the right."""
    if not rows:
        return ""
    head = "".join(f'<th style="{CELL}left">{escape(k)}</th>' for k in rows[0])
    body = "".join(
        "<tr>" + "".join(f'<td style="{CELL}left">{escape(v)}</td>' for v in r.values()) + "</tr>" for r in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


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


def _plain(record: Mapping[str, Any]) -> dict[str, str]:
    return {k: "" if v is None else number(v) if isinstance(v, float) else str(v) for k, v in record.items()}
