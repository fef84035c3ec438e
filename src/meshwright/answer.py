"""From a problem to an `Outcome`: by a planner's search, or of one layout that is given."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING

from . import settings
from ._words import gib, percent, size
from .cluster import Cluster, resolve
from .cost.constants import Predicted, chip
from .errors import InputError, MeshwrightError
from .for_trainer import given_point, trainer_of
from .layout_by_hand import LayoutByHand
from .plan.model import Plan
from .plan.problem import Problem
from .report.apart import told_apart
from .report.candidates import Candidate
from .report.cut_words import op_words
from .report.layout_words import layout_words, micro_batch_words, recompute_words
from .report.outcome import Outcome, Question, Status
from .report.why import worth_explaining
from .request import PRECISIONS, Request
from .save import Opened, check_same_model, stored_candidates
from .simulate.result import Simulation
from .stated import Stated, profile_of, state
from .stated import cluster_of as stated_cluster

if TYPE_CHECKING:
    from .planners.base import Planner
    from .planners.types import Considered, Result
    from .simulate import Pricer

Progress = Callable[[str, int, int, float], None]
KEPT = 60
"""Plans that the search keeps for the report's chart and table of plans, if the planner takes `top`."""


def candidate(question: Question, plan: Plan, simulation: Simulation) -> Candidate:
    """The row of a simulated plan."""
    micro_batch, micro_batches = micro_batch_words(plan)
    peak = float(simulation.peak.max())
    return Candidate(
        op_words(plan, question.graph) or layout_words(plan),
        micro_batch,
        micro_batches,
        recompute_words(plan, question.graph),
        plan.schedule.name if len(plan.stages) > 1 else "",
        simulation.step_seconds,
        question.items / simulation.step_seconds / question.cluster.count,
        simulation.mfu,
        peak,
        max(0.0, peak - question.usable),
        plan=lambda: plan,
    )


def of_plan(
    stated: Stated,
    plan: Plan,
    planner: str = "given",
    status: str = "feasible",
    simulation: Simulation | None = None,
) -> Outcome:
    """Price one plan; a plan that does not fit is a miss, shown with what it is over by.

    Args:
        simulation: its price, where the plan does not say all that decides it; None = as the simulator has it.
    """
    from .simulate import simulate

    began = time.monotonic()
    plan = stated.described(plan)
    simulation = simulate(stated.problem, plan) if simulation is None else simulation
    row = candidate(stated.question, plan, simulation)
    return Outcome(
        stated.question,
        "ok",
        planner,
        status,
        evaluated=1,
        refused=0 if row.fits else 1,
        seconds=time.monotonic() - began,
        seed=stated.request.seed,
        candidates=(row,) if row.fits else (),
        misses=() if row.fits else (row,),
        plan=plan,
        simulations=(simulation,),
        top=1,
        recipe=stated.problem.recipe,
        family=_family(stated.problem),
        kind=_kind(stated.problem),
        others=_others(stated),
    )


def search(
    stated: Stated,
    planner: Planner,
    *,
    top: int = 5,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Let `planner` search, then price what it found by the shared simulator.

    `stopped` says, afterwards, whether a person ended the search.
    """
    from .planners.types import Budget

    request = stated.request
    trainer = trainer_of(request)
    if trainer is not None:
        trainer.check_conditions(stated.problem, given_point(stated, request.fix))
    result = planner.plan(stated.problem, budget=Budget(seconds=request.budget), seed=request.seed, progress=progress)
    if trainer is not None and result.plan is not None and getattr(planner, "trainer", None) is None:
        trainer.check(stated.problem, result.plan)
    return outcome_of(stated, planner, result, top=top, stopped=stopped())


def outcome_of(stated: Stated, planner: Planner, result: Result, *, top: int = 5, stopped: bool = False) -> Outcome:
    """What a planner answered, with its plans priced by the shared simulator.

    Raises:
        InputError: the budget ended before the planner had any plan, which says nothing of whether one fits.
    """
    from .simulate import Pricer, simulate

    problem = stated.problem
    if result.plan is None and result.status == "budget" and not stopped:
        raise InputError(
            f"planner {planner.info.name} had no plan yet when its budget ended: give it more", where="--budget"
        )
    if result.plan is not None:
        result = replace(result, plan=stated.described(result.plan))
    pricer = Pricer(problem.graph, problem.cluster, problem.cost, problem.recipe)
    fitting, misses = _rows(stated, result, pricer)
    ranks = [i for i in worth_explaining(fitting) if fitting[i].plan is not None]
    plans = [build() for i in ranks if (build := fitting[i].plan) is not None]
    if not fitting and result.plan is not None:
        plans, ranks = [result.plan], [0]
    # Only the first is drawn; the others are there for the sentences on why.
    detailed = [simulate(problem, p, detail=i == 0, pricer=pricer) for i, p in enumerate(plans)]
    status: Status = "infeasible" if result.plan is None else "stopped" if stopped else "ok"
    return Outcome(
        stated.question,
        status,
        planner.info.name,
        result.status,
        result.reason,
        result.evaluations,
        result.space[1] or len(misses),
        result.seconds,
        result.seed,
        result.bound,
        result.objective,
        result.unit,
        tuple(fitting),
        tuple(misses),
        result.plan,
        tuple(detailed),
        tuple(ranks),
        points=result.space[0],
        details=result.carry,
        top=top,
        recipe=stated.problem.recipe,
        trainer=stated.request.trainer,
        family=_family(stated.problem),
        kind=_kind(stated.problem),
        others=_others(stated),
        goal=problem.goal,
        told=_least_memory(fitting) if problem.goal == "memory" else (),
    )


def _least_memory(fitting: Sequence[Candidate]) -> tuple[str, ...]:
    """Why, where memory is what is least."""
    if len(fitting) < 2:
        return ()
    best, fastest = fitting[0], min(fitting, key=lambda c: c.step_s)
    words = f"Least memory: {best.layout} holds {size(best.memory_bytes)} a device at most."
    if fastest is best:
        return (words, "None of the plans that were priced is faster, either.")
    more = size(fastest.memory_bytes - best.memory_bytes)
    faster = percent(1 - fastest.step_s / best.step_s)
    how = f"{fastest.layout} with µbatch {fastest.micro_batch} × {fastest.micro_batches}"
    return (words, f"The fastest of those priced, {how}, takes {faster} less time and {more} more.")


def _rows(stated: Stated, result: Result, pricer: Pricer) -> tuple[list[Candidate], list[Candidate]]:
    """(those that fit, fastest first; those that do not, nearest first): what the planner shows, or just its plans."""
    if result.considered:
        return _shown(stated, result.considered, pricer)
    from .simulate import simulate

    plans = [result.plan] if result.plan is not None else []
    plans += [choice.plan for choice in result.frontier if choice.plan != result.plan]
    rows = [candidate(stated.question, p, simulate(stated.problem, p, detail=False, pricer=pricer)) for p in plans]
    first, rest = rows[:1], sorted(rows[1:], key=lambda c: c.step_s)
    fitting = [c for c in (*first, *rest) if c.fits]
    misses = sorted((c for c in rows if not c.fits), key=lambda c: c.over_bytes)
    named = told_apart([*fitting, *misses], stated.question.graph)
    return named[: len(fitting)], named[len(fitting) :]


def _shown(stated: Stated, considered: Sequence[Considered], pricer: Pricer) -> tuple[list[Candidate], list[Candidate]]:
    from .simulate import simulate

    q = stated.question
    # Model FLOPs over peak are the same for every plan of a problem, so one simulation tells them for all rows.
    first = simulate(stated.problem, considered[0].plan(), detail=False, pricer=pricer)
    full_use = first.mfu * first.step_seconds
    seconds = [c.objective for c in considered]
    simulated = isclose(first.step_seconds, seconds[0], rel_tol=1e-6)
    if not simulated:  # the planner's objective is another: rows are judged by the simulator, whoever made them
        others = [simulate(stated.problem, c.plan(), detail=False, pricer=pricer) for c in considered[1:]]
        seconds = [first.step_seconds, *(s.step_seconds for s in others)]
    rows = [
        Candidate(
            c.layout,
            c.micro_batch,
            c.micro_batches,
            c.recompute,
            c.schedule,
            step,
            q.items / step / q.cluster.count,
            full_use / step,
            c.memory,
            c.over,
            plan=c.plan,
        )
        for c, step in zip(considered, seconds, strict=True)
    ]
    fitting = [r for r in rows if r.fits]
    if not simulated and stated.problem.goal != "memory":
        fitting[1:] = sorted(fitting[1:], key=lambda r: r.step_s)
    return fitting, [r for r in rows if not r.fits]


def _family(problem: Problem) -> str:
    return chip(problem.cluster.types[0].family) or problem.cluster.types[0].name


def _kind(problem: Problem) -> str:
    """Of the problem, as published measurements tell them apart; "" is what none of them is."""
    from .layouts.expert import expert_of

    dtype = problem.recipe.matmul_dtype or problem.recipe.compute_dtype
    if not any("attention" in op.kind for op in problem.graph.ops) or dtype == "float32":
        return ""
    if expert_of(problem.graph).experts:
        return "MoE"
    return "low precision" if dtype.startswith("float8") else "dense"


def _others(stated: Stated) -> Mapping[Predicted, str]:
    """See `Outcome.others`."""
    cost, devices, profile = stated.problem.cost, stated.problem.cluster.types, stated.question.profile
    whose = f'the profile "{profile}"' if profile else f'the cost model "{cost.name}"'
    predicted: tuple[Predicted, ...] = ("step", "memory")
    return {what: whose for what in predicted if not cost.ships(what, devices)}


def planner_of(request: Request, top: int = 5) -> Planner:
    """The planner that a request names, told its --fix, --allow, --top and --set where it takes them.

    Raises:
        InputError: no such planner, or one that takes no such option.
    """
    from .planners import registry

    kind = type(registry.load(request.planner))
    accepted = inspect.signature(kind).parameters
    options: dict[str, object] = {}
    if "top" in accepted:
        options["top"] = max(top, KEPT)
    for name, value in (("fix", request.fix), ("allow", request.allow)):
        if not value:
            continue
        if name not in accepted:
            raise InputError(f"planner {kind.info.name} takes no --{name}: leave it out, or use --planner grid")
        options[name] = value
    if (trainer := trainer_of(request)) is not None and "trainer" in accepted:
        options["trainer"] = trainer
    for name, text in (("mesh", request.mesh), ("annotations", request.annotations)):
        if text and name not in kind.info.handles:
            raise InputError(f"planner {kind.info.name} takes no --{name}: leave it out, or use --planner gspmd")
    if request.settings:
        known = settings.parameters(kind)
        settings.check_known(request.settings, {f"planner {kind.info.name}": known})
        options |= settings.typed(request.settings, known)
    return kind(**options) if options else registry.load(request.planner)


def by_hand(stated: Stated, layout: LayoutByHand, top: int = 5) -> Outcome:
    """Price a layout given by its degrees; what is not said (sequence parallelism) is chosen, and shown.

    Raises:
        InputError: degrees that do not multiply to the devices, or a layout that is not legal for this model.
    """
    from .planners.grid import Grid

    full = layout.completed(stated.problem.cluster)
    fix: dict[str, object] = {
        "dp": full.dp, "tp": full.tp, "pp": full.pp, "cp": full.cp, "ep": full.ep, "chunks": full.vpp, "zero": full.zero,
        "micro_batch": full.micro_batch, "recompute": full.recompute,
    }  # fmt: skip
    if (full.pp or 1) > 1:
        fix["schedule"] = full.schedule
    if full.context:
        fix["context"] = full.context
    if full.replicate > 1:
        fix["replicate"] = full.replicate
    trainer = trainer_of(stated.request)
    if trainer is not None:
        trainer.check_conditions(stated.problem, given_point(stated, fix))
    planner = Grid(fix=fix, top=1, trainer=trainer)
    result = planner.plan(stated.problem, seed=stated.request.seed)
    outcome = outcome_of(stated, planner, result, top=1)
    if outcome.misses and not outcome.candidates and (build := outcome.misses[0].plan) is not None:
        return replace(of_plan(stated, build(), "by hand"), misses=outcome.misses[:1])
    return replace(outcome, planner="by hand", misses=(), points=0, bound=None)


def cluster_of(request: Request) -> Cluster:
    """Only the cluster: to check degrees before a model is captured."""
    return stated_cluster(request, profile_of(request))


@dataclass(frozen=True)
class Reopened:
    folder: Path
    stated: Stated
    outcome: Outcome


def reopened(opened: Opened) -> Reopened:
    """A stored plan, priced again, beside the rows and the reasons that its report holds.

    Raises:
        InputError: the plan is for another model than its problem file names.
    """
    stated = state(opened.request)
    check_same_model(opened, stated)
    outcome = of_plan(stated, opened.plan)
    result = opened.answer.get("result", {})
    fitting, misses = stored_candidates(opened.answer)
    if fitting and outcome.candidates:
        outcome = replace(
            outcome,
            planner=result.get("planner", outcome.planner),
            result_status=result.get("status", outcome.result_status),
            evaluated=result.get("evaluations", 1),
            refused=result.get("refused", 0),
            points=result.get("points", 0),
            seconds=result.get("search_s", 0.0),
            candidates=tuple(fitting),
            misses=tuple(misses),
            told=tuple((opened.answer.get("why") or {}).get("sentences", ())),
            top=5,
        )
    files = {p.name: p.stat().st_size for p in sorted(opened.folder.iterdir()) if p.is_file()}
    return Reopened(opened.folder, stated, replace(outcome, folder=os.path.relpath(opened.folder), files=files))


BIGGER = (2, 4, 8, 16, 32, 64)
GRID = "grid"
INSTEAD = f"--planner {GRID}"


def with_hints(stated: Stated, outcome: Outcome) -> Outcome:
    """An infeasible outcome with the smallest changes that fit: a larger cluster of the same kind, shorter sequences.

    Tries powers of two with everything recomputed: a plan found is a proof, none found is not. All of it is found by `grid`,
    which has more layouts than most: where another planner was asked, it is named, and may fit with nothing changed.
    """
    from .cluster import presets
    from .planners.grid import Grid

    name, _, count = stated.request.cluster.rpartition("x")
    hints = []

    def fits(problem: Problem) -> bool:
        planner = Grid(fix={"recompute": "full", "micro_batch": 1, **stated.request.fix}, top=1)
        try:
            return planner.fits(problem)
        except MeshwrightError:
            return False

    other = "" if stated.request.planner == GRID else f" with --planner {GRID}"
    if other and fits(stated.problem):
        return replace(outcome, reason=_infeasible_sentence(outcome, [INSTEAD]), hints=(INSTEAD,))
    if name in presets():
        for factor in BIGGER:
            larger = f"{name}x{int(count) * factor}"
            if fits(replace(stated.problem, cluster=resolve(larger))):
                hints.append(f"{larger} ({factor} × as many){other}")
                break
    seq = (stated.question.seq or 0) // 2
    if seq >= 512:
        shorter = stated.source.graph(seq=seq, dtype=PRECISIONS[stated.request.precision])
        if fits(replace(stated.problem, graph=shorter)):
            hints.append(f"--seq {seq}{other}")
    return replace(outcome, reason=_infeasible_sentence(outcome, hints), hints=tuple(hints))


def _infeasible_sentence(outcome: Outcome, hints: Sequence[str]) -> str:
    """ "llama-3.1-405b on h100x64 needs at least 96.4 GiB a GPU (zero 3, full recompute), 20.4 over; …"."""
    q = outcome.question
    instead = f"; {INSTEAD} has a plan that fits" if INSTEAD in hints else ""
    if not outcome.misses:
        return outcome.reason + instead
    least = outcome.misses[0]
    sentence = (
        f"{q.model} on {q.cluster.name} needs at least {gib(least.memory_bytes)} GiB a {q.device_word} "
        f"({least.layout}, {least.recompute} recompute), {gib(least.over_bytes)} over"
    )
    larger = next((h.split()[0] for h in hints if not h.startswith("--")), "")
    kind = q.cluster.name.rpartition("x")[0]
    other = f" with {INSTEAD}" if any(h.endswith(INSTEAD) for h in hints) else ""
    return sentence + (instead or (f"; the smallest {kind} cluster that holds it{other} is {larger}" if larger else ""))
