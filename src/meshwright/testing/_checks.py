"""The six promises of a planner. Each check returns (passed, note, fault): the note stands in the table, the fault below it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TypeAlias

from ..errors import Infeasible, Unsupported
from ..plan.model import Plan
from ..plan.problem import Problem
from ..plan.validate import validate
from ..planners import Budget, Planner, Result
from ..planners.base import NO_REASON
from ..simulate.fits import fits
from ..simulate.simulator import simulate
from ._worker import answers
from .brute import all_plans
from .tiny import Tiny, mlp, problem_of, tiny_problems

Outcome: TypeAlias = tuple[bool, str, str]
EVALUATIONS = 200
"""Budget of the repeatability check: the reproducible kind."""
PATIENCE = 60.0
"""Seconds a search on a small problem may take where no budget is under test."""
GRACE = 1.0
"""Seconds over a budget that still count as honoured: building and checking the plan, a busy machine."""
SAME = 1e-9
"""Relative difference of two sums of the same numbers in another order."""


def same_plan(planner: Planner, seconds: float) -> Outcome:
    """Two new processes with other hash seeds give what this one gives."""
    here = answers(planner, 11, EVALUATIONS)
    if not here:
        return False, "", "none of the small problems suits its tags, so nothing could be checked"
    request = json.dumps({"spec": spec_of(planner), "seed": 11, "evaluations": EVALUATIONS, "path": sys.path})
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "meshwright.testing._worker"],
            input=request,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            timeout=10 * PATIENCE,
        )
        if done.returncode:
            return False, "", f"in a new process it failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        there = json.loads(done.stdout)
        for name, text in here.items():
            if there.get(name) != text:
                return (
                    False,
                    "",
                    f"on {name} a new process gave another plan: take order from sorted names, chance from run.rng",
                )
    return True, "", ""


def spec_of(planner: Planner) -> str:
    """How another process finds the planner's class: by module where that can be imported there, else by file."""
    kind = type(planner)
    module = sys.modules.get(kind.__module__)
    file = inspect.getsourcefile(kind) or ""
    spec = getattr(module, "__spec__", None)
    if (
        spec is not None
        and kind.__module__ not in ("__main__",)
        and not kind.__module__.startswith("meshwright_planner_")
    ):
        return f"{kind.__module__}:{kind.__name__}"
    return f"{Path(file).resolve()}:{kind.__name__}"


def budget_kept(planner: Planner, seconds: float) -> Outcome:
    """A budget of seconds ends the search on a problem that is larger than the others."""
    problem = _larger()
    planner.plan(problem, budget=Budget(evaluations=1))  # compiles what is compiled once a process
    start = time.monotonic()
    result = planner.plan(problem, budget=Budget(seconds=seconds))
    took = time.monotonic() - start
    note = f"({took:.1f} s)"
    if took > seconds + GRACE:
        return False, note, f"a budget of {seconds:g} s took {took:.1f} s: call run.tick after each evaluation"
    if result.status == "infeasible":
        return False, note, f"a budget of {seconds:g} s made it infeasible: {result.reason}"
    return True, note, ""


def interrupted(planner: Planner, seconds: float) -> Outcome:
    """Ctrl-C, at the first report of the search and at the first after a plan was found."""
    for name, problem in _suited(planner):
        for wait_for_plan in (False, True):
            known: list[float] = []

            def stop(phase: str, done: int, total: int, best: float, wait: bool = wait_for_plan, known=known) -> None:  # type: ignore[no-untyped-def]
                if not known and (not wait or best < inf):
                    known.append(best)
                    raise KeyboardInterrupt

            try:
                result = planner.plan(problem, progress=stop)
            except KeyboardInterrupt:
                return (
                    False,
                    "",
                    f"on {name} Ctrl-C went through: do not call the progress callback outside of run.tick",
                )
            if known and known[0] < inf:
                if result.plan is None:
                    return False, "", f"on {name} Ctrl-C lost the plan that was found: let KeyboardInterrupt pass"
                if result.objective > known[0]:
                    return False, "", f"on {name} Ctrl-C gave a worse plan than the best so far"
                validate(problem, result.plan)
    return True, "", ""


def memory_kept(planner: Planner, seconds: float) -> Outcome:
    """Plans fit: as the problems stand, and with less memory than the plan of before took."""
    for name, problem in _suited(planner):
        result = _search(planner, problem)
        if result.plan is None:
            continue
        fault = fits(problem, result.plan)
        if fault:
            return False, "", f"on {name} it returned a plan that does not fit: {fault}"
        peak = float(max(simulate(problem, result.plan, detail=False).peak))
        for share in (0.9, 0.6):
            limits = replace(problem.limits, memory=share * peak, keep_free=0.0)
            tight = replace(problem, limits=limits)
            again = _search(planner, tight)
            fault = fits(tight, again.plan) if again.plan is not None else None
            if fault:
                return (
                    False,
                    "",
                    f"on {name} with {share:.0%} of the memory it returned a plan that does not fit: {fault}",
                )
    return True, "", ""


def no_better_than_brute_force(planner: Planner, seconds: float) -> Outcome:
    """Its claim is its own objective of its plan, and no plan of all that there are is below its bound.

    Plans are enumerated on two devices. A planner whose layouts all need more is held against its own objective alone.
    """
    priced, small = 0, False
    for name, problem in _suited(planner):
        result = _search(planner, problem)
        if result.plan is None:
            continue
        fault = _false_claim(planner, name, problem, result)
        if fault:
            return False, "", fault
        if problem.cluster.count > 2:
            continue
        small = True
        for plan in all_plans(problem):
            value = _value(planner, problem, plan)
            if value is None:
                continue
            priced += 1
            beaten = result.bound is not None and value < result.bound * (1 - SAME)
            if beaten and planner.contains(problem, plan):
                return (
                    False,
                    "",
                    (
                        f"on {name} it proves a bound of {result.bound:.6g}, but {len(plan.stages)} stages under "
                        f"{plan.schedule.name} with {plan.schedule.micro_batches} micro-batches reach {value:.6g}"
                    ),
                )
    if not small:
        result = _search(planner, _larger())
        fault = _false_claim(planner, "eight devices", _larger(), result) if result.plan is not None else "no plan"
        if not fault:
            return True, "(needs more than 2 devices)", ""
    if not priced:
        return False, "", "its objective prices none of the brute-force plans, so its claims could not be checked"
    return True, f"({priced:,})", ""


def _false_claim(planner: Planner, name: str, problem: Problem, result: Result) -> str:
    """What is wrong with the figures of a result that has a plan; "" if nothing is."""
    assert result.plan is not None
    own = planner.objective(problem, result.plan)
    if abs(own - result.objective) > SAME * abs(own):
        return f"on {name} it claims {result.objective:.6g}, but its objective of that plan is {own:.6g}"
    if result.bound is not None and result.objective < result.bound * (1 - SAME):
        return f"on {name} it claims {result.objective:.6g}, below its own bound {result.bound:.6g}"
    return ""


def _larger() -> Problem:
    """Larger than the others."""
    return problem_of(mlp(12, width=512, samples=64), "a100x8", samples=64)


def _value(planner: Planner, problem: Problem, plan: Plan) -> float | None:
    """The planner's objective of a plan that fits; None for plans outside of its space."""
    try:
        value = planner.objective(problem, plan)
    except (Unsupported, Infeasible):
        return None
    return value if fits(problem, plan) is None else None


def infeasible_says_why(planner: Planner, seconds: float) -> Outcome:
    """Where nothing fits there is no plan, and a sentence."""
    for tiny in tiny_problems():
        if tiny.feasible:
            continue
        try:
            result = planner.plan(tiny.problem, budget=Budget(seconds=PATIENCE))
        except Unsupported:
            continue
        except Exception as error:
            return (
                False,
                "",
                f"on {tiny.name} it raised {type(error).__name__}: {error}; raise Infeasible(reason) instead",
            )
        if result.plan is not None:
            over = _excess(tiny, result.plan)
            return False, "", f"on {tiny.name} it returned a plan {over}; raise Infeasible(reason) instead"
        if result.status != "infeasible" or not result.reason or NO_REASON in result.reason:
            return False, "", f"on {tiny.name} it gave up without a reason; raise Infeasible(reason)"
    return True, "", ""


def _excess(tiny: Tiny, plan: Plan) -> str:
    simulation = simulate(tiny.problem, plan, detail=False)
    most, device = max(
        (
            float(peak) - tiny.problem.limits.usable(tiny.problem.cluster.type_of(lane.first_device).memory),
            lane.first_device,
        )
        for peak, lane in zip(simulation.peak, simulation.lanes)
    )
    size = f"{most / 2**30:.1f} GiB" if most >= 2**28 else f"{most / 2**20:.1f} MiB"
    return f"{size} over device {device}"


def _suited(planner: Planner) -> Iterator[tuple[str, Problem]]:
    """Feasible problems that suit the planner's tags."""
    for tiny in tiny_problems():
        if tiny.feasible:
            try:
                planner.plan(tiny.problem, budget=Budget(evaluations=1))
            except Unsupported:
                continue
            yield tiny.name, tiny.problem


def _search(planner: Planner, problem: Problem) -> Result:
    return planner.plan(problem, budget=Budget(seconds=PATIENCE))


CHECKS: dict[str, Callable[[Planner, float], Outcome]] = {
    "same seed, same plan, new process": same_plan,
    "budget {seconds} s honoured": budget_kept,
    "Ctrl-C returns best so far": interrupted,
    "memory limit respected": memory_kept,
    "never better than brute force": no_better_than_brute_force,
    "infeasible says why": infeasible_says_why,
}
