"""`compare`: many planners, one problem, one judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import options as o
from ..completion import planner_lists
from ..screen import Screen


def compare(
    models: o.Models,
    cluster: o.Cluster = None,
    profile: o.Profile = None,
    planners: Annotated[
        str,
        typer.Option(
            "--planners",
            metavar="a,b,./file.py|all|tag:exact",
            help="Which planners take part.",
            autocompletion=planner_lists,
        ),
    ] = "all",
    batch: o.Batch = None,
    seq: o.Seq = None,
    precision: o.Precision = None,
    attention_share: o.AttentionShare = None,
    routing_skew: o.RoutingSkew = None,
    budget: o.Budget = None,
    objective: o.Objective = None,
    set_: o.Set = None,
    out: o.Out = None,
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Let many planners answer one problem, and judge all plans by the same simulator.

    Of recorded profiles there may be several, a table each; --set overrides them all.
    """
    from ... import comparing
    from ...errors import InputError
    from ...planners import registry
    from ...report.compare import compare_lines, compare_object
    from ...report.lines import Line, labelled, listed
    from ...settings import parsed
    from ...stated import state
    from ._asked import request_of, working
    from ._recorded import compare_recorded, is_recorded

    screen = Screen(as_json, quiet, verbose, color)
    given = {
        "cluster": cluster, "profile": profile, "batch": batch, "seq": seq, "precision": precision,
        "attention_share": attention_share, "routing_skew": routing_skew, "budget": budget, "objective": objective,
        "seed": seed, "settings": parsed(set_) if set_ else None,
    }  # fmt: skip
    requests = [request_of(model, **given) for model in models]
    if any(r.objective == "cost" for r in requests):
        raise InputError(
            "compare judges all planners on one cluster, where the cheapest plan is the fastest: leave out --objective cost",
            where="--objective",
        )
    names = comparing.planners_named(planners)
    recorded = [is_recorded(r.model) for r in requests]
    if all(recorded):
        names = registry.names() if planners == "all" else names
        comparing.check_names(names)
        return compare_recorded(requests, names, out, screen)
    if len(requests) > 1:
        raise InputError(
            f"compare takes one model at a time, or several recorded profiles: {requests[recorded.index(False)].model} is none",
            where="MODEL",
        )
    request = requests[0]
    left_out = comparing.unfinished() if planners == "all" else []
    with working(screen) as (progress, interrupt):

        def told(name: str, k: int, n: int) -> None:
            progress.planner, progress.unit = name, registry.load(name).unit or "s"
            progress.line("planner", f"{name} ({k + 1} of {n})", " ")

        comparing.check_names(names, request.settings)
        stated = state(request, progress.line)
        folder = out or Path(f"compare-{stated.folder}")
        found = comparing.compare(
            stated,
            names,
            progress=progress.search,
            told=told,
            stopped=lambda: interrupt.count > 0,
        )
        interrupt.writing = True
        files = comparing.write(found, stated, folder)
    lines = compare_lines(found, screen.width)
    shown = list(dict.fromkeys("plans/*.json" if name.startswith("plans/") else name for name in files))
    lines += map(Line, listed(f"Wrote {folder}/   ", shown, screen.width))
    if left_out:
        lines += map(Line, labelled("", [f"Left out as unfinished: {', '.join(left_out)}"], screen.width, indent=0))
    screen.lines(lines)
    screen.json(compare_object(found, {name: str(folder / name) for name in files}))
    return 0 if found.answered else 3
