"""The program of a plan whose stages stand several times, from the program of one copy.

A copy has its stage's code on a mesh of its own. Every parameter is shared with the other copies, so that its gradient is
summed over them (`parameters.STAGES`, as that of a tied weight); values go between copies that meet on a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..plan.copies import Copy
from .parameters import STAGES
from .program import GRAD, Instr, Param, Program, StageCode


def with_copies(program: Program, copies: Sequence[Copy], grad_bytes: float) -> Program:
    """`program`: of `plan.copies.one_copy`. `grad_bytes`: of an element of a gradient that is summed."""
    holders: list[list[int]] = [[] for _ in program.stages]
    for e, copy in enumerate(copies):
        holders[copy.base].append(e)
    stages = tuple(_stage(program.stages[copy.base], e, copy, holders, grad_bytes) for e, copy in enumerate(copies))
    transfers = tuple(
        replace(t, src=e, dst=f)
        for t in program.transfers
        for e in holders[t.src]
        for f in holders[t.dst]
        if copies[e].meets(copies[f])
    )
    return replace(program, stages=stages, transfers=transfers)


def _stage(code: StageCode, e: int, copy: Copy, holders: Sequence[Sequence[int]], grad_bytes: float) -> StageCode:
    params, update = [], list(code.update)
    for p in code.params:
        shared = tuple(sorted(h for base in (code.stage, *p.shared) for h in holders[base] if h != e))
        params.append(replace(p, shared=shared))
        if shared and not p.shared:
            _sum_over_copies(update, p, grad_bytes)
    turn = copy.replica, copy.replicas
    return replace(code, stage=e, mesh=copy.mesh, params=tuple(params), update=tuple(update), turn=turn)


def _sum_over_copies(update: list[Instr], p: Param, grad_bytes: float) -> None:
    """Before what else happens to the gradient at the end of a step."""
    at = next((k for k, i in enumerate(update) if i.on == p.name), None)
    if at is None:
        return  # it does not learn
    (value,), name = update[at].inputs, f"{GRAD}{p.name}@stages"
    update[at] = replace(update[at], inputs=(name,))
    update.insert(
        at,
        Instr(
            "collective", p.name, "update", (value,), (name,), "all_reduce", (STAGES,), before=p.grad, after=p.grad,
            nbytes=p.elements[1] * grad_bytes,
        ),
    )  # fmt: skip
