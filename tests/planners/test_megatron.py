"""1D tensor parallelism: legal degrees, what they cost, and what decides."""

from __future__ import annotations

from functools import lru_cache

import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cost import Analytic
from meshwright.errors import InputError
from meshwright.graph.ir import Graph
from meshwright.lower import lower
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.planners import Result
from meshwright.planners.megatron import Megatron
from meshwright.simulate.simulator import simulate
from meshwright.testing import PlannerConformance
from reference_cases import reference_cases


class TestMegatronConforms(PlannerConformance):
    planner = "megatron"


BLOCKS = 4


@lru_cache(maxsize=8)
def graph(name: str, heads: int = 12, ffn: int = 768) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(blocks=BLOCKS, width=384, heads=heads, kv_heads=2, ffn=ffn, vocab=1009, seq=128, dropout=0.0)
    return resolve(name).graph(batch=2, seq=128, dtype="bfloat16", shrink=shrink, cache=False)


def planned(planner: Megatron, name: str = "gpt2", cluster: str = "a100x8", batch: int = 24, **limits: float) -> Result:
    problem = Problem(
        graph(name),
        cluster_of(cluster),
        Analytic(),
        Recipe(batch),
        limits=Limits(**limits),  # type: ignore[arg-type]
    )
    return planner.plan(problem)


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "bert-large"])
def test_the_best_of_all_degrees_is_chosen(name: str) -> None:
    """12 heads: 1, 2 and 4 of 8 devices."""
    best = planned(Megatron(), name)
    each = [planned(Megatron(tensor=t), name).objective for t in (1, 2, 4)]
    assert best.objective == min(each)
    assert best.plan is not None
    problem = Problem(graph(name), cluster_of("a100x8"), Analytic(), Recipe(24))
    assert simulate(problem, best.plan).step_seconds == best.objective


TRAFFIC = reference_cases(
    "megatron",
    "Collectives over the tensor axis, per block and micro-batch",
    source="Shoeybi et al., arXiv 1909.08053, figure 4, and Korthikanti et al., arXiv 2205.05198, section 4.2",
    columns=("sequence parallelism", "phase", "all-reduces", "gathers", "scatters"),
    rows=[
        (False, "forward", 2, 0, 0),
        (False, "backward", 2, 0, 0),
        (True, "forward", 0, 2, 2),
        (True, "backward", 0, 2, 2),
    ],
)


def test_a_block_needs_two_all_reduces_each_way() -> None:
    """With sequence parallelism as many scatters and gathers of the same bytes."""
    found = {}
    for sequence in (False, True):
        plan = planned(Megatron(tensor=4, sequence=sequence, micro_batch=12, recompute="none")).plan
        assert plan is not None
        program = lower(graph("gpt2"), plan, Recipe(24))
        run = next(s for s in program.stages[0].segments if s.count == BLOCKS)
        for phase, instrs in (("forward", run.forward), ("backward", run.backward)):
            found[sequence, phase] = [
                (i.collective, i.nbytes) for i in instrs if i.kind == "collective" and i.axes == ("tp",)
            ]
    for phase in ("forward", "backward"):
        plain, cut = found[False, phase], found[True, phase]
        assert {size for _, size in cut} == {size for _, size in plain}
    kinds = ("all_reduce", "all_gather", "reduce_scatter")
    for sequence, phase, *counts in TRAFFIC:
        assert [[kind for kind, _ in found[sequence, phase]].count(k) for k in kinds] == counts
        assert len(found[sequence, phase]) == sum(counts)


def test_an_odd_vocabulary_is_cut_into_unequal_parts() -> None:
    """1,009 words over 4: the loss sums three numbers a token instead of gathering logits."""
    plan = planned(Megatron(tensor=4, sequence=False, micro_batch=12, recompute="none")).plan
    assert plan is not None
    program = lower(graph("gpt2"), plan, Recipe(24))
    last = program.stages[0].segments[-1]
    assert [i.op for i in last.forward if i.kind == "stat" and i.axes == ("tp",)][-3:] == ["max", "sum", "sum"]
    assert not any(i.collective == "all_gather" for i in last.forward)


@pytest.mark.parametrize(
    ("planner", "words"),
    [
        (Megatron(tensor=8), "tensor = 8 does not divide the 12 heads of"),
        (Megatron(tensor=3), "megatron uses tensor × data devices: 8 devices are none with tensor = 3"),
        (Megatron(tensor=4, data=1), "with tensor = 4, data = 1"),
    ],
)
def test_degrees_that_cannot_be_say_why(planner: Megatron, words: str) -> None:
    result = planned(planner)
    assert result.status == "infeasible"
    assert words in result.reason


def test_grouped_heads_divide_or_those_that_share_one() -> None:
    """2 key-value heads, 6 share each: 3 divides the latter, 4 neither."""
    assert planned(Megatron(tensor=3), "llama-3.1-8b", "a100x6").plan is not None
    result = planned(Megatron(tensor=4), "llama-3.1-8b")
    assert "tensor = 4 does not divide the 2 heads, nor the 6 that share each, of" in result.reason


def test_features_that_do_not_divide_say_which() -> None:
    problem = Problem(graph("gpt2", 12, 771), cluster_of("a100x8"), Analytic(), Recipe(24))
    result = Megatron(tensor=4).plan(problem)
    assert "tensor = 4 does not divide the 771 features that" in result.reason


def test_a_batch_that_no_copy_divides_says_so() -> None:
    result = planned(Megatron(tensor=2), batch=6)
    assert "the 4 copies of tensor = 2 on 8 devices do not divide the batch of 6" in result.reason


def test_what_does_not_fit_names_the_nearest_layout() -> None:
    result = planned(Megatron(), memory=2.0**20, keep_free=0.0)
    assert result.status == "infeasible"
    assert "the nearest layout" in result.reason and "over the usable" in result.reason


@pytest.mark.parametrize("wrong", [{"tensor": 0}, {"recompute": "some"}, {"judge": "taste"}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="megatron"):
        Megatron(**wrong)  # type: ignore[arg-type]
