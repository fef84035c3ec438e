"""`export`: a plan as the settings of another trainer; `exporters`: what each can say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import options as o
from ..completion import exporter_names
from ..screen import Screen

if TYPE_CHECKING:
    from ...to_trainer import Checked, Written
    from ..answers import ExportAnswer, ExporterAnswer, ExportersAnswer


def export(
    plan: o.PlanPath,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="NAME[@VERSION]", help='A trainer ("meshwright exporters").', autocompletion=exporter_names
        ),
    ],
    lossy: Annotated[
        bool,
        typer.Option("--allow-lossy", help="Write the nearest that the trainer can say, where it cannot say the plan."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read back what was written and price it; is the trainer installed here?")
    ] = False,
    out: o.Out = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Write a plan as the settings of the trainer that you have, and say what that trainer does otherwise."""
    from ... import to_trainer
    from ...report.export import export_lines, file_lines
    from ...report.lines import Line, labelled
    from ...save import open_plan
    from ...stated import state
    from ._asked import working

    screen = Screen(as_json, quiet, verbose, color)
    opened = open_plan(plan)
    if to.partition("@")[0] == to_trainer.OURS:
        screen.lines([Line(f"{opened.folder}/ is what our own runner takes:  meshwright run {opened.folder}")])
        ours: ExportAnswer = {
            "schema": "meshwright.export/1",
            "status": "ok",
            "target": {"name": to_trainer.OURS},
            "level": "exact",
            "files": {},
        }
        screen.json(ours)
        return 0
    with working(screen) as (progress, _):
        stated = state(opened.request, progress.line)
        done = to_trainer.written(opened, stated, to, lossy=lossy, out=out)
        prices = done.exported.prices()
        found = to_trainer.checked(done.exported) if check else None
    e = done.exported
    options = {key: value for s in e.said for key, value in s.options.items()}
    screen.lines(export_lines(e.exporter.called, e.level, e.sentences, prices, e.exporter.title, screen.width))
    screen.lines(file_lines(options, e.files, screen.width))
    tail = f"Not in a plan: {e.exporter.left_out}.   Wrote {done.folder}/"
    screen.lines(Line(t) for t in labelled("", [tail], screen.width, 0))
    if found is not None:
        screen.lines(_check_lines(done, found))
    screen.json(_object(done, prices, found))
    return 0 if found is None or found.same else 1


def _check_lines(done: Written, found: Checked) -> list[Any]:
    from ..._words import number
    from ...report.lines import Line

    exporter = done.exported.exporter
    if not found.installed:
        here = f"{exporter.title} is not installed here"
    elif found.known:
        here = f"{exporter.title} {found.installed} is installed here, a version that this exporter knows"
    else:
        near = exporter.nearest(found.installed)
        here = f"{exporter.title} {found.installed} is installed here and not known: names may differ; the nearest is {near}"
    if found.same:
        return [Line(f"✓ read back: the same layout, {number(found.again_s)} s", "good"), Line(f"  {here}")]
    return [
        Line(f"✗ read back: another layout, {number(found.again_s)} s instead of {number(found.step_s)} s", "bad"),
        Line(f"  {here}"),
    ]


def _object(done: Written, prices: tuple[Any, Any], found: Checked | None) -> ExportAnswer:
    from ...export.registry import installed

    e = done.exported
    own, theirs = prices
    value: ExportAnswer = {
        "schema": "meshwright.export/1",
        "status": "ok",
        "target": {
            "name": e.exporter.name,
            "version": e.exporter.version,
            "installed": installed(type(e.exporter)) or None,
        },
        "level": e.level,
        "sentences": list(e.sentences),
        "words": [{"word": s.word, "options": dict(s.options), "level": s.level, "why": s.why} for s in e.said],
        "plan": {"step_s": own.step_seconds, "memory_bytes": float(own.peak.max())},
        "as_run": {"step_s": theirs.step_seconds, "memory_bytes": float(theirs.peak.max())},
        "folder": str(done.folder),
        "files": done.files,
    }
    if found is not None:
        value["check"] = {"same": found.same, "known_version": found.known, "step_s": found.again_s}
    return value


def exporters(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show the page of this one.", autocompletion=exporter_names)
    ] = None,
    as_json: o.Json = False,
    color: o.ColorChoice = "auto",
) -> None:
    """Trainers that a plan can be written for; with a NAME, its versions, device order and conditions."""
    from ...export import registry
    from ...report.lines import Line, columns, labelled

    screen = Screen(as_json, color=color)
    kinds = [registry.kind(name)] if name is not None else [registry.kind(n) for n in registry.names()]
    rows: list[ExporterAnswer] = [
        {
            "name": kind.name, "title": kind.title, "versions": list(kind.versions), "installed": registry.installed(kind) or None,
            "device_order": list(kind.order), "takes": kind.takes, "source": kind.source,
            "conditions": [c.name for c in kind().conditions()],
        }
        for kind in kinds
    ]  # fmt: skip
    answer: ExportersAnswer = {"schema": "meshwright.exporters/1", "status": "ok", "exporters": rows}
    screen.json(answer)
    if name is None:
        table = [["exporter", "versions", "here", "device order, outer first", "reads"]]
        for r in rows:
            order = " ".join(r["device_order"] or [])
            table.append(
                [str(r["name"]), ", ".join(r["versions"] or []), str(r["installed"] or "–"), order, str(r["takes"])]
            )
        head, *lines = columns(table, set())
        screen.lines([Line(head, "title"), *map(Line, lines)])
        screen.text("", "Also: meshwright, our own runner (meshwright run PLAN), which takes every plan as it is.")
        return
    row = rows[0]
    screen.lines([Line(f"{row['title']}", "title")])
    facts = {
        "versions": ", ".join(row["versions"] or []), "here": str(row["installed"] or "not installed"),
        "order": ", ".join(row["device_order"] or []) + " (devices, outer first)", "reads": str(row["takes"]), "source": str(row["source"]),
        "needs": "; ".join(row["conditions"] or []),
    }  # fmt: skip
    for label, text in facts.items():
        screen.lines(Line(t) for t in labelled(f"  {label}", [text], screen.width, 13))
