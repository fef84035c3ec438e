"""Planner gspmd on captured models: recipes, annotations, pipelines, and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path

import pytest

from meshwright.annotation_file import axes_of, read
from meshwright.cluster import resolve
from meshwright.cluster.model import Mesh
from meshwright.cost import Analytic
from meshwright.errors import InputError, Unsupported
from meshwright.graph.ir import Graph
from meshwright.lower import lower
from meshwright.lower.choices import unfoldable
from meshwright.plan.model import Cut, Layout, Plan
from meshwright.plan.problem import Annotation, Problem, Recipe
from meshwright.plan.schedules.clock import timed
from meshwright.plan.schedules.rows import rows
from meshwright.planners import Result
from meshwright.planners.gspmd import GSPMD
from reference_cases import reference_cases

BATCH = 16


@lru_cache(maxsize=4)
def captured(name: str, blocks: int = 4) -> Graph:
    from meshwright.graph.source import resolve as model
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(blocks=blocks, width=64, heads=8, kv_heads=4, ffn=128, vocab=256, seq=32, dropout=0.0)
    return model(name).graph(batch=2, seq=32, dtype="float32", shrink=shrink, cache=False)


def problem(graph: Graph, axes: Mapping[str, int] | None, devices: int = 0, *annotations: Annotation) -> Problem:
    n = devices or prod((axes or {}).values())
    mesh = Mesh(range(prod(axes.values())), tuple(axes), tuple(axes.values())) if axes else None
    return Problem(graph, resolve(f"h100x{n}"), Analytic(), Recipe(BATCH), mesh=mesh, annotations=annotations)


def planned(graph: Graph, axes: Mapping[str, int] | None, devices: int = 0, **options: object) -> tuple[Plan, Problem]:
    p = problem(graph, axes, devices)
    options.setdefault("micro_batches", 1)
    result = GSPMD(**options).plan(p)  # type: ignore[arg-type]
    assert result.plan is not None, result.reason
    return result.plan, p


def block(plan: Plan, p: Problem) -> Counter[tuple[str, str, str]]:
    """(phase, kind, axis) of the collectives of one block, without the gathers that run again for its backward."""
    segment = next(s for s in lower(p.graph, plan, p.recipe).stages[0].segments if s.name not in ("", "constants"))
    found: Counter[tuple[str, str, str]] = Counter()
    for phase, instrs in (("forward", segment.forward), ("backward", segment.backward)):
        found.update(
            (phase, i.kind if i.kind == "stat" else str(i.collective), i.axes[0]) for i in instrs if i.communicates
        )
    return found


BLOCKS = reference_cases(
    "gspmd",
    "Collectives that propagation leaves in a block",
    source="what the recipe's own trainer runs by hand",
    columns=("recipe", "model", "mesh", "forward", "times", "backward", "times"),
    rows=[
        ("megatron", "gpt2", {"x": 2, "y": 4}, "all_reduce", 2, "all_reduce", 2),
        ("megatron", "llama-3.1-8b", {"x": 2, "y": 4}, "all_reduce", 2, "all_reduce", 2),
        ("fsdp", "gpt2", {"x": 4}, "all_gather", 12, "reduce_scatter", 12),
        ("fsdp", "llama-3.1-8b", {"x": 4}, "all_gather", 9, "reduce_scatter", 9),
    ],
)


@pytest.mark.parametrize(("recipe", "name", "mesh", "forward", "ahead", "backward", "back"), BLOCKS)
def test_recipes_need_the_collectives_of_their_trainers(
    recipe: str, name: str, mesh: dict[str, int], forward: str, ahead: int, backward: str, back: int
) -> None:
    """Megatron's: two sums each way; FSDP's: every weight is gathered, every gradient scattered."""
    plan, p = planned(captured(name), mesh, recipe=recipe)
    axis = list(mesh)[-1]
    assert block(plan, p) == {("forward", forward, axis): ahead, ("backward", backward, axis): back}


def test_data_parallelism_sums_gradients_once_a_step() -> None:
    plan, p = planned(captured("gpt2"), {"x": 2, "y": 2}, recipe="dp")
    assert not block(plan, p)
    (code,) = lower(p.graph, plan, p.recipe).stages
    assert all(set(q.deferred) == {"x", "y"} for q in code.params)


def test_the_first_2d_recipe_adds_weight_gathers_to_megatrons_sums() -> None:
    plan, p = planned(captured("llama-3.1-8b"), {"x": 2, "y": 2}, recipe="2d-attempt")
    found = block(plan, p)
    assert found[("forward", "all_reduce", "y")] == found[("backward", "all_reduce", "y")] == 2
    assert found[("forward", "all_gather", "x")] == found[("backward", "reduce_scatter", "x")] == 9
    assert sum(found.values()) == 22


def test_the_final_2d_recipe_gathers_and_scatters_activations() -> None:
    """Besides the weights over x, and the two small sums of each norm, whose features are cut."""
    plan, p = planned(captured("gpt2"), {"x": 2, "y": 2}, recipe="2d")
    found = block(plan, p)
    assert found[("forward", "all_gather", "y")] == found[("forward", "reduce_scatter", "y")] == 2
    assert found[("forward", "stat", "y")] == 4
    held = {t: [c.axis for dim in v.dims for _, cuts in dim for c in cuts] for t, v in plan.stages[0].layouts.items()}
    stream = [t for t in held if t.endswith("mlp.c_proj/mm")]
    assert stream and all(held[t] == ["x", "y"] for t in stream)


def test_experts_are_dispatched_over_all_devices() -> None:
    plan, _ = planned(captured("mixtral-8x7b", 2), {"x": 4}, recipe="moe")
    experts = [
        t for t, s in plan.stages[0].storage.items() if s.param is not None and s.param.dims[0][0][1] == (Cut("x"),)
    ]
    assert experts and all("experts" in t for t in experts)


@pytest.mark.parametrize(("recipe", "shape"), [("dp", (8,)), ("megatron", (1, 8)), ("2d", (1, 8))])
def test_without_a_mesh_all_devices_are_laid_out(recipe: str, shape: tuple[int, ...]) -> None:
    plan, _ = planned(captured("gpt2"), None, 8, recipe=recipe)
    assert plan.stages[0].mesh.shape == shape


def test_blocks_run_again_where_asked() -> None:
    graph = captured("llama-3.1-8b")
    plan, p = planned(graph, {"x": 2, "y": 2}, recipe="megatron", recompute="full")
    segment = next(s for s in lower(graph, plan, p.recipe).stages[0].segments if s.name not in ("", "constants"))
    again = {i.on for i in segment.rerun if i.kind == "compute"}
    assert again < plan.stages[0].recompute and len(again) > 10  # what only the next block reads need not


def test_nothing_annotated_means_data_parallel() -> None:
    graph = captured("gpt2")
    assert planned(graph, {"x": 4})[0] == planned(graph, {"x": 4}, recipe="dp")[0]


def test_the_objective_is_what_is_moved() -> None:
    """Megatron's block: two sums of the activations each way, of 2 · 3/4 of their bytes on each of 8 devices."""
    graph = captured("gpt2")
    whole = [GSPMD(recipe="megatron", micro_batches=m).plan(problem(graph, {"x": 1, "y": 8})) for m in (1, 4)]
    assert whole[0].unit == "byte" and whole[0].objective > 4 * 4 * 2 * 7 / 8 * BATCH * 32 * 64 * 4 * 8
    assert whole[0].objective == pytest.approx(whole[1].objective, rel=0.01)  # however the batch is divided
    assert GSPMD().objective(problem(graph, {"x": 1}), planned(graph, {"x": 1})[0]) == 0.0


def carry(result: Result) -> dict[str, object]:
    assert isinstance(result.carry, dict)
    return result.carry


def test_points_where_tensors_disagree_are_reported() -> None:
    found = carry(GSPMD(recipe="2d", micro_batches=1).plan(problem(captured("gpt2"), {"x": 2, "y": 2})))
    (note,) = found["notes"]  # type: ignore[misc]
    assert note.startswith("the tensors of an op disagree") and "rests [" in note
    assert carry(GSPMD(recipe="megatron").plan(problem(captured("gpt2"), {"x": 2, "y": 2})))["notes"] == []


def test_same_annotations_same_plan() -> None:
    graph = captured("llama-3.1-8b")
    assert planned(graph, {"x": 2, "y": 2}, recipe="2d")[0] == planned(graph, {"x": 2, "y": 2}, recipe="2d")[0]


# ---- annotations of the user

FILE = """
schema = 1
mesh = { x = 2, y = 4 }
[[annotate]]
tensor = "input_ids"
dims = ["x", "_"]
[[annotate]]
tensor = "*.mlp.up_proj.weight"
dims = ["y", "_"]
[[annotate]]
tensor = "*.input_layernorm.weight"
never = ["y"]
"""


def test_one_annotated_weight_shards_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(FILE)
    wishes = read(tmp_path / "s.toml")
    graph = captured("llama-3.1-8b")
    result = GSPMD(micro_batches=1).plan(problem(graph, wishes.axes, 0, *wishes.annotations))
    assert result.plan is not None
    final = carry(result)["final"]
    assert isinstance(final, dict)
    assert final["model.layers.0.mlp.up_proj.weight"] == "[y, _]"
    assert final["model.layers.0.mlp.down_proj.weight"] == "[_, y]"
    assert final["model.layers.0.mlp.gate_proj.weight"] == "[y, _]"
    assert "model.layers.0.self_attn.q_proj.weight" not in final  # nothing leads there
    assert block(result.plan, problem(graph, wishes.axes))[("forward", "all_reduce", "y")] == 1


def test_json_says_the_same(tmp_path: Path) -> None:
    import json
    import tomllib

    (tmp_path / "s.toml").write_text(FILE)
    (tmp_path / "s.json").write_text(json.dumps(tomllib.loads(FILE)))
    assert read(tmp_path / "s.toml") == read(tmp_path / "s.json")


def test_one_block_annotated_alone_is_planned_alone() -> None:
    graph = captured("llama-3.1-8b")
    alone = Annotation("model.layers.2.mlp.up_proj.weight", Layout((((0, (Cut("x"),)),), ((0, ()),))))
    result = GSPMD(micro_batches=1).plan(problem(graph, {"x": 4}, 0, alone))
    assert result.plan is not None
    (stage,) = result.plan.stages
    shards = {t: s.param for t, s in stage.storage.items() if t.endswith("up_proj.weight")}
    cut = [t for t, layout in shards.items() if layout is not None and any(c for d in layout.dims for _, c in d)]
    assert cut == ["model.layers.2.mlp.up_proj.weight"] and len(shards) == 4


def layout(*axes: str) -> Layout:
    return Layout(tuple(((0, tuple(Cut(a) for a in own.split())),) for own in axes))


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        (
            (
                Annotation("*.up_proj.weight", layout("x", ""), where="a.toml: annotate[0]"),
                Annotation("model.layers.1.mlp.up_proj.weight", layout("", "x"), where="a.toml: annotate[1]"),
            ),
            r'"model.layers.1.mlp.up_proj.weight" is annotated twice, as \[x, _\] by a.toml: annotate\[0\] and as \[_, x\] by '
            r"a.toml: annotate\[1\]",
        ),
        ((Annotation("input_idz", layout("x", "")),), 'no tensor "input_idz" in this model: did you mean "input_ids"'),
        ((Annotation("*.nothing", layout("x", "")),), 'no tensor "\\*.nothing" in this model: name a tensor or an op'),
        ((Annotation("input_ids", layout("x")),), '"input_ids": a layout of 1 dims cannot cut a tensor of shape'),
        ((Annotation("input_ids", layout("z", "")),), '"input_ids": no axis "z" in this mesh: it has x, y'),
        ((Annotation("input_ids", layout("x", "x")),), 'axis "x" is used twice'),
        ((Annotation("input_ids", layout("x", ""), never=("x",)),), 'axis "x" cuts it and never may'),
        ((Annotation("input_ids", layout("x", ""), open_dims=(2,)),), "open_dims names a dim"),
        ((Annotation("input_ids", replace(layout("x", ""), partial=("y",))),), "leave partial axes out"),
        ((Annotation("input_ids", layout("x", ""), priority=(0, -1)),), "has one below 0"),
        ((Annotation("input_ids", Layout((((0, (Cut("x", (1, 3)),)),), ((0, ()),)))),), "equal cuts only"),
    ],
)
def test_annotations_that_cannot_be_are_named(notes: tuple[Annotation, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GSPMD(micro_batches=1).plan(problem(captured("llama-3.1-8b"), {"x": 2, "y": 2}, 0, *notes))


def test_an_annotation_against_a_recipe_names_both() -> None:
    note = Annotation("*.up_proj.weight", layout("", "x"), where="a.toml: annotate[0]")
    with pytest.raises(InputError, match=r"by recipe megatron and as \[_, x\] by a.toml: annotate\[0\]"):
        GSPMD(recipe="megatron").plan(problem(captured("llama-3.1-8b"), {"x": 2, "y": 2}, 0, note))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = 1\n", 'no "annotate"'),
        ("schema = 2\n[[annotate]]\ntensor = 'a'\ndims = []\n", "schema = 2"),
        ("schema = 1\n[[annotate]]\ntensor = 'a'\ndim = []\n", 'no field "annotate[0].dim": did you mean "dims"?'),
        ("schema = 1\n[[annotate]]\ntensor = 'a'\n", 'annotate[0] says nothing of "a": give dims, or never'),
        ("schema = 1\n[[annotate]]\ntensor = 'a'\ndims = ['x+']\n", 'annotate[0].dims[0] = "x+"'),
        ("schema = 1\n[[annotate]]\ntensor = 'a'\npriority = [-1]\n", "annotate[0].priority[0] = -1"),
        ("schema = 1\nmesh = { x = 0 }\n[[annotate]]\ntensor = 'a'\ndims = []\n", "mesh.x = 0"),
        ("[[", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InputError) as error:
        read(tmp_path / "s.toml")
    assert message in error.value.message and "s.toml" in error.value.message


@pytest.mark.parametrize("text", ["", "x", "x=0", "x=2,x=4", "2=x", "x=2;y=4"])
def test_a_mesh_is_written_axis_by_axis(text: str) -> None:
    with pytest.raises(InputError, match="--mesh"):
        axes_of(text)
    assert axes_of("x=2, y=4") == {"x": 2, "y": 4}


# ---- pipelines


@pytest.mark.parametrize(("rounds", "name"), [(1, "gpipe"), (2, "interleaved")])
def test_a_pipeline_axis_cuts_the_blocks_into_stages(rounds: int, name: str) -> None:
    graph = captured("llama-3.1-8b", 8)
    plan, _ = planned(graph, {"stage": 4, "y": 2}, recipe="megatron", pipeline="stage", rounds=rounds, micro_batches=8)
    assert plan.schedule.name == name and len(plan.stages) == 4 * rounds
    assert [tuple(s.mesh.devices) for s in plan.stages] == [(0, 1), (2, 3), (4, 5), (6, 7)] * rounds
    blocks = [sum(n.count("layers[") for n in s.ops) for s in plan.stages]
    assert blocks == [1] * (4 * rounds)
    assert all(s.mesh.axes == ("y",) for s in plan.stages)


@pytest.mark.parametrize(("stages", "micro", "rounds"), [(4, 8, 1), (4, 8, 2), (2, 16, 4)])
def test_the_bubble_is_that_of_the_shifting_buffer(stages: int, micro: int, rounds: int) -> None:
    """(L - 1) / (v B + L - 1) for L devices, B micro-batches and v rounds, forward and backward alike."""
    plan, _ = planned(
        captured("llama-3.1-8b", 8), {"stage": stages, "x": 1}, recipe="dp", pipeline="stage", rounds=rounds,
        micro_batches=micro,
    )  # fmt: skip
    table = timed(rows(plan), lengths={"F": 1.0, "B": 1.0}, chunks=rounds)
    span = max(row[-1].end for row in table)
    assert 1 - 2 * micro / span == pytest.approx((stages - 1) / (rounds * micro + stages - 1))


def test_what_a_pipeline_cannot_be_is_said() -> None:
    graph = captured("llama-3.1-8b")
    with pytest.raises(InputError, match='no axis "stage" for the pipeline: the mesh has x'):
        planned(graph, {"x": 4}, pipeline="stage")
    with pytest.raises(
        InputError, match="4 equal blocks do not fall into 8 equal stages: pipeline × rounds may be 2, 4"
    ):
        planned(graph, {"stage": 8, "x": 1}, recipe="dp", pipeline="stage", micro_batches=8)
    with pytest.raises(InputError, match="rounds = 2 go round a pipeline"):
        GSPMD(rounds=2)


# ---- refusals


def test_images_are_cut_in_rows_and_experts_in_experts_only_where_there_are_any() -> None:
    with pytest.raises(InputError, match="this model takes none"):
        planned(captured("gpt2"), {"x": 2}, recipe="spatial")
    with pytest.raises(InputError, match=r"recipe moe cannot cut this model's experts in 4: it can in 1$"):
        planned(captured("gpt2"), {"x": 4}, recipe="moe")


def test_a_mesh_larger_than_what_it_cuts_is_refused() -> None:
    graph = captured("gpt2")
    with pytest.raises(InputError, match="annotations cut the samples in 32, and the batch has 16: use a batch of 32"):
        planned(graph, {"x": 32}, recipe="dp", micro_batches=None)
    with pytest.raises(
        InputError, match="8 micro-batches of the batch of 16 have 2 samples each, which annotations cut in 4"
    ):
        planned(graph, {"x": 4}, recipe="fsdp", micro_batches=8)
    with pytest.raises(
        InputError, match="recipe megatron cannot cut the weights of this model in 512: it can in 1, 2, 4, 8"
    ):
        planned(graph, {"x": 1, "y": 512}, recipe="megatron")
    assert planned(graph, {"x": 4}, recipe="dp", micro_batches=None)[0].schedule.micro_batches == 1


def test_parts_of_an_axis_that_cross_are_refused() -> None:
    graph = captured("gpt2")
    notes = (Annotation("input_ids", layout("x:(1)2", "")), Annotation("transformer.wte.weight", layout("", "x:(1)3")))
    with pytest.raises(Unsupported, match='axis "x" of 6 is used as'):
        GSPMD(micro_batches=1).plan(problem(graph, {"x": 6}, 0, *notes))


def test_micro_batches_divide_the_batch() -> None:
    with pytest.raises(InputError, match="5 micro-batches do not divide the batch of 16"):
        planned(captured("gpt2"), {"x": 2}, micro_batches=5)


def test_folding_is_what_lowering_folds() -> None:
    """A plan of equal blocks says a block once."""
    graph = captured("llama-3.1-8b")
    assert not unfoldable(graph)
    plan, _ = planned(graph, {"x": 2, "y": 2}, recipe="2d")
    assert not any(".layers.1." in t for t in (*plan.stages[0].layouts, *plan.stages[0].shardings))
