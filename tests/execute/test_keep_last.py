"""Recompute of all micro-batches but the last ones (`Stage.keep_last`): what runs, how often, and with what result."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from execute.conftest import Model, Pools, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.execute.ops import calls
from meshwright.execute.ops.site import Local, Moment, Site
from meshwright.execute.proof.counting import expected
from meshwright.execute.ranks.device import Hardware
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.step.actions import forwards_of, parted
from meshwright.execute.step.optimizer import SGD
from meshwright.execute.step.runtime import Runtime
from meshwright.plan.lookup import stage_ops
from meshwright.plan.model import Plan, RecomputeAt

CPU = Hardware(torch.device("cpu"), "gloo")
M = 4


def _model() -> Model:
    return zoo_model("llama-3.1-8b", blocks=4, micro_batches=M)


def _plan(model: Model, layout: Layout, k: int, at: RecomputeAt = "block") -> Plan:
    plan = plan_of(model.graph, layout, M)
    graph, stages = model.graph, tuple(replace(s, keep_last=k, recompute_at=at) for s in plan.stages)
    if at == "stage":  # by their own names, not one block for all
        again = [
            frozenset(
                graph.ops[i].name for i in stage_ops(graph, s) if graph.ops[graph.representative[i]].name in s.recompute
            )
            for s in stages
        ]
        stages = tuple(replace(s, recompute=names) for s, names in zip(stages, again))
    return replace(plan, stages=stages)


LAYOUTS = (
    Layout(pp=2, recompute="full", schedule="gpipe"),
    Layout(pp=2, recompute="full"),
    Layout(pp=2, recompute="full", schedule="zb-h1"),
    Layout(pp=2, recompute="light", schedule="gpipe"),
    Layout(dp=2, zero=3, recompute="full"),
    Layout(tp=2, sequence=True, recompute="full"),
    Layout(tp=2, pp=2, recompute="full", schedule="zb-h1"),
)


@pytest.mark.parametrize("at", ["block", "stage"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_are_those_of_one_process_and_collectives_as_predicted(
    pools: Pools, layout: Layout, at: RecomputeAt
) -> None:
    model = _model()
    result = model.check(_plan(model, layout, 1, at), pools(layout.ranks))
    assert result.equal, result.problems


def test_stages_may_keep_unequal_numbers(pools: Pools) -> None:
    model = _model()
    plan = _plan(model, Layout(pp=2, recompute="full"), 0)
    plan = replace(plan, stages=tuple(replace(s, keep_last=k) for s, k in zip(plan.stages, (3, 1))))
    result = model.check(plan, pools(2))
    assert result.equal, result.problems


def _in_any_block(op: str) -> str:
    return re.sub(r"\.\d+(?=[./])", ".*", op, count=1)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("k", [0, 1, 3, M, M + 1])
def test_an_op_runs_again_for_all_micro_batches_but_the_last(
    monkeypatch: pytest.MonkeyPatch, k: int, split: bool
) -> None:
    model = _model()
    ran: Counter[tuple[str, int]] = (
        Counter()
    )  # equal blocks share what is prepared for the first: by the op in any block
    original = calls.localise

    def localise(site: Site) -> Local:
        call = original(site)

        def counted(operands: list[Tensor], moment: Moment) -> object:
            ran[_in_any_block(site.op.name), int(moment.micro_batch)] += 1
            return call(operands, moment)

        return counted  # type: ignore[return-value]

    monkeypatch.setattr(calls, "localise", localise)
    if split:
        monkeypatch.setattr("meshwright.execute.step.runtime.parted", lambda plan: True)
    plan = _plan(model, Layout(recompute="full"), k)
    program = model.program(plan)
    runtime = Runtime(program, model.graph, plan, model.values, model.constants, SGD(), CPU, Groups())
    runtime.gradients(model.batch)
    segments = program.stages[0].segments
    again = {i.on for s in segments for i in s.rerun if i.kind == "compute"}
    assert len(again) > 50
    want: Counter[tuple[str, int]] = Counter()
    for op in (i.on for s in segments for i in s.forward if i.kind == "compute"):
        for j in range(M):
            want[_in_any_block(op), j] += 1 + (op in again and j < M - k)
    assert ran == want


def test_collectives_between_always_and_never() -> None:
    """Tensor parallelism sums inside of what runs again."""
    model = _model()

    def calls_of(plan: Plan) -> int:
        program = model.program(plan)
        return sum(expected(program, model.graph, forwards_of(plan, program), 0, parted=parted(plan)).values())

    layout = Layout(tp=2, sequence=True, recompute="full")
    found = [calls_of(_plan(model, layout, k)) for k in range(M + 1)]
    assert found[M] == calls_of(_plan(model, replace(layout, recompute="none"), 0))
    steps = {a - b for a, b in pairwise(found)}
    assert len(steps) == 1 and steps.pop() > 0
