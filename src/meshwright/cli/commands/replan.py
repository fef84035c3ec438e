"""`replan`: the cluster of a plan changed; a new plan, what moves, and what each rank reads of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..._words import whole_number
from ...errors import InputError
from .. import options as o
from ..screen import Screen

if TYPE_CHECKING:
    from ...report.answers import ReplanAnswer


def replan(
    plan: o.PlanPath,
    cluster: o.Cluster = None,
    lost: Annotated[
        str | None,
        typer.Option("--lost", metavar="3,17", help="Devices of the old cluster that are gone, by their numbers."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="DIR", help="The checkpoint to go on from.  [default: the newest below PLAN, if any]"
        ),
    ] = None,
    profile: o.Profile = None,
    batch: o.Batch = None,
    seq: o.Seq = None,
    precision: o.Precision = None,
    attention_share: o.AttentionShare = None,
    routing_skew: o.RoutingSkew = None,
    planner: o.Planner = None,
    set_: o.Set = None,
    budget: o.Budget = None,
    objective: o.Objective = None,
    tokens: o.Tokens = None,
    price: o.Price = None,
    top: o.Top = 5,
    fix: o.Fix = None,
    allow: o.Allow = None,
    for_: o.For = None,
    mesh: o.Mesh = None,
    annotations: o.Annotations = None,
    out: o.Out = None,
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Find the plan for what a cluster has become, and say what moves from the old one and what is read.

    Model, batch, sequence, precision, planner and all other options are those of PLAN's problem.toml, unless given here.
    """
    from ... import answer, replanning, save
    from ...output_folder import check_free
    from ...report.lines import Line
    from ...report.moves import moves_lines, moves_object, resume_lines, resume_object
    from ...report.payload import plan_object
    from ...report.table import command_lines, plan_lines, written_lines
    from ...settings import parsed
    from ...stated import state
    from ..entry import complain
    from ._asked import working

    screen = Screen(as_json, quiet, verbose, color)
    opened = save.open_plan(plan)
    given = {
        "cluster": cluster, "profile": profile, "batch": batch, "seq": seq, "precision": precision,
        "attention_share": attention_share, "routing_skew": routing_skew, "planner": planner, "budget": budget,
        "objective": objective, "tokens": tokens, "price": price, "fix": o.parse_fix(fix), "allow": o.parse_allow(allow),
        "seed": seed, "settings": parsed(set_) if set_ else None, "mesh": mesh, "annotations": annotations, "trainer": for_,
    }  # fmt: skip
    gone = parse_lost(lost)
    changes: dict[str, object] = {k: v for k, v in given.items() if v is not None}
    request = replace(opened.request, **changes)  # type: ignore[arg-type]
    was, now = answer.cluster_of(opened.request), answer.cluster_of(replace(request, price=None))
    if price is None:
        request = replanning.kept_price(request, was, now)
    replanning.check_changed(was, now, gone)
    stay = replanning.stays(was, now, gone)
    checkpoint = replanning.checkpoint_of(opened.folder, resume)
    with working(screen) as (progress, interrupt):
        chosen = answer.planner_of(request, top)
        old = state(opened.request)
        save.check_same_model(opened, old)
        stated = state(request, progress.line)
        folder = out or stated.folder
        check_other(folder, opened.folder)
        check_free(folder, stated.request)
        progress.planner, progress.unit = chosen.info.name, chosen.unit_of(stated.problem)
        outcome = replanning.search(
            stated, chosen, opened.plan, top=top, progress=progress.search, stopped=lambda: interrupt.count > 0
        )
        if outcome.plan is None and outcome.misses and not interrupt.count:
            outcome = answer.with_hints(stated, outcome)
        moves = ranks = None
        if outcome.plan is not None:
            interrupt.writing = True
            moves = replanning.moves_between(old, opened.plan, stated, outcome.plan, stay)
            ranks = replanning.rank_reads(checkpoint, stated, moves) if checkpoint is not None else None
            outcome = save.write(outcome, stated, folder)
    if interrupt.count and outcome.plan is None:
        raise KeyboardInterrupt
    width = screen.width
    screen.lines(plan_lines(replace(outcome, files={}), width, next_steps=False))
    if moves is not None:
        screen.lines([Line(""), *moves_lines(moves, was.count, width)])
        if checkpoint is not None and ranks is not None:
            screen.lines(resume_lines(o.short_folder(checkpoint), ranks, width))
        from_ = o.short_folder(checkpoint) if checkpoint is not None else "DIR"
        commands = [
            (f"meshwright run {outcome.folder} --resume {from_}", "go on under the new plan"),
            (f"meshwright show {outcome.folder} --diff {o.short_folder(opened.folder)}", "what differs"),
        ]
        screen.lines([Line(""), *command_lines(commands, width), *written_lines(outcome, width)])
    else:
        complain(f"infeasible: {outcome.reason}")
    found: ReplanAnswer = {
        "schema": "meshwright.replan/1",
        "status": outcome.status,
        "from": str(opened.folder),
        "new": plan_object(outcome),
        "moves": moves_object(moves) if moves is not None else None,
        "resume": resume_object(str(checkpoint), ranks) if ranks is not None else None,
    }
    screen.json(found)
    return 0 if outcome.plan is not None else 3


def parse_lost(text: str | None) -> frozenset[int]:
    """ "3,17" -> {3, 17}."""
    words = [w.strip() for w in (text or "").split(",") if w.strip()]
    wrong = next((w for w in words if whole_number(w) is None), None)
    if wrong is not None:
        raise InputError(f"--lost {wrong}: write the numbers of devices as 3,17", where="--lost")
    return frozenset(map(int, words))


def check_other(folder: Path, old: Path) -> None:
    """Refuse to write over the plan that is replaced, which what is still running needs."""
    if folder.resolve() == old.resolve():
        raise InputError(f"{folder}/ holds the plan that is replaced: give another folder with -o", where="--out")
