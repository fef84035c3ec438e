"""DeepSpeed: levels of every row, conditions on both sides, files kept, read back, and files as people have them."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.drawn import again, drawn, of_row, other, same_as_golden, written
from meshwright.errors import InputError, Unsupported
from meshwright.export._deepspeed_stages import balanced, ends_of, methods, uniform, weights_of
from meshwright.export.deepspeed import DeepSpeed
from meshwright.export.outcome import verdict
from meshwright.export.rows import ROWS, levels
from meshwright.export.setup import Setup

TARGET = DeepSpeed()
REFUSED = {
    "tensor + sequence", "tensor + sequence + ZeRO 1", "context, gathered", "chunks", "uneven stages", "schedule gpipe", "schedule bfs",
    "schedule zb-h1", "schedule zb-v", "schedule dualpipev", "a table of one's own", "recompute attention", "recompute first layers",
    "recompute light ops",
}  # fmt: skip
CLOSE = {"ZeRO 3 in groups (hybrid)", "tensor", "tensor + ZeRO 3"}


def test_levels_of_every_row() -> None:
    wanted = {r.words: "refused" if r.words in REFUSED else "close" if r.words in CLOSE else "exact" for r in ROWS}
    assert {words: level for words, (level, _) in levels(TARGET).items()} == wanted


# ---- conditions

ZERO_1, TENSOR, PIPELINE, EXPERTS = of_row("ZeRO 1"), of_row("tensor"), of_row("pipeline"), of_row("experts")
HEADS = of_row("context, by heads")
CASES: dict[str, tuple[Setup, Setup, str]] = {
    "batch splits": (
        ZERO_1,
        other(ZERO_1, samples=1000),
        "a batch that splits over 16 replicas × micro-batch 1: 1,000 does not; use 992 or 1,008",
    ),
    "ZeRO in a pipeline": (
        other(PIPELINE, zero=1),
        other(PIPELINE, zero=2),
        "ZeRO stage 0 or 1 in a pipeline: it is 2",
    ),
    "pipeline alone": (
        PIPELINE,
        other(PIPELINE, dp=2, tp=2),
        "a pipeline without autotp_size 2: its groups span all stages; use pp 1, or tp 1",
    ),
    "autotp or Ulysses": (
        TENSOR,
        other(TENSOR, dp=2, tp=2, cp=4),
        "autotp or Ulysses, not both: it is tp 2 with cp 4; use tp 1 or cp 1",
    ),
    "Ulysses heads": (
        HEADS,
        other(HEADS, dp=1, cp=16),
        "heads that split over sequence_parallel_size 16: 8 do not; use 8",
    ),
    "Ulysses positions": (
        HEADS,
        other(HEADS, facts={"seq": 1026}),
        "a sequence that splits over sequence_parallel_size 4: 1,026 does not; use 1,024 or 1,028",
    ),
    "autotp key-value heads": (
        TENSOR,
        other(TENSOR, dp=2, tp=8),
        "key-value heads that split over autotp_size 8, or ranks have none: 4 do not; use 4",
    ),
    "experts split": (
        EXPERTS,
        other(EXPERTS, facts={"experts": 6}),
        "experts that split over autoep_size 4: 6 do not; use 3 or 6",
    ),
    "AutoEP with ZeRO 3": (
        other(EXPERTS, zero=3),
        other(EXPERTS, dp=2, ep=4, cp=2, zero=3),
        "ZeRO stage 2 or less where AutoEP meets Ulysses: it is 3 with sequence_parallel_size 2",
    ),
    "stages of a method": (
        PIPELINE,
        other(PIPELINE, counts=(1, 3, 3, 1)),
        "stages that one of its partition methods makes (type, parameters, uniform): none makes 1-3-3-1 layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [c.name for c in TARGET.conditions() if c.name != "autotp fused matrices"])
def test_a_condition_holds_or_says_what_would(name: str) -> None:
    condition = next(c for c in TARGET.conditions() if c.name == name)
    good, bad, words = CASES[name]
    assert condition.broken(good) == ""
    assert condition.broken(bad) == words


def test_fused_matrices_that_are_no_linear_are_not_cut(small: Any) -> None:
    condition = next(c for c in TARGET.conditions() if c.name == "autotp fused matrices")
    assert condition.broken(TENSOR) == ""
    conv = other(TENSOR)
    conv = Setup(_with_graph(TENSOR, small("gpt2")), conv.layout)
    assert condition.broken(conv) == (
        "a Linear where 3 matrices are fused into one: transformer.h.*.attn.c_attn holds input × output (Conv1D); use tp 1"
    )
    assert condition.broken(Setup(conv.problem, ZERO_1.layout)) == ""


def _with_graph(setup: Setup, graph: Any) -> Any:
    return replace(setup.problem, graph=graph)


def test_other_sentences_of_heads() -> None:
    condition = next(c for c in TARGET.conditions() if c.name == "Ulysses heads")
    assert condition.broken(other(HEADS, facts={"kv_heads": 3})) == (
        "key-value heads that sequence_parallel_size 4 divides or that divide it: 3 do neither; use 3"
    )
    assert condition.broken(other(HEADS, facts={"kv_heads": 1})) == ""


# ---- files


@pytest.mark.parametrize("row", ["tensor + ZeRO 3", "pipeline + ZeRO 1", "context, by heads", "experts"])
def test_files_that_are_kept(row: str) -> None:
    found = written(TARGET, of_row(row))
    same_as_golden(found.files, "deepspeed/" + row.replace(" ", "_").replace("_+_", "_").replace(",", ""))
    for name, text in found.files.items():
        if name.endswith(".py"):
            compile(text, name, "exec")


def test_a_tied_model_uses_its_first_entry_again() -> None:
    tied = other(PIPELINE, facts={"tied": True})
    code = TARGET.files(tied)["deepspeed_model.py"]
    compile(code, "deepspeed_model.py", "exec")
    assert code.count("TiedLayerSpec(") == 2
    assert "TiedLayerSpec" not in TARGET.files(PIPELINE)["deepspeed_model.py"]


@pytest.mark.parametrize("row", ["ZeRO 1", "experts"])
def test_what_is_written_is_read_back(row: str) -> None:
    levels_seen = set()
    for setup in drawn(row, 60, seed=8):
        found = written(TARGET, setup)
        levels_seen.add(found.level)
        if not found.files:
            assert found.broken
            continue
        assert again(TARGET, found).layout == found.runs.layout, setup.point.words()
        if found.level == "exact":
            assert found.runs.layout == setup.layout
    assert levels_seen >= {"exact", "refused"}


def test_whole_experts_are_dealt_over_the_ranks_of_both() -> None:
    found = written(TARGET, other(EXPERTS, dp=4, ep=2, tp=2))
    config = json.loads(found.files["ds_config.json"])
    assert found.level == "close"
    assert config["expert_parallel"] == {"enabled": True, "autoep_size": 4, "expert_tensor_parallel_size": 1}
    assert found.runs.point.whole_experts
    own, theirs = found.prices()
    assert own.step_seconds != theirs.step_seconds
    assert again(TARGET, found).layout == found.runs.layout


def test_half_precision_without_zero_is_autocast_so_that_sums_are_float32() -> None:
    whole = json.loads(written(TARGET, of_row("data parallelism")).files["ds_config.json"])
    assert whole["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not whole["bf16"]["enabled"]
    cut = json.loads(written(TARGET, ZERO_1).files["ds_config.json"])
    assert cut["bf16"]["enabled"]
    assert "torch_autocast" not in cut
    assert cut["data_types"] == whole["data_types"] == {"grad_accum_dtype": "fp32"}


# ---- how it deals stages


def test_stages_that_only_parameters_make_are_asked_for_so() -> None:
    setup = other(PIPELINE, counts=(1, 2, 2, 2, 1), dp=3, pp=5, samples=120)
    found = written(TARGET, setup)
    config = json.loads(found.files["ds_config.json"])["pipeline"]
    assert found.level == "exact"
    assert (config["partition"], config["layers"]) == ("parameters", [1, 2, 2, 2, 1])
    assert ends_of(setup) == methods(setup, 5)["parameters"]


def test_weights_of_entries_are_all_parameters() -> None:
    graph = PIPELINE.problem.graph
    weights = weights_of(PIPELINE)
    assert len(weights) == 10
    assert len(set(weights[1:-1])) == 1
    assert sum(weights) == sum(prod(t.shape) for t in graph.tensors if t.role == "param")


def test_a_tied_head_is_the_first_entry_again(small: Any) -> None:
    graph = small("gpt2")
    weights = weights_of(Setup(_with_graph(PIPELINE, graph), PIPELINE.layout))
    assert weights[0] == weights[-1]
    assert sum(weights[:-1]) == sum(prod(t.shape) for t in graph.tensors if t.role == "param")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_ends_of_stages_rise_to_the_last_entry(weights: list[int], stages: int) -> None:
    ends = balanced(tuple(weights), stages)
    assert len(ends) == stages
    assert list(ends) == sorted(ends)
    assert ends[-1] == len(weights)
    assert len(uniform(len(weights), stages)) == stages


# ---- files as people have them


def read(config: dict[str, Any] | str, world: int = 16, code: str = "") -> Any:
    text = config if isinstance(config, str) else json.dumps(config, indent=1)
    return TARGET.read({"zero3.json": text, **({"train.py": code} if code else {})}, ZERO_1.model, world)


def test_auto_is_left_to_what_was_asked_for() -> None:
    found = read({
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_max_reuse_distance": 0}, "bf16": {"enabled": "auto"},
    })  # fmt: skip
    assert "samples" not in found.words
    assert "micro_batch" not in found.words
    assert (found.words["zero"], found.words["reshard"]) == (3, True)
    assert found.lines["zero"] == '"zero_optimization.stage": 3'
    assert set(found.ignored) == {"train_micro_batch_size_per_gpu", "train_batch_size"}


@pytest.mark.parametrize(
    ("batch", "samples", "micro"),
    [
        ({"train_batch_size": 64}, 64, 4),
        ({"train_micro_batch_size_per_gpu": 2}, 32, 2),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}, 64, 2),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 2}, 64, 2),
        ({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 8}, 256, 2),
        ({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 8}, 256, 2),
    ],
)
def test_two_of_three_make_the_batch(batch: dict[str, Any], samples: int, micro: int) -> None:
    found = read(batch)
    assert (found.words["samples"], found.words["micro_batch"]) == (samples, micro)


def test_degrees_and_recompute() -> None:
    found = read(
        {"train_micro_batch_size_per_gpu": 1, "tensor_parallel": {"autotp_size": 4}, "zero_optimization": {"stage": 1}},
        code="model.gradient_checkpointing_enable()\n",
    )
    assert (found.words["tp"], found.words["recompute"], found.words["samples"]) == (4, "full", 4)
    stages = {"stages": 4, "activation_checkpoint_interval": 2}
    piped = read({"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 8, "pipeline": stages})
    assert (piped.words["pp"], piped.words["recompute"], piped.words["samples"]) == (4, "full", 32)
    assert set(piped.ignored) >= {"pipeline.partition", "pipeline.activation_checkpoint_interval"}


def test_what_is_not_priced_is_said() -> None:
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "zero_quantized_gradients": True}
    others = {"activation_checkpointing": {"profile": True}, "cluster_of_ours": "seven"}
    found = read({"train_batch_size": 16, "zero_optimization": offload, **others})
    assert set(found.ignored) == {
        "cluster_of_ours",
        "zero_optimization.offload_optimizer", "zero_optimization.zero_quantized_gradients", "zero_optimization.overlap_comm",
        "activation_checkpointing",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "precision"),
    [
        ({}, "float32"),
        ({"bf16": {"enabled": True}}, "bfloat16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": True}}, "float16"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "float16"),
        ({"bf16": {"enabled": "auto"}}, ""),
    ],
)
def test_the_precision_is_read(section: dict[str, Any], precision: str) -> None:
    assert read({"train_batch_size": 16, **section}).precision == precision


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": ('{"train_batch_size": 8,\n "zero_optimization": }', r"zero3\.json:2: no JSON"),
    "twice": ('{"train_batch_size": 8,\n"train_batch_size": 9}', r'zero3\.json:1: "train_batch_size" stands twice'),
    "unknown": (
        '{"train_batch_size": 8,\n"zero_optimisation": {}}',
        r'zero3\.json:2: DeepSpeed 0\.19\.8 has no setting "zero_optimisation": did you mean "zero_optimization"\?',
    ),
    "unknown inside": (
        '{"train_batch_size": 8,\n"zero_optimization":\n {"stge": 2}}',
        r'zero3\.json:3: .*no setting "zero_optimization\.stge": did you mean "stage"\?',
    ),
    "removed": ('{"train_batch_size": 8, "amp": {}}', r'has no "amp" any more: leave it out'),
    "batch": (
        {"train_batch_size": 100, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2},
        r"train_batch_size 100 is not train_micro_batch_size_per_gpu 2 × gradient_accumulation_steps 2 × 16 replicas",
    ),
    "no batch": ({"zero_optimization": {"stage": 2}}, r'needs "train_batch_size" or "train_micro_batch_size_per_gpu"'),
    "stage": ({"train_batch_size": 16, "zero_optimization": {"stage": 4}}, r"4 must be one of 0, 1, 2, 3"),
    "number": ({"train_batch_size": "many"}, r'"train_batch_size": "many" must be a whole number of at least 1'),
    "layers": ({"train_batch_size": 16, "pipeline": {"stages": 2, "layers": [4]}}, r"must be 2 whole numbers"),
    "experts": (
        {"train_batch_size": 16, "expert_parallel": {"enabled": True, "autoep_size": 2, "expert_tensor_parallel_size": 2}},
        r"takes expert_tensor_parallel_size 1 only, not 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_files_that_cannot_be_right(name: str) -> None:
    config, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        read(config)


def test_experts_across_a_part_of_the_tensor_ranks_are_not_priced() -> None:
    config = {
        "train_batch_size": 16,
        "tensor_parallel": {"autotp_size": 4},
        "expert_parallel": {"enabled": True, "autoep_size": 2},
    }
    with pytest.raises(Unsupported, match="autoep_size 2 with autotp_size 4"):
        read(config)


def test_its_files_are_told_from_others() -> None:
    assert TARGET.recognises('{"zero_optimization": {"stage": 2}}')
    assert TARGET.recognises('  {"train_batch_size": 8,')
    assert not TARGET.recognises('{"hidden_size": 4096}')
    assert not TARGET.recognises("train_batch_size: 8")


def test_the_answer_of_a_broken_condition_has_no_files() -> None:
    found = written(TARGET, other(TENSOR, dp=2, tp=8))
    assert (found.level, dict(found.files)) == ("refused", {})
    assert verdict(TARGET, TENSOR).level == "close"
