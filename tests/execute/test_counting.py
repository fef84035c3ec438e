"""Collectives are counted below our code, and a program that promises other ones is found out."""

from __future__ import annotations

from dataclasses import replace

from execute.conftest import Pools, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.execute.proof.verification import check


def test_kind_bytes_and_group_of_each_call_are_counted(pools: Pools) -> None:
    everyone = (0, 1)
    for calls in pools(2).run("execute.jobs:counted", None):
        assert calls == {
            ("all_reduce", 12, everyone): 2,
            ("all_reduce", 16, everyone): 1,
            ("all_gather", 16, everyone): 1,
            ("reduce_scatter", 16, everyone): 1,
            ("all_to_all", 8, everyone): 1,
        }


def test_a_program_that_promises_one_collective_more_is_not_equal(pools: Pools) -> None:
    model = zoo_model("gpt2")
    plan = plan_of(model.graph, Layout(tp=2), len(model.batch))
    program = model.program(plan)
    stage = program.stages[0]
    extra = next(i for s in stage.segments for i in s.forward if i.kind == "collective")
    first = stage.segments[0]
    promised = replace(
        program,
        stages=(replace(stage, segments=(replace(first, forward=(*first.forward, extra)), *stage.segments[1:])),),
    )
    result = check(model.task(plan, program), model.truth, pools(2), promised)
    assert not result.equal
    assert result.problems[0].endswith("predicted, " + result.problems[0].split("predicted, ")[1])
    predicted, ran = result.collectives["all_reduce"]
    assert predicted == ran + len(model.batch)
