"""Does a plan fit? It takes the schedule to know, so `validate` cannot say it."""

from __future__ import annotations

from ..lower.program import Program
from ..plan.model import Plan
from ..plan.problem import Problem
from .price import Pricer
from .result import CATEGORIES, Simulation
from .simulator import simulate

GIB = 2.0**30


def fits(problem: Problem, plan: Plan, *, program: Program | None = None, pricer: Pricer | None = None) -> str | None:
    """None, or one sentence: the device that is fullest over its limit, the excess, and what fills it."""
    return excess(problem, simulate(problem, plan, detail=False, program=program, pricer=pricer))


def excess(problem: Problem, simulation: Simulation) -> str | None:
    """The same for a plan that is simulated already."""
    worst, over = -1, 0.0
    for k, lane in enumerate(simulation.lanes):
        device = problem.cluster.type_of(lane.first_device)
        here = float(simulation.peak[k]) - problem.limits.usable(device.memory)
        if here > over:
            worst, over = k, here
    if worst < 0:
        return None
    lane = simulation.lanes[worst]
    device = problem.cluster.type_of(lane.first_device)
    parts = simulation.peak_by[worst]
    words = ", ".join(f"{name} {parts[name] / GIB:.1f}" for name in CATEGORIES if parts.get(name, 0.0) >= 0.05 * GIB)
    need, usable = float(simulation.peak[worst]) / GIB, problem.limits.usable(device.memory) / GIB
    return (
        f"{lane.name} {'need' if lane.name.split()[0].endswith('s') else 'needs'} {need:.1f} GiB on {device.kind} {lane.first_device}, "
        f"{over / GIB:.1f} over the usable {usable:.1f}" + (f" ({words})" if words else "")
    )
