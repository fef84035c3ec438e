"""How much a plan moves: what propagation is judged by, which has no objective of its own."""

from __future__ import annotations

from math import prod

from ..cluster.model import Mesh
from ..lower import Program, instructions, lower
from ..lower.program import Instr
from ..plan.model import Plan
from ..plan.problem import Problem


def moved_bytes(problem: Problem, plan: Plan) -> float:
    """Bytes that all devices together receive in one step: in rings, or from a neighbour; between stages the whole value.

    Raises:
        InputError, Unsupported: what `lower` raises.
    """
    graph = plan.rewritten if plan.rewritten is not None else problem.graph
    program = lower(graph, plan, problem.recipe)
    m = plan.schedule.micro_batches
    total = 0.0
    for code in program.stages:
        once = {id(i) for i in code.update}
        for count, i in instructions(code):
            if i.communicates:
                times = count * (1 if id(i) in once else m)
                total += times * _received(program, i, code.mesh) * len(code.mesh.devices)
    for t in program.transfers:
        mesh = program.stages[t.src].mesh
        local = program.local_samples(mesh, t.samples) if t.samples is not None else 1
        total += m * t.nbytes * local * len(mesh.devices) * (2 if t.grad else 1)
    return total


def _received(program: Program, i: Instr, mesh: Mesh) -> float:
    """By each member; sums of tied parameters over stages are left out, which every plan of as many stages has alike."""
    n = prod(mesh.size(axis) for axis in i.axes)
    held = i.nbytes * (program.local_samples(mesh, i.samples) if i.samples is not None else 1)
    if n == 1:
        return 0.0
    if i.kind == "halo":
        return held
    return held * (n - 1) / n * (2 if i.collective == "all_reduce" else 1)
