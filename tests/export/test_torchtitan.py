"""torchtitan: an answer to every word, every condition on each side, files as they are to be, and there and back."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.export.model import model_of
from meshwright.export.outcome import Exported, answer
from meshwright.export.reading import setup_from
from meshwright.export.registry import load
from meshwright.export.rows import ROWS, levels, setup_of_row
from meshwright.export.said import WORDS
from meshwright.export.setup import Setup, setup_of
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve as source
from meshwright.graph.zoo import Shrink
from meshwright.layouts.expert import expert_of
from meshwright.plan.model import Plan, Schedule
from meshwright.plan.problem import Problem, Recipe
from meshwright.plan.schedules import plain
from meshwright.planners._grid_space import Space
from meshwright.simulate.simulator import simulate

GOLDEN = Path(__file__).parent / "golden" / "torchtitan"
VERSIONS = ("0.3.0", "main")


def row(words: str) -> Setup:
    return setup_of_row(next(r for r in ROWS if r.words == words))


def other(setup: Setup, samples: int = 0, **words: Any) -> Setup:
    """The same in other words, whether or not they fit together."""
    layout = replace(setup.layout, point=replace(setup.point, **words))
    return replace(setup, layout=replace(layout, samples=samples) if samples else layout)


def with_recipe(setup: Setup, **changes: Any) -> Setup:
    return replace(setup, problem=replace(setup.problem, recipe=replace(setup.problem.recipe, **changes)))


@cache
def large() -> Graph:
    """Llama of 32 layers, small in all else: torchtitan's own 8B by its name and depth."""
    shrink = Shrink(32, width=64, heads=8, kv_heads=4, ffn=128, vocab=256, seq=64, dropout=0.0)
    return source("llama-3.1-8b").graph(batch=2, seq=64, dtype="bfloat16", shrink=shrink, cache=False)


def own(model: str, words: str) -> Setup:
    """A row's layout for the model of 32 layers, its stages as even."""
    basis = row(words)
    problem = replace(basis.problem, graph=large())
    space = Space(problem, expert_of(problem.graph), {}, {})
    stages = basis.stages
    parts = [space.units.blocks // stages + (1 if s == 0 else 0) for s in range(stages)]
    parts[-1] = len(space.units) - sum(parts[:-1])
    return setup_of(problem, replace(space.plan(basis.point, parts), schedule=basis.layout.schedule), model)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("words", [r.words for r in ROWS])
def test_every_word_is_answered_and_what_is_not_exact_says_why(words: str, version: str) -> None:
    exporter = load(f"torchtitan@{version}")
    said = list(exporter.said(row(words)))
    assert {s.word for s in said} == set(WORDS)
    for s in said:
        assert s.level == "exact" or s.why
    keys = [key for s in said for key in s.options]
    assert len(keys) == len(set(keys)), "an option is said twice"


LEVELS: Mapping[str, Mapping[str, str]] = {
    "0.3.0": {
        "data parallelism": "close", "ZeRO 1": "refused", "ZeRO 2, one micro-batch": "exact", "ZeRO 2, several micro-batches": "close",
        "ZeRO 3": "exact", "ZeRO 3 in groups (hybrid)": "close", "ZeRO 3, gathered once": "exact", "tensor": "close",
        "tensor + sequence": "close", "tensor + sequence + ZeRO 1": "refused", "tensor + ZeRO 3": "exact", "context, gathered": "close",
        "context, by heads": "refused", "experts": "close", "experts + ZeRO 3": "exact", "recompute all": "close",
    },
    "main": {
        "data parallelism": "exact", "ZeRO 1": "exact", "ZeRO 2, one micro-batch": "exact", "ZeRO 2, several micro-batches": "close",
        "ZeRO 3": "exact", "ZeRO 3 in groups (hybrid)": "close", "ZeRO 3, gathered once": "exact", "tensor": "exact",
        "tensor + sequence": "exact", "tensor + sequence + ZeRO 1": "exact", "tensor + ZeRO 3": "exact", "context, gathered": "close",
        "context, by heads": "close", "experts": "close", "experts + ZeRO 3": "exact", "recompute all": "exact",
    },
}  # fmt: skip
BOTH = {
    "pipeline": "exact", "pipeline + ZeRO 1": "exact", "chunks": "exact", "uneven stages": "exact", "schedule gpipe": "exact",
    "schedule bfs": "exact", "schedule zb-h1": "exact", "schedule zb-v": "exact", "schedule dualpipev": "exact", "a table of one's own": "exact",
    "recompute attention": "close", "recompute first layers": "refused", "recompute light ops": "close",
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_levels(version: str) -> None:
    found = {words: level for words, (level, _) in levels(load(f"torchtitan@{version}")).items()}
    wanted = {**LEVELS[version], **BOTH}
    assert {words: found[words] for words in wanted} == wanted
    assert set(found) == set(wanted)


@pytest.mark.parametrize("version", VERSIONS)
def test_with_one_micro_batch_copies_are_summed_once_so_that_replicas_and_groups_are_exact(version: str) -> None:
    exporter = load(f"torchtitan@{version}")
    for words in ("data parallelism", "ZeRO 3 in groups (hybrid)", "tensor + sequence", "recompute all"):
        setup = row(words)
        one = setup.with_words(micro_batch=setup.point.micro_batch * setup.layout.micro_batches)
        assert one.layout.micro_batches == 1
        assert answer(exporter, one).level == "exact", words


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pipeline_cuts_optimizer_states_whatever_zero_says(version: str) -> None:
    setup = row("pipeline + ZeRO 1")
    for zero in (2, 3):
        found = answer(load(f"torchtitan@{version}"), other(setup, zero=zero))
        assert found.level == "close"
        assert found.runs == setup
        assert f"ZeRO-1, not ZeRO-{zero}" in found.sentences[0]
        own_price, theirs = found.prices()
        assert float(theirs.peak.max()) > float(own_price.peak.max())


def test_what_context_and_experts_cut_anyway_is_priced_so() -> None:
    found = answer(load("torchtitan"), row("context, gathered"))
    assert (found.runs.point.zero, found.runs.point.replicate) == (3, 4)
    found = answer(load("torchtitan"), row("experts"))
    assert (found.runs.point.zero, found.runs.point.replicate) == (3, 4)
    assert found.files["recipe.py"].count("data_parallel_shard_degree=4,") == 1


def test_experts_over_tensor_ranks_are_whole() -> None:
    basis = row("experts + ZeRO 3")
    cut = basis.with_words(dp=2, ep=4, tp=2, sequence=True, whole_experts=False)
    found = answer(load("torchtitan"), cut)
    assert found.level == "close"
    assert "gives whole experts to the 2 ranks of tp" in found.sentences[0]
    assert found.runs.point.whole_experts
    assert "expert_parallel_degree=8," in found.files["recipe.py"]
    assert answer(load("torchtitan"), cut.with_words(whole_experts=True)).level == "exact"


def test_numbers_that_it_does_not_have() -> None:
    basis = row("ZeRO 3")
    for changes, words in (
        ({"grad_dtype": "bfloat16"}, "has no gradients in bfloat16; plan in bfloat16 with gradients in float32"),
        ({"compute_dtype": "float16"}, "has no compute in float16"),
        ({"matmul_dtype": "float8"}, "products in float8, which is a converter of the model"),
        ({"optimizer": "sgd"}, "has no sgd: use adamw or adam"),
    ):
        found = answer(load("torchtitan"), with_recipe(basis, **changes), lossy=True)
        assert found.level == "refused"
        assert words in found.sentences[0]
        assert '"float16"' not in found.files["recipe.py"]
    assert answer(load("torchtitan@main"), with_recipe(basis, grad_dtype="bfloat16")).level == "exact"
    halved = answer(load("torchtitan"), with_recipe(basis, state_bytes=4.0)).files["recipe.py"]
    assert 'config.optimizer.implementation = "fused_opt_states_bf16"' in halved


def test_devices_in_another_order_are_refused() -> None:
    basis = row("tensor + ZeRO 3")
    (rank,) = basis.layout.devices
    turned = replace(basis, layout=replace(basis.layout, devices=(tuple(rank[i % 4 * 4 + i // 4] for i in range(16)),)))
    found = answer(load("torchtitan"), turned, lossy=True)
    assert found.level == "refused"
    assert "counts devices along pp, replicas, cp and tp, tp innermost" in found.sentences[0]
    assert found.runs == basis


def test_the_embedding_or_the_head_may_be_a_stage_alone() -> None:
    basis = row("pipeline")
    assert basis.layout.parts == (3, 2, 2, 3)
    found = answer(load("torchtitan"), replace(basis, layout=replace(basis.layout, parts=(1, 4, 4, 1))))
    assert found.level == "exact"
    assert '["model.embed_tokens", "model.rotary_emb"],' in found.files["recipe.py"]
    assert '["model.norm", "lm_head"],' in found.files["recipe.py"]
    assert check(found)


def test_a_stage_that_ends_between_what_follows_the_layers_is_refused(small: Callable[[str], Graph]) -> None:
    graph = small("unet")
    problem = Problem(graph, resolve("a100x2"), Analytic(precision="bfloat16"), Recipe(samples=4))
    space = Space(problem, expert_of(graph), {}, {})
    point = next(p for p in space.points() if p.pp == 2 and p.chunks == 1)
    assert len(space.units) == 7
    inside = setup_of(problem, space.plan(point, (2, 5)))
    found = answer(load("torchtitan"), inside, lossy=True)
    assert found.level == "refused"
    assert "the plan has a stage that ends in between" in found.sentences[0]
    assert found.runs.layout.parts == (4, 3)


def test_without_a_pipeline_another_order_of_micro_batches_is_close() -> None:
    basis = row("ZeRO 3")
    all_first = replace(
        basis, layout=replace(basis.layout, schedule=Schedule("gpipe", 8), point=replace(basis.point, schedule="gpipe"))
    )
    found = answer(load("torchtitan"), all_first)
    assert (found.level, found.runs) == ("close", basis)


def test_fewer_micro_batches_than_stages_go_by_a_table() -> None:
    setup = row("pipeline").with_words(micro_batch=16)
    assert setup.layout.micro_batches == 2
    found = answer(load("torchtitan"), setup)
    assert found.level == "exact"
    assert found.files["schedule.csv"].splitlines()[3] == "3F0,3B0,3F1,3B1"
    assert check(found)


# Conditions: name -> (setup where it holds, setup where it does not, the sentence)


def cases(small: Callable[[str], Graph]) -> dict[str, tuple[Setup, Setup, str]]:
    tensor, context, experts = row("tensor + ZeRO 3"), row("context, by heads"), row("experts + ZeRO 3")
    pipeline = row("pipeline")
    flat = replace(pipeline, problem=replace(pipeline.problem, graph=small("user-net")))
    tied = replace(pipeline, problem=replace(pipeline.problem, graph=small("gpt2")))
    wide = replace(pipeline.problem, cluster=resolve("a100x16"))
    return {
        "batch splits": (tensor, other(tensor, samples=130), "dp 4 × micro-batch 1: 130 does not; use 128 or 132"),
        "sequence splits": (context, other(context, cp=3), "a multiple of 6 (2 × cp 3): 64 is not; use 60 or 66"),
        "heads over tp": (tensor, other(tensor, tp=8, dp=2), "key-value heads that tp 8 divides: 4 are not; use tp 4"),
        "experts split": (experts, other(experts, ep=3), "ep 3 divides (ep 3 × tp 1): 8 are not; use ep × tp 2"),
        "tied embeddings": (pipeline, tied, "share weights, or a head of its own: the plan has pp 4"),
        "layers for stages": (pipeline, flat, "the model has none, the plan has pp 4; use pp 1"),
        "whole nodes": (replace(pipeline, problem=wide), other(pipeline, dp=3), "12 are not; use 8 or 16"),
        "heads over cp": (context, other(context, tp=2, cp=4), "key-value heads that tp 2 × cp 4 divides for Ulysses: 4 are not"),
        "experts over tp": (other(experts, tp=2), other(experts, ep=1, tp=2), "at least tp 2 where a model has experts: it is 1"),
        "tokens": (tensor, replace(tensor, problem=replace(tensor.problem, graph=small("resnet-50"))), "a model that takes tokens"),
    }  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_every_condition_on_each_side(version: str, small: Callable[[str], Graph]) -> None:
    exporter, known = load(f"torchtitan@{version}"), cases(small)
    conditions = {c.name: c for c in exporter.conditions()}
    assert set(conditions) <= set(known)
    for name, condition in conditions.items():
        fine, broken, words = known[name]
        assert condition.broken(fine) == "", name
        assert words in condition.broken(broken), name
    if version == "main":
        assert set(conditions) == set(known)


def test_a_broken_condition_is_never_written(small: Callable[[str], Graph]) -> None:
    _, broken, words = cases(small)["heads over tp"]
    found = answer(load("torchtitan"), broken, lossy=True)
    assert (found.level, dict(found.files), found.broken) == ("refused", {}, True)
    assert found.sentences[-1].startswith("torchtitan 0.3.0 needs ")
    assert words in found.sentences[-1]


# Files


def check(found: Exported) -> bool:
    """Whether what was written is read back as what runs, at the same price."""
    problem = found.setup.problem
    read = found.exporter.read(found.files, found.setup.model, problem.cluster.count)
    again = setup_from(problem, found.exporter, read, found.setup.name)
    plans: list[Plan] = [replace(p, schedule=plain(p.schedule)) for p in (found.runs.plan(), again.plan())]
    assert plans[0] == plans[1], (found.runs.layout, again.layout)
    first, second = (simulate(problem, p, detail=False) for p in plans)
    return first.step_seconds == second.step_seconds and float(first.peak.max()) == float(second.peak.max())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("words", ["schedule zb-h1", "tensor + ZeRO 3"])
def test_golden_files(words: str, version: str) -> None:
    found = answer(load(f"torchtitan@{version}"), own("llama-3.1-8b", words))
    assert found.level == "exact"
    folder = GOLDEN / version / words.replace(" + ", "_").replace(" ", "_")
    assert sorted(found.files) == sorted(f.name.removesuffix(".txt") for f in folder.iterdir())
    for name, text in found.files.items():
        assert text == (folder / f"{name}.txt").read_text(), name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("words", [r.words for r in ROWS])
def test_what_is_written_is_read_back(words: str, version: str) -> None:
    assert check(answer(load(f"torchtitan@{version}"), row(words), lossy=True))


FAMILIES = ("gpt2", "llama-3.1-8b", "mixtral-8x7b", "t5-large", "resnet-50")
WISHES: Mapping[str, list[int | str | bool]] = {
    "recompute": ["none", "light", "full", "attention", "first:1"], "replicate": [1, 2], "reshard": [True, False],
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_points_drawn_by_seed_go_there_and_back(small: Callable[[str], Graph], family: str, version: str) -> None:
    graph = small(family)
    problem = Problem(graph, resolve("a100x16"), Analytic(precision="bfloat16"), Recipe(samples=64))
    space = Space(problem, expert_of(graph), {}, WISHES)
    rng = random.Random(3)
    points = [p for p in space.points() if p.pp * p.chunks <= space.units.blocks]
    written = 0
    for point in rng.sample(points, 24):
        n, stages = len(space.units), point.pp * point.chunks
        at = [0, *sorted(rng.sample(range(1, n), stages - 1)), n]
        setup = setup_of(problem, space.plan(point, [b - a for a, b in pairwise(at)]))
        found = answer(load(f"torchtitan@{version}"), setup, lossy=True)
        assert found.files or found.broken, point.words()
        written += bool(found.files) and check(found)
    tied, tokens = model_of(graph).tied, model_of(graph).seq > 0
    assert written > (3 if tied else 8) or (not tokens and version == "main")
