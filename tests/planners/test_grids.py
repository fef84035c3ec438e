"""2D, 2.5D and 3D on whole models: which grids are legal, what is counted, what decides."""

from __future__ import annotations

from functools import lru_cache

import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cost import Analytic
from meshwright.cost.volumes import linear_volume
from meshwright.errors import InputError
from meshwright.graph.ir import Graph
from meshwright.lower import lower
from meshwright.lower.summa import SUMMA
from meshwright.lower.volumes import received
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.plan.validate import validate
from meshwright.planners import Planner
from meshwright.planners.cube_3d import Cube3D
from meshwright.planners.summa_2d import Summa2D
from meshwright.planners.tesseract_2_5d import Tesseract
from meshwright.simulate.simulator import simulate
from meshwright.testing import PlannerConformance, problem_of
from meshwright.testing.linear import linear_graph


class TestSummaConforms(PlannerConformance):
    planner = "summa_2d"


class TestTesseractConforms(PlannerConformance):
    planner = "tesseract_2_5d"


class TestCubeConforms(PlannerConformance):
    planner = "cube_3d"


BLOCKS = 4


@lru_cache(maxsize=8)
def graph(name: str) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(
        blocks=BLOCKS, width=384, heads=12, kv_heads=4, ffn=768, vocab=1009, seq=128, experts=4, dropout=0.0
    )
    return resolve(name).graph(batch=2, seq=128, dtype="bfloat16", shrink=shrink, cache=False)


def problem(name: str, cluster: str = "a100x8", batch: int = 32, **limits: float) -> Problem:
    return Problem(
        graph(name),
        cluster_of(cluster),
        Analytic(),
        Recipe(batch),
        limits=Limits(**limits),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "bert-large"])
@pytest.mark.parametrize("planner", [Summa2D(), Tesseract(), Cube3D()], ids=lambda p: p.info.name)
def test_whole_models_are_planned(planner: Planner, name: str) -> None:
    p = problem(name)
    result = planner.plan(p)
    assert result.plan is not None, result.reason
    validate(p, result.plan)
    assert simulate(p, result.plan).step_seconds == result.objective


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b"])
def test_a_block_receives_what_its_products_receive(name: str) -> None:
    p = problem(name, "a100x4")
    for planner, scheme, devices in ((Summa2D(q=2), "2d", 4), (Cube3D(q=2), "3d", 8)):
        here = p if devices == 4 else problem(name, "a100x8")
        plan = planner.plan(here).plan
        assert plan is not None
        program = lower(here.graph, plan, here.recipe)
        run = next(s for s in program.stages[0].segments if s.count == BLOCKS)
        m = here.recipe.samples // plan.schedule.micro_batches * 128
        ops = [here.graph.ops[i] for i in range(run.first, run.first + run.length)]
        products = [op for op in ops if op.kind in ("linear", "mm", "addmm", "matmul") and len(op.inputs) == 2]
        shapes = [[here.graph.tensor[t].shape[-1] for t in (op.inputs[0], op.outputs[0])] for op in products]
        wanted = sum(linear_volume(scheme, m, *shape, devices).received for shape in shapes)  # type: ignore[arg-type]
        if scheme == "3d":  # operands that several products read are gathered, and their gradients scattered, once
            shared: dict[str, list[int]] = {}
            for op in products:
                shared.setdefault(op.inputs[0], []).append(here.graph.tensor[op.inputs[0]].shape[-1])
            wanted -= sum(2 * 1 / 8 * m * k[0] * (len(k) - 1) for k in shared.values())
        names = {x for op in products for x in (op.name, *op.inputs, *op.outputs)}
        got = received(program, here.graph, 1, names) / BLOCKS
        assert got == pytest.approx(wanted, rel=1e-9), scheme


def test_the_tied_classifier_turns_the_grid_around() -> None:
    """The table rests as the embedding has it; product and loss are cut the other way."""
    plan = Summa2D(q=2).plan(problem("gpt2", "a100x4")).plan
    assert plan is not None
    (head,) = [name for name, x in plan.stages[0].shardings.items() if "lm_head" in name and x.variant == SUMMA]
    cuts = {f: [c.axis for c in own] for f, own in plan.stages[0].shardings[head].cuts.items()}
    assert cuts["n"] == ["row"] and cuts["m0"][-1] == "column"


def test_volume_may_decide() -> None:
    """One linear layer and the scalar of its loss; the step of the judge is another unit."""
    own = problem_of(linear_graph(32, 16, 64), "a100x4", samples=32)
    result = Summa2D(judge="volume", micro_batch=16).plan(own)
    assert result.unit == "element"
    scalars = 2 * (1 + 1) / 2 * 1
    assert result.objective == pytest.approx(1152 + scalars)


def test_deeper_is_as_good_as_more_copies_and_comes_first() -> None:
    found = Tesseract(q=2).plan(problem("gpt2"))
    assert found.plan is not None
    assert dict(zip(found.plan.stages[0].mesh.axes, found.plan.stages[0].mesh.shape))["depth"] == 2
    assert found.objective == Tesseract(q=2, d=1).plan(problem("gpt2")).objective


def test_rows_of_the_grid_are_neighbours() -> None:
    """On nodes of 8, a row of 4 is inside of one: turned around, its broadcasts cross the network and cost more."""
    p = problem("gpt2", "a100x16", 16)
    result = Summa2D(q=4, micro_batch=4, recompute="none").plan(p)
    assert result.plan is not None
    mesh = result.plan.stages[0].mesh
    assert mesh.axes[-1] == "column" and list(mesh.devices)[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("planner", "cluster", "batch", "words"),
    [
        (Summa2D(), "a100x2", 32, "summa_2d needs q² devices, q of 2 or more, or data-parallel copies of such a grid"),
        (Summa2D(data=1), "a100x8", 32, "8 devices are none with data = 1"),
        (Summa2D(q=3), "a100x8", 32, "8 devices are none with q = 3"),
        (Tesseract(q=2, d=2), "a100x4", 32, "tesseract_2_5d needs q² d devices"),
        (Cube3D(), "a100x4", 32, "cube_3d needs q³ devices"),
        (
            Cube3D(),
            "a100x8",
            6,
            "whole sequences are dealt over 4 token groups (3d 2×2×2), which do not divide the batch",
        ),
        (Summa2D(q=8), "h100x64", 64, "q = 8 does not divide the 12 heads of"),
    ],
)
def test_grids_that_cannot_be_say_why(planner: Planner, cluster: str, batch: int, words: str) -> None:
    result = planner.plan(problem("gpt2", cluster, batch))
    assert result.status == "infeasible"
    assert words in result.reason


def test_experts_are_left_to_others() -> None:
    result = Summa2D().plan(problem("mixtral-8x7b"))
    assert "experts have one matrix each" in result.reason


@pytest.mark.parametrize("wrong", [{"q": 0}, {"d": 0}, {"q": 2, "d": 3}, {"judge": "taste"}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="tesseract_2_5d"):
        Tesseract(**wrong)  # type: ignore[arg-type]
