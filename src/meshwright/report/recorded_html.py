"""The report of a plan for a recorded profile: stages and their loads, devices, one step in time, memory."""

from __future__ import annotations

from html import escape

from bokeh.models import ColumnDataSource, HoverTool

from .._words import count, number
from ..plan.lookup import stage_ops
from .charts import Chart, memory_chart, mesh_chart, timeline_chart, where_chart
from .charts.base import plot, table
from .charts.mesh import spans
from .colors import BLUE, ORANGE
from .html import page, section
from .recorded import Answered, degrees, facts_lines, plan_object, title_of

DIGITS = 6
"""Of the objective among the facts; the answer inside the file has all."""


def recorded_html(a: Answered) -> str:
    """The whole file as text; needs a plan. Charts of what was simulated are there if it was, in detail."""
    plan, cluster, sim = a.plan, a.profiled.problem.cluster, a.simulation
    if plan is None:
        raise ValueError("a report shows a plan: this answer has none")
    made = {"loads": loads_chart(a), "mesh": mesh_chart(plan, cluster)}
    titles = {"loads": "Stages and their loads", "mesh": "Which device does what"}
    if sim is not None:
        made |= {"time": timeline_chart(sim), "where": where_chart(sim)}
        titles |= {"time": "One step in time", "where": "Where the step goes"}
        if a.memory is not None:
            made["memory"] = memory_chart(sim, a.profiled.problem.limits.usable(cluster.types[0].memory))
            titles["memory"] = "Memory over one step"
    facts = [(f"{number(a.objective, DIGITS)} {a.unit}", "objective"), (a.status, "status")]
    if a.bound is not None:
        facts.append((number(a.bound, DIGITS), "proven bound"))
    facts += [(count(len(plan.stages)), "stages"), (f"{number(a.search_s, 2)} s", "search")]
    if sim is not None:
        facts.append((f"{number(sim.step_seconds, 4)} s", "simulated step"))
    listed = "".join(f"<li><b>{escape(v)}</b><span>{escape(k)}</span></li>" for v, k in facts)
    said = "".join(f"<p>{escape(line)}</p>" for line in facts_lines(a))
    body = (
        f"<header><h1>{escape(a.about.name)} for {escape(title_of(a.profiled))}</h1>"
        f'<p class="soft">{escape(a.about.title)}</p><ul class="facts">{listed}</ul></header>{said}'
    )
    for n, (name, chart) in enumerate(made.items(), 1):
        body += section(n, name, titles[name], chart)
    return page(f"{a.about.name} for {a.profiled.file} · meshwright", body, made, plan_object(a))


def loads_chart(a: Answered) -> Chart:
    """A bar a stage, the slowest in another colour; the table has the nodes by the names of the file."""
    assert a.plan is not None
    graph, loads, unit = a.profiled.problem.graph, a.loads, a.unit
    rows = []
    for s, stage in enumerate(a.plan.stages):
        names = [graph.ops[i].name for i in stage_ops(graph, stage)]
        d, t = degrees(stage)
        load = number(loads[s], 6) if s < len(loads) else ""
        rows.append([str(s), ", ".join(names), spans(stage.mesh.devices), str(d), str(t), load])
    plain = table(["stage", "nodes", "devices", "replicas", "parts", f"load {unit}"], rows, left=3)
    if not loads:
        return Chart(None, plain)
    made = plot(260, x_axis_label="stage", y_axis_label=f"load, {unit}")
    made.y_range.start = 0
    made.xgrid.grid_line_color = None
    source = ColumnDataSource(
        {
            "stage": list(range(len(loads))),
            "load": list(loads),
            "nodes": [str(len(stage_ops(graph, stage))) for stage in a.plan.stages],
            "devices": [row[2] for row in rows],
            "fill": [ORANGE if x == max(loads) else BLUE for x in loads],
        }
    )
    bars = made.vbar(x="stage", top="load", width=0.8, source=source, fill_color="fill", line_color="#ffffff")
    tips = [("stage", "@stage"), ("load", f"@load{{0,0.0000}} {unit}"), ("nodes", "@nodes"), ("devices", "@devices")]
    made.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    return Chart(made, plain, "The slowest stage, which most objectives are, has the other colour.")
