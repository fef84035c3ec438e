"""`planners`, `models`, `clusters`: what there is; with a name, its page with the source of every figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from ..._words import GIB, count, parameters
from ...errors import InputError
from ...report.lines import Line, columns, labelled
from .. import options as o
from ..completion import model_names, planner_names, preset_names
from ..screen import Screen

if TYPE_CHECKING:
    from ..answers import ClusterAnswer, ClustersAnswer, ModelAnswer, ModelsAnswer, PlannerAnswer, PlannersAnswer

Row = TypeVar("Row", "ModelAnswer", "ClusterAnswer", "PlannerAnswer")

NARROW = 24
"""Columns under which the last one is no longer set beside the others."""
PAGE = "Show the page of this one."
Tag = Annotated[str | None, typer.Option("--tag", help="Only those with this word among their tags.")]


def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help=PAGE, autocompletion=model_names)] = None,
    tag: Tag = None,
    as_json: o.Json = False,
    color: o.ColorChoice = "auto",
) -> None:
    """Models known by name; with a NAME, where its sizes come from."""
    from ...graph.zoo import entries

    screen = Screen(as_json, color=color)
    found = [e for e in entries() if tag is None or tag in (e.family, e.name)]
    rows: list[ModelAnswer] = [
        {
            "name": e.name, "family": e.family, "parameters": e.parameters, "batch": e.batch,
            "seq": e.seq if e.text else 0, "source": e.source,
        }
        for e in found
    ]  # fmt: skip
    if name is not None:
        page = _one(rows, name, "model", "models")
        one: ModelsAnswer = {"schema": "meshwright.models/1", "status": "ok", "models": [page]}
        screen.json(one)
        config = next(e for e in found if e.name == name).config
        sizes = [f"{key} {value}" for key, value in config.items() if isinstance(value, (int, float, str))]
        screen.lines(
            [
                Line(name, "title"),
                *_page(
                    {
                        "family": page["family"],
                        "size": f"{parameters(page['parameters'])} parameters",
                        "default": _default(page),
                        "source": page["source"],
                        "sizes": " · ".join(sizes),
                    },
                    screen.width,
                ),
            ]
        )
        return
    answer: ModelsAnswer = {"schema": "meshwright.models/1", "status": "ok", "models": rows}
    screen.json(answer)
    table = [["model", "family", "parameters", "default step"]]
    table += [[r["name"], r["family"], parameters(r["parameters"]), _default(r)] for r in rows]
    _table(screen, table, {2})
    screen.text("", "Also: a Hugging Face config.json, or model.py:build; build() returns (module, example inputs).")


def clusters(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help=PAGE, autocompletion=preset_names)] = None,
    tag: Tag = None,
    as_json: o.Json = False,
    color: o.ColorChoice = "auto",
) -> None:
    """Accelerators known by name; with a NAME, where its figures come from."""
    from ...cluster import presets

    screen = Screen(as_json, color=color)
    rows: list[ClusterAnswer] = []
    for p in presets().values():
        d = p.device
        rows.append(
            {
                "name": p.name, "device": d.name, "kind": d.kind, "memory_bytes": d.memory, "node": p.node,
                "bandwidth_bytes_per_s": d.bandwidth, "peak_flop_per_s": dict(d.peak), "price_per_hour": d.price_per_hour or None, "sources": dict(p.sources),
                "inside": f"{p.inside.name} {p.inside.bandwidth / 1e9:.4g} GB/s",
                "between": f"{p.nics} × {p.nic.name} {p.nic.bandwidth / 1e9:.4g} GB/s" if p.nics else "one node only",
            }
        )  # fmt: skip
    rows = [r for r in rows if tag is None or tag in (r["kind"], r["name"])]
    if name is not None:
        page = _one(
            rows, name.partition("x")[0] if name not in {r["name"] for r in rows} else name, "cluster", "clusters"
        )
        one: ClustersAnswer = {"schema": "meshwright.clusters/1", "status": "ok", "clusters": [page]}
        screen.json(one)
        facts = {
            "device": f"{page['device']}, {page['memory_bytes'] / GIB:.4g} GiB, {page['bandwidth_bytes_per_s'] / 1e9:,.0f} GB/s",
            "peak": " · ".join(f"{k} {v / 1e12:,.0f} TFLOP/s" for k, v in page["peak_flop_per_s"].items()),
            **({"price": f"{page['price_per_hour']:g} a device and hour"} if page["price_per_hour"] else {}),
            "node": f"{page['node']} devices, {page['inside']}; out of it {page['between']}",
            **{f"source of {k}": v for k, v in page["sources"].items()},
        }
        screen.lines([Line(page["name"], "title"), *_page(facts, screen.width)])
        return
    answer: ClustersAnswer = {"schema": "meshwright.clusters/1", "status": "ok", "clusters": rows}
    screen.json(answer)
    table = [["cluster", "device", "GiB", "node of", "inside a node", "between nodes"]]
    table += [
        [f"{r['name']}xN", r["device"], f"{r['memory_bytes'] / GIB:.1f}", str(r["node"]), r["inside"], r["between"]]
        for r in rows
    ]
    _table(screen, table, {2, 3})
    screen.text(
        "", "N: 1 to a full node, or a multiple of it.  Also: local, localxN (this machine), and any cluster.toml."
    )


def planners(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help=PAGE, autocompletion=planner_names)] = None,
    tag: Tag = None,
    as_json: o.Json = False,
    color: o.ColorChoice = "auto",
) -> None:
    """Planners that are registered; with a NAME, its paper, what it decides, what it handles."""
    from ...planners import registry
    from ...settings import about_parameters
    from ...settings import parameters as parameters_of

    screen = Screen(as_json, color=color)
    rows: list[PlannerAnswer] = [
        {
            "name": i.name, "title": i.title, "year": i.year, "reference": i.reference, "family": i.family,
            "decides": sorted(i.decides), "handles": sorted(i.handles), "goals": sorted(i.goals),
            "missing": list(i.missing), "settings": {k: _type(x) for k, x in parameters_of(kind).items()},
            "about_settings": about_parameters(kind),
        }
        for kind, i in ((kind, kind.info) for kind in registry.planners().values())
    ]  # fmt: skip
    rows = [r for r in rows if tag is None or tag in (r["family"], *r["decides"], *r["handles"], *r["goals"])]
    if name is not None:
        page = _one(rows, name, "planner", "planners")
        one: PlannersAnswer = {"schema": "meshwright.planners/1", "status": "ok", "planners": [page]}
        screen.json(one)
        facts = {
            "what": f"{page['title']} ({page['year']})",
            "source": page["reference"],
            "family": page["family"],
            "decides": ", ".join(page["decides"]),
            "handles": ", ".join(page["handles"]) or "homogeneous clusters",
            "goals": ", ".join(page["goals"]),
            **({} if page["settings"] else {"settings": "none"}),
            **({"unfinished": "; ".join(page["missing"])} if page["missing"] else {}),
        }
        screen.lines([Line(name, "title"), *_page(facts, screen.width)])
        if page["settings"]:
            about = page["about_settings"]
            told = {
                key: f"{kind}{(about.get(key) and '. ' + about[key]) or ''}" for key, kind in page["settings"].items()
            }
            screen.lines([Line(""), Line("  --set KEY=VALUE", "title"), *_page(told, screen.width)])
        return
    answer: PlannersAnswer = {"schema": "meshwright.planners/1", "status": "ok", "planners": rows}
    screen.json(answer)
    table = [["planner", "family", "year", "what"]]
    for r in rows:
        words = [r["title"], f"decides {', '.join(r['decides'])}", *(f"unfinished: {part}" for part in r["missing"])]
        table.append([r["name"], r["family"], str(r["year"]), "\n".join(words)])
    _table(screen, table, set())
    screen.text("", "Also: any ./file.py that defines a planner; CONTRIBUTING.md shows one.")


def _type(kind: Any) -> str:
    """ "a|b", "int", "float or none": values of a setting."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join("none" if k is NoneType else _type(k) for k in get_args(kind))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{_type(get_args(kind)[0])}, …"
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None and kind is not Any else "value"


def _one(rows: Sequence[Row], name: str, kind: str, command: str) -> Row:
    from ..._spelling import nearest

    for row in rows:
        if row["name"] == name:
            return row
    near = nearest(name, [r["name"] for r in rows])
    hint = f"did you mean {near}? " if near else ""
    raise InputError(f'no {kind} "{name}": {hint}("meshwright {command}" lists {len(rows)})', where="NAME")


def _default(row: ModelAnswer) -> str:
    return f"batch {count(row['batch'])}" + (f" of {count(row['seq'])}" if row["seq"] else "")


def _page(facts: dict[str, str], width: int) -> list[Line]:
    indent = max(map(len, facts)) + 3
    return [Line(t) for key, value in facts.items() for t in labelled(f"  {key}", [value or "–"], width, indent + 1)]


def _table(screen: Screen, rows: list[list[str]], right: set[int]) -> None:
    """The last column is wrapped, its lines one by one; where it has no room, it stands under its row."""
    short = [row[:-1] for row in rows]
    starts = max(map(len, columns(short, right))) + 2
    if screen.width - starts < NARROW:
        starts = 4
    lines: list[Line] = []
    for k, (head, row) in enumerate(zip(columns(short, right), rows, strict=True)):
        room = max(NARROW, screen.width - starts)
        cells = [t for text in row[-1].split("\n") for t in textwrap.wrap(text, room, break_on_hyphens=False)]
        texts = [" " * starts + t for t in cells]
        if texts and len(head) + 2 <= starts:
            texts[0] = head.ljust(starts) + cells[0]
        else:
            texts.insert(0, head)
        lines += [Line(t, "" if k else "quiet") for t in texts]
    screen.lines(lines)
