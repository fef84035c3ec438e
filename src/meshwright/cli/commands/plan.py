"""`plan`: search, predict, write a folder."""

from __future__ import annotations

from .. import options as o
from ..screen import Screen


def plan(
    model: o.Model,
    cluster: o.Cluster = None,
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
    save_profile: o.SaveProfile = None,
    out: o.Out = None,
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Search for a plan, predict its step time and memory, and write a folder with plan, report and trace.

    MODEL may be a recorded profile (of dnn-partitioning, piper, pipedream, dapple, PaSE, AccPar, autoparallel, parts of
    Alpa, …: docs/profiles.md) or a tensor program with annotated shardings, recognised by its content: it brings its own
    costs and devices, --set overrides them, and a folder is written only where -o says.
    """
    from ... import answer, cheapest, exporting, save
    from ...output_folder import check_free
    from ...report.payload import plan_object
    from ...report.table import plan_lines
    from ...settings import parsed
    from ...stated import state
    from ..entry import complain
    from ._asked import request_of, working
    from ._recorded import is_recorded, plan_recorded

    screen = Screen(as_json, quiet, verbose, color)
    request = request_of(
        model, cluster=cluster, profile=profile, batch=batch, seq=seq, precision=precision, attention_share=attention_share, routing_skew=routing_skew, planner=planner, budget=budget,
        objective=objective, tokens=tokens, price=price, fix=o.parse_fix(fix), allow=o.parse_allow(allow), seed=seed,
        settings=parsed(set_) if set_ else None, mesh=mesh, annotations=annotations, trainer=for_,
    )  # fmt: skip
    wanted = exporting.asked(save_profile) if save_profile else None
    if is_recorded(request.model):
        return plan_recorded(request, planner, out, screen, wanted)
    with working(screen) as (progress, interrupt):
        chosen = answer.planner_of(request, top)
        stated = state(request, progress.line)
        if wanted is not None:
            exporting.save(stated.problem, *wanted, title=stated.source.name)
            screen.note(f"wrote {wanted[1]}, a profile of format {wanted[0]}: meshwright plan {wanted[1]}")
        least_money = stated.request.objective == "cost"
        folder = out or stated.folder
        if least_money:
            cheapest.check_price(stated)
            if out is not None:
                cheapest.check_free(out, stated)
        else:
            check_free(folder, stated.request)
        progress.planner, progress.unit = chosen.info.name, chosen.unit_of(stated.problem)

        def stopped() -> bool:
            return interrupt.count > 0

        if least_money:
            stated, outcome = cheapest.search(
                stated, chosen, top=top, progress=progress.search, stopped=stopped, say=progress.line
            )
            folder = out or stated.folder
        else:
            outcome = answer.search(stated, chosen, top=top, progress=progress.search, stopped=stopped)
        if outcome.plan is None and outcome.misses and not interrupt.count:
            outcome = answer.with_hints(stated, outcome)
        if outcome.plan is not None:
            interrupt.writing = True
            outcome = save.write(outcome, stated, folder)
    if interrupt.count and outcome.plan is None:
        raise KeyboardInterrupt
    screen.lines(plan_lines(outcome, screen.width))
    if outcome.plan is None:
        complain(f"infeasible: {outcome.reason}")
    screen.json(plan_object(outcome))
    return 0 if outcome.plan is not None else 3
