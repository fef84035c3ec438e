"""Parameters that rest cut are gathered together, and what that sends is what the program says."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest

from execute.conftest import Model, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.execute.proof.counting import expected, nbytes
from meshwright.execute.stage.gathers import again, gathers_of, groups_of, without
from meshwright.execute.step.buckets import CAPACITY, joint_axes
from meshwright.lower.program import Program, StageCode
from meshwright.plan.layout import axes_of

MICRO_BATCHES = 2
SCALARS = 64
"""Bytes: what is not larger is a loss or a count."""


def _program(model: Model, layout: Layout) -> Program:
    return model.program(plan_of(model.graph, layout, MICRO_BATCHES))


def _stage(model: Model, layout: Layout) -> StageCode:
    return _program(model, layout).stages[0]


@pytest.mark.parametrize("recompute", ("none", "full"))
def test_each_block_is_gathered_by_one_collective_and_again_in_the_backward(recompute: str) -> None:
    model = zoo_model("llama-3.1-8b", blocks=4)
    code = _stage(model, Layout(dp=2, zero=3, recompute=recompute))
    gathers = gathers_of(code)
    assert {g.param for g in gathers} == {p.name for p in code.params if "dp" in axes_of(p.rest)}
    groups = groups_of(gathers, model.graph, CAPACITY)
    blocks = [g for g in groups if ".layers." in g.members[0].param]
    assert [len(g.members) for g in blocks] == [9] * 4 and len(groups) == len(blocks) + 2
    behind = groups_of(again(gathers, code), model.graph, CAPACITY)
    assert [g.members[0].segment for g in behind] == sorted((g.members[0].segment for g in behind), reverse=True)
    calls = expected(_program(model, Layout(dp=2, zero=3, recompute=recompute)), model.graph, MICRO_BATCHES, 0)
    gathered = sum(n for (kind, _, _), n in calls.items() if kind == "all_gather")
    assert gathered == MICRO_BATCHES * (len(groups) + len(behind))


def test_small_groups_hold_what_large_ones_hold() -> None:
    model = zoo_model("llama-3.1-8b", blocks=4)
    gathers = gathers_of(_stage(model, Layout(dp=2, zero=3)))
    groups = groups_of(gathers, model.graph, 1 << 13)
    assert len(groups) > 6
    assert sorted(g.param for group in groups for g in group.members) == sorted(g.param for g in gathers)
    for group in groups:
        assert len({g.segment for g in group.members}) == 1
        sizes = [prod(model.graph.tensor[g.param].shape) * 4 for g in group.members]
        assert sum(sizes[:-1]) < 1 << 13


def test_a_weight_with_two_ways_to_its_readers_is_gathered_at_each() -> None:
    """GPT-2's token embedding is read by the first op and by the head."""
    code = _stage(zoo_model("gpt2"), Layout(dp=2, zero=3))
    left_out = {p.name for p in code.params} - {g.param for g in gathers_of(code)}
    assert {n for n in left_out if "dp" in axes_of(next(p.rest for p in code.params if p.name == n))} == {
        "transformer.wte.weight"
    }
    segments = without(code, gathers_of(code)).segments
    remaining = {i.on for s in segments for i in s.forward if i.collective == "all_gather"}
    assert remaining == {"transformer.wte.weight"}


LAYOUTS = (
    Layout(dp=2), Layout(dp=2, zero=1), Layout(dp=2, zero=2), Layout(dp=2, zero=3), Layout(dp=2, cp=2),
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_sums_and_gathers_of_parameters_send_the_bytes_of_the_program(layout: Layout) -> None:
    """Nothing is padded where all parts are even. Sums over two axes after each other are one."""
    model = zoo_model("llama-3.1-8b")
    program = _program(model, layout)
    code, params = program.stages[0], {p.name for p in program.stages[0].params}
    wanted = Counter[str]()
    for s in code.segments:
        for i in (*s.forward, *s.rerun, *s.backward):
            if i.kind == "collective" and i.on in params:
                wanted[str(i.collective)] += round(MICRO_BATCHES * i.nbytes)
    for i in code.grads:
        wanted[str(i.collective)] += round(MICRO_BATCHES * i.nbytes)
    for i in code.update:
        if i.kind == "collective":
            wanted[str(i.collective)] += round(i.nbytes)
    if joint_axes(code):
        assert {i.axes for i in code.update if i.collective == "all_reduce"} == {("cp",), ("dp",)}
        wanted["all_reduce"] //= 2
    calls = expected(program, model.graph, MICRO_BATCHES, 0)
    for s in code.segments:
        for i in (*s.forward, *s.rerun, *s.backward):
            if i.kind == "collective" and i.on not in params:
                each = nbytes(i, code, model.graph, code.mesh.coordinates(0))
                wanted[str(i.collective)] += MICRO_BATCHES * each if each > SCALARS else 0
    for kind, size in wanted.items():
        ran = sum(each * n for (k, each, _), n in calls.items() if k == kind and each > SCALARS)
        assert ran == size, kind
