"""One HTML file for an answer: seven sections, charts inlined, every figure in plain tables too. Fetches nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from importlib.metadata import version
from importlib.resources import files
from math import nan
from typing import Any

from .._words import count, gib, number, percent, time_part
from ..plan.serial import dumps
from ..simulate.result import CATEGORIES
from .charts import Chart, memory_chart, mesh_chart, plans_chart, timeline_chart, where_chart
from .charts.base import table
from .outcome import Outcome
from .payload import plan_object
from .plan_words import assumptions, stage_table
from .shardings import sharding_rows, sharding_section
from .table import money_words, recipe_words, searched_words, sure

CHARTS = (
    ("mesh", "Which device does what"),
    ("time", "One step in time"),
    ("memory", "Memory over one step"),
    ("where", "Where the step goes"),
    ("plans", "Priced plans"),
)


def report_html(outcome: Outcome) -> str:
    """The whole file as text; needs a plan and its simulation."""
    sim, plan, q = outcome.simulation, outcome.plan, outcome.question
    if sim is None or plan is None:
        raise ValueError("a report shows a plan: this outcome has none")
    made = {
        "mesh": mesh_chart(plan, q.cluster),
        "time": timeline_chart(sim),
        "memory": memory_chart(sim, q.usable),
        "where": where_chart(sim),
        "plans": plans_chart(outcome.candidates, outcome.misses, q.usable, outcome.interval, outcome.tied_with),
    }
    body = head(outcome)
    for number_, (name, title) in enumerate(CHARTS, 2):
        body += section(number_, name, title, made[name])
    body += side_by_side(outcome)
    body += words(outcome)
    if outcome.recipe is not None:
        body += sharding_section(sharding_rows(q.graph, plan, outcome.recipe))
    return page(f"{q.model} on {q.cluster.name} · meshwright", body, made, plan_object(outcome))


def page(title: str, body: str, charts: Mapping[str, Chart], answer: Mapping[str, Any]) -> str:
    """A complete file of ours: style, charts library, `body` with a place `<div id="chart-NAME">` for every chart."""
    from bokeh.embed import components
    from bokeh.resources import Resources

    plots = {name: chart.plot for name, chart in charts.items() if chart.plot is not None}
    script, library = "", ""
    if plots:
        script, places = components(plots)
        for name, place in places.items():
            body = body.replace(f"<!--chart {name}-->", place)
        library = Resources(mode="inline", components=["bokeh"]).render_js()
    data = json.dumps(finite(answer), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "title": escape(title),
        "style": _asset("style.css"),
        "library": library,
        "body": body,
        "answer": data,
        "charts": script,
        "script": _asset("page.js"),
    }
    text = _asset("page.html")
    pieces = text.split("{{ ")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        key, _, rest = piece.partition(" }}")
        filled += [parts[key], rest]
    return "".join(filled)


def head(outcome: Outcome) -> str:
    """Section 1: the answer, why, how sure, what to do next."""
    sim, q = outcome.simulation, outcome.question
    assert sim is not None and outcome.plan is not None
    best = (*outcome.candidates, *outcome.misses)[0]
    unit, unit_name = outcome.unit
    interval = outcome.interval(sim.step_seconds)
    low, high = interval or (nan, nan)
    facts = [
        (best.layout, "layout"),
        (f"{number(sim.step_seconds)} s", "step"),
        *([(f"{number(low)} – {number(high)} s", f"{outcome.error.share:.0f} % interval")] if interval else []),
        (count(best.tokens_per_s_per_device), f"{q.item_word}/s/{q.device_word}"),
        (percent(sim.mfu), "MFU"),
        (gib(best.memory_bytes, unit), f"of {gib(q.usable, unit)} {unit_name} a {q.device_word}"),
        (f"{best.micro_batch} × {best.micro_batches}", "micro-batches"),
        (best.recompute, "recompute"),
    ]
    listed = "".join(f"<li><b>{escape(v)}</b><span>{escape(k)}</span></li>" for v, k in facts)
    commands = [f"meshwright {word} {outcome.folder}" for word in ("verify", "run", "show")]
    buttons = "".join(
        f'<li><code>{escape(c)}</code><button hidden data-copy="{escape(c)}">copy</button></li>' for c in commands
    )
    plan64 = base64.b64encode(dumps(outcome.plan).encode()).decode()
    money = "".join(f"<p>{escape(s)}</p>" for s in money_words(outcome))
    why = "".join(f"<p>{escape(s)}</p>" for s in outcome.sentences())
    certain = "".join(f"<p>{escape(s)}</p>" for s in sure(outcome))
    notes = "".join(f"<p>Note: {escape(n)}</p>" for n in outcome.notes)
    made_by = f"meshwright {version('meshwright')} · seed {outcome.seed} · priced by {sim.priced_by or 'analytic'}"
    return (
        f"<header><h1>{escape(q.model)} on {escape(q.cluster.name)}</h1>"
        f'<p class="soft">{escape(recipe_words(q))}<br>{escape(searched_words(outcome))}</p>'
        f'<ul class="facts">{listed}</ul></header>'
        f"{'<h2>Training</h2>' + money if money else ''}"
        f"{'<h2>Why</h2>' + why if why else ''}<h2>How sure</h2>{certain}{notes}"
        f'<h2>Next</h2><ul class="commands">{buttons}</ul>'
        f'<p><a download="plan.json" href="data:application/json;base64,{plan64}">plan.json</a> '
        f'<span class="soft">{escape(made_by)}</span></p>'
    )


def section(n: int, name: str, title: str, chart: Chart) -> str:
    """One numbered section: the chart, its caption, and its table."""
    place = f'<div class="chart" id="chart-{name}"><!--chart {name}--></div>' if chart.plot is not None else ""
    note = "" if chart.plot is not None else '<p class="soft">Nothing to draw for this plan.</p>'
    caption = f'<p class="soft">{escape(chart.caption)}</p>' if chart.caption else ""
    box = f'<input type="search" hidden data-filter="table-{name}" placeholder="filter: dp32 full" aria-label="filter">' if name == "plans" else ""  # fmt: skip
    return (
        f"<section><h2>{n}. {escape(title)}</h2>{place}{note}{caption}"
        f'<details class="plain" open id="table-{name}"><summary>the figures as a table</summary>{box}{chart.table}</details></section>'
    )


def side_by_side(outcome: Outcome) -> str:
    """Under section 6: step and memory by part of the plan and of the plans it was compared with."""
    ranks = outcome.simulated or tuple(range(len(outcome.simulations)))
    pairs = [
        (outcome.candidates[r], s)
        for r, s in zip(ranks, outcome.simulations, strict=True)
        if r < len(outcome.candidates)
    ]
    if len(pairs) < 2:
        return ""
    unit, unit_name = outcome.unit
    times = list(dict.fromkeys(key for _, s in pairs for key in s.seconds_by))
    rows = [["step, s", *(number(s.step_seconds) for _, s in pairs)]]
    rows += [[time_part(k), *(number(s.seconds_by.get(k, 0.0)) for _, s in pairs)] for k in times]
    rows.append([f"memory, {unit_name}", *(gib(float(s.peak.max()), unit) for _, s in pairs)])
    fullest = [s.peak_by[int(s.peak.argmax())] for _, s in pairs]
    rows += [[k, *(gib(m.get(k, 0.0), unit) for m in fullest)] for k in CATEGORIES]
    head = [
        "",
        *(
            f"{r + 1}. {c.layout}" + (f", {c.recompute}" if c.recompute != "none" else "")
            for r, (c, _) in zip(ranks, pairs, strict=False)
        ),
    ]
    return f"<section><h2>The plan beside others</h2>{table(head, rows)}</section>"


def words(outcome: Outcome) -> str:
    """Section 7: the plan stage by stage, and what was assumed."""
    assumed = "".join(f"<li>{escape(a)}</li>" for a in assumptions(outcome))
    return f"<section><h2>7. The plan in words</h2>{stage_table(outcome)}<h2>Assumed</h2><ul>{assumed}</ul></section>"


def finite(value: Any) -> Any:
    """JSON has no nan and no infinity: both become None."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not (-1e308 < value < 1e308):
        return None
    return value


def _asset(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")
