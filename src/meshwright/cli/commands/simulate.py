"""`simulate`: price a layout given by hand, or a plan that exists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import options as o
from ..completion import RECOMPUTE, exporter_names, model_or_plan, one_of
from ..numbers import whole
from ..screen import Screen

Degree = int | None


def simulate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|PLAN",
            help="A model as for plan, or a plan.json or its folder.",
            autocompletion=model_or_plan,
        ),
    ],
    cluster: o.Cluster = None,
    profile: o.Profile = None,
    batch: o.Batch = None,
    seq: o.Seq = None,
    precision: o.Precision = None,
    attention_share: o.AttentionShare = None,
    routing_skew: o.RoutingSkew = None,
    tokens: o.Tokens = None,
    price: o.Price = None,
    dp: Annotated[Degree, whole("--dp", 1, help="Data-parallel replicas.")] = None,
    tp: Annotated[Degree, whole("--tp", 1, help="Tensor-parallel degree.")] = None,
    pp: Annotated[Degree, whole("--pp", 1, help="Pipeline stages.")] = None,
    cp: Annotated[Degree, whole("--cp", 1, help="Context-parallel degree.")] = None,
    context: Annotated[
        str,
        typer.Option(
            "--context",
            metavar="ulysses|gather",
            help="How cp attends: by heads, or keys and values gathered.  [default: the faster]",
        ),
    ] = "",
    ep: Annotated[Degree, whole("--ep", 1, help="Expert-parallel degree.")] = None,
    vpp: Annotated[int, whole("--vpp", 1, help="Chunks a device, interleaved.")] = 1,
    zero: Annotated[int, whole("--zero", 0, 3, help="What rests cut over dp: 1 state, 2 gradients, 3 weights.")] = 0,
    replicate: Annotated[
        int, whole("--replicate", 1, help="Groups of replicas that each hold all that --zero cuts (hybrid sharding).")
    ] = 1,
    micro_batch: Annotated[int, whole("--micro-batch", 1, help="Samples a replica computes at once.")] = 1,
    recompute: Annotated[
        str,
        typer.Option(
            "--recompute",
            metavar="none|light|full|attention|first:K",
            help="What runs again before the backward.",
            autocompletion=one_of(RECOMPUTE),
        ),
    ] = "none",
    schedule: Annotated[
        str, typer.Option("--schedule", metavar="gpipe|1f1b|interleaved", help="Order of the pipeline.")
    ] = "",
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Settings of another trainer: its recipe, command line, YAML or JSON."
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="TRAINER", autocompletion=exporter_names, help="Whose settings --from are."),
    ] = None,
    for_: o.For = None,
    out: o.Out = None,
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Price a layout given by hand (--dp, --tp, --pp; one left out is worked out), or a plan that exists."""
    from ... import answer, save
    from ...layout_by_hand import LayoutByHand
    from ...report.payload import plan_object
    from ...report.table import plan_lines
    from ...stated import state
    from ._asked import is_plan, request_of, working
    from ._from import simulate_from

    screen = Screen(as_json, quiet, verbose, color)
    given = {
        "cluster": cluster,
        "profile": profile,
        "batch": batch,
        "seq": seq,
        "precision": precision,
        "attention_share": attention_share,
        "routing_skew": routing_skew,
        "seed": seed,
        "trainer": for_,
        "tokens": tokens,
        "price": price,
    }
    if from_ is not None:
        return simulate_from(screen, request_of(model, **given), from_, format_ or "", out)
    with working(screen) as (progress, interrupt):
        if is_plan(model):
            opened = save.open_plan(Path(model))
            stated = state(request_of(str(opened.folder / "problem.toml"), **given), progress.line)
            save.check_same_model(opened, stated)
            outcome = answer.of_plan(stated, opened.plan)
        else:
            layout = LayoutByHand(dp, tp, pp, cp, ep, vpp, zero, micro_batch, recompute, schedule, context, replicate)
            request = request_of(model, **given)
            layout.completed(answer.cluster_of(request))
            stated = state(request, progress.line)
            outcome = answer.by_hand(stated, layout)
        if out is not None and outcome.plan is not None:
            interrupt.writing = True
            outcome = save.write(outcome, stated, out)
    screen.lines(plan_lines(outcome, screen.width))
    screen.json(plan_object(outcome))
    return 0 if outcome.candidates else 3
