"""MaxText: levels of every row, conditions on both sides, files kept, read back, and settings as people have them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import yaml

from export.drawn import again, drawn, of_row, other, same_as_golden, written
from export.megatron_cases import setup as two_stacks
from meshwright.cluster import resolve
from meshwright.errors import InputError, Unsupported
from meshwright.export._maxtext_names import MESH, mesh_axes, model_name
from meshwright.export.maxtext import MaxText, a_device
from meshwright.export.rows import ROWS, levels
from meshwright.export.setup import Setup

TARGET = MaxText()
REFUSED = {
    "ZeRO 2, one micro-batch", "ZeRO 2, several micro-batches", "context, by heads", "uneven stages", "schedule zb-h1", "schedule zb-v",
    "schedule dualpipev", "a table of one's own", "recompute first layers",
}  # fmt: skip
CLOSE = {
    "ZeRO 3, gathered once", "pipeline", "pipeline + ZeRO 1", "chunks", "schedule gpipe", "schedule bfs", "recompute attention",
    "recompute light ops",
}  # fmt: skip


def test_levels_of_every_row_that_recomputes_all() -> None:
    wanted = {r.words: "refused" if r.words in REFUSED else "close" if r.words in CLOSE else "exact" for r in ROWS}
    assert {words: level for words, (level, _) in levels(TARGET).items()} == wanted


def full(row: str, **words: Any) -> Setup:
    return other(of_row(row), recompute="full", **words)


def test_it_cannot_recompute_nothing() -> None:
    found = written(TARGET, of_row("ZeRO 3"))
    assert found.level == "refused"
    assert found.sentences == (
        "MaxText has no policy that recomputes nothing; the least is minimal_with_context (light)",
    )
    assert found.runs.point.recompute == "light"
    assert settings(found.files)["remat_policy"] == "minimal_with_context"


def settings(files: Any) -> dict[str, Any]:
    found = yaml.safe_load(files["maxtext.yml"])
    assert isinstance(found, dict)
    return found


# ---- conditions

ZERO_3, TENSOR, PIPELINE, EXPERTS = full("ZeRO 3"), full("tensor"), full("pipeline"), full("experts")
GATHER, HEADS, SEQUENCE = full("context, gathered"), full("context, by heads"), full("tensor + sequence")


def on_tpu(setup: Setup, **words: Any) -> Setup:
    return other(replace(setup, problem=replace(setup.problem, cluster=resolve("tpu-v5px16"))), **words)


CASES: dict[str, tuple[Setup, Setup, str]] = {
    "decoder": (
        ZERO_3,
        two_stacks("t5-large"),
        "a decoder: one stack of layers with attention between an embedding and a head; this model has 2 stacks of layers",
    ),
    "batch splits": (
        ZERO_3,
        other(ZERO_3, samples=1000),
        "a batch that splits over 16 replicas × micro-batch 1: 1,000 does not; use 992 or 1,008",
    ),
    "layers split": (
        PIPELINE,
        other(PIPELINE, dp=5, pp=3),
        "layers that split over 3 stages × 1 repeats: 8 do not; use 2 or 4 stages in all",
    ),
    "pipeline micro-batches": (
        PIPELINE,
        other(PIPELINE, samples=4 * 30),
        "micro-batches of a step that split over 4 stages: 30 do not; use 28 or 32",
    ),
    "heads split": (
        TENSOR,
        other(TENSOR, dp=2, tp=8),
        "key-value heads that split over tensor parallelism 8: 4 do not; use 4",
    ),
    "vocabulary splits": (
        TENSOR,
        other(TENSOR, facts={"vocabulary": 50257}),
        "a vocabulary that splits over tensor parallelism 4: 50,257 does not; use 50,256 or 50,260",
    ),
    "positions split": (
        SEQUENCE,
        other(SEQUENCE, facts={"seq": 1026}),
        "a sequence that splits over 4 ranks (context, sequence): 1,026 does not; use 1,024 or 1,028",
    ),
    "Ulysses heads": (
        HEADS,
        other(HEADS, dp=2, cp=8),
        "key-value heads that split over context 8 × tensor 1 (ulysses): 4 do not; use 4 in all",
    ),
    "Ulysses on TPU": (
        on_tpu(HEADS),
        HEADS,
        "TPUs for context_parallel_strategy=ulysses: h100x16 has none; use all_gather (context gather)",
    ),
    "experts split": (
        EXPERTS,
        other(EXPERTS, facts={"experts": 6}),
        "experts that split over expert parallelism 4: 6 do not; use 3 or 6",
    ),
}


@pytest.mark.parametrize("name", [c.name for c in TARGET.conditions()])
def test_a_condition_holds_or_says_what_would(name: str) -> None:
    condition = next(c for c in TARGET.conditions() if c.name == name)
    good, bad, words = CASES[name]
    assert condition.broken(good) == ""
    assert condition.broken(bad) == words


def test_ulysses_wants_more_than_one_key_value_head() -> None:
    condition = next(c for c in TARGET.conditions() if c.name == "Ulysses heads")
    assert condition.broken(other(HEADS, facts={"kv_heads": 1})) == (
        "more than one key-value head for context_parallel_strategy=ulysses: use all_gather (context gather)"
    )
    assert condition.broken(GATHER) == ""


def test_heads_are_exchanged_on_tpus() -> None:
    found = written(TARGET, on_tpu(HEADS))
    assert found.level == "exact"
    assert settings(found.files)["context_parallel_strategy"] == "ulysses"
    assert settings(found.files)["hardware"] == "tpu"


# ---- files


@pytest.mark.parametrize("row", ["tensor + ZeRO 3", "chunks", "context, gathered", "experts"])
def test_files_that_are_kept(row: str) -> None:
    found = written(TARGET, full(row))
    same_as_golden(found.files, "maxtext/" + row.replace(" ", "_").replace("_+_", "_").replace(",", ""))


@pytest.mark.parametrize("row", ["ZeRO 1", "experts"])
def test_what_is_written_is_read_back(row: str) -> None:
    seen = set()
    for setup in drawn(row, 60, seed=9):
        found = written(TARGET, setup)
        seen.add(found.level)
        if not found.files:
            assert found.broken
            continue
        assert again(TARGET, found).layout == found.runs.layout, setup.point.words()
    assert seen >= {"exact", "close", "refused"}


def test_any_order_of_axes_is_an_order_of_its_mesh() -> None:
    base = other(EXPERTS, dp=2, ep=2, tp=4)
    found = written(TARGET, base)
    axes = [a for a in settings(found.files)["mesh_axes"] if a in ("data", "expert", "tensor")]
    assert axes == ["data", "expert", "tensor"]
    assert again(TARGET, found).layout == found.runs.layout
    grid = [d for t in range(4) for d in range(t, 16, 4)]  # tensor outermost
    turned = replace(base, layout=replace(base.layout, devices=(tuple(grid[4 * (d % 4) + d // 4] for d in range(16)),)))
    assert written(TARGET, turned).level == "exact"
    odd = replace(base, layout=replace(base.layout, devices=(tuple(random.Random(1).sample(range(16), 16)),)))
    refused = written(TARGET, odd)
    assert refused.level == "refused"
    assert refused.sentences[0].startswith("MaxText lays devices out along the axes of its mesh")
    assert refused.runs == odd


def test_axes_that_are_not_named_stay_in_their_places() -> None:
    assert mesh_axes(["stage", "data"]) == list(MESH)
    turned = mesh_axes(["expert", "tensor"])
    assert sorted(turned) == sorted(MESH)
    assert [a for a in turned if a not in ("expert", "tensor")] == [a for a in MESH if a not in ("expert", "tensor")]
    assert turned.index("expert") == MESH.index("tensor")


@pytest.mark.parametrize("world", [1, 3, 6, 7, 24, 48, 96, 1000, 6144])
def test_a_batch_is_not_lost_to_rounding(world: int) -> None:
    for samples in range(1, 3 * world, max(1, world // 50)):
        assert int(world * a_device(samples, world)) == samples


def test_names_of_models() -> None:
    assert model_name("llama-3.1-8b") == "llama3.1-8b"
    assert model_name("Mixtral-8x7B") == "mixtral-8x7b"
    assert model_name("gpt2") == ""


def test_other_models_are_refused() -> None:
    found = written(TARGET, other(ZERO_3, facts={"heads": 0}))
    assert (found.level, found.sentences[0].partition(":")[0]) == ("refused", "MaxText builds decoders")


def test_weights_are_whole_where_the_plan_has_them_whole() -> None:
    launch = written(TARGET, full("context, gathered")).files["launch.sh"]
    assert "[embed, [fsdp, fsdp_transpose]]" in launch
    assert "logical_axis_rules" not in written(TARGET, full("context, gathered", zero=3)).files["launch.sh"]
    assert "[activation_embed, []]" in written(TARGET, TENSOR).files["launch.sh"]
    assert "activation_embed" not in written(TARGET, SEQUENCE).files["launch.sh"]


# ---- settings as people have them

COMMAND = """\
# eight nodes
python3 -m maxtext.trainers.pre_train.train maxtext/configs/base.yml model_name=llama3.1-8b \\
  run_name=$RUN dcn_data_parallelism=2 ici_fsdp_parallelism=-1 \\
  ici_tensor_parallelism=2 per_device_batch_size=4 remat_policy=minimal_with_context \\
  steps=100 attention=flash
"""


def read(text: str, world: int = 16, name: str = "run.sh") -> Any:
    return TARGET.read({name: text}, ZERO_3.model, world)


def test_a_command_with_sizes_left_open() -> None:
    found = read(COMMAND)
    words = {
        k: found.words[k]
        for k in ("dp", "replicate", "zero", "tp", "sequence", "pp", "samples", "micro_batch", "recompute")
    }
    assert words == {
        "dp": 8, "replicate": 2, "zero": 3, "tp": 2, "sequence": False, "pp": 1, "samples": 64, "micro_batch": 8, "recompute": "light",
    }  # fmt: skip
    assert found.words["order"] == ("pp", "dpr", "dp", "cp", "tp", "ep")
    assert found.ignored == {
        "logical_axis_rules: activation_embed": "features are whole between products, not cut over tensor"
    }
    assert found.lines["recompute"] == "remat_policy: minimal_with_context"


def test_defaults_of_base_yml() -> None:
    found = read("base_config: base.yml\nsteps: 10\n", name="mine.yml")
    assert {k: found.words[k] for k in ("dp", "zero", "samples", "micro_batch", "recompute")} == {
        "dp": 16, "zero": 3, "samples": 192, "micro_batch": 12, "recompute": "full",
    }  # fmt: skip


def test_pipelines_and_experts() -> None:
    text = (
        "base_config: base.yml\nici_pipeline_parallelism: 2\nici_fsdp_parallelism: 1\nici_data_parallelism: 2\n"
        "ici_expert_parallelism: 4\ndcn_data_parallelism: 1\nper_device_batch_size: 2\nnum_pipeline_microbatches: 4\n"
        "num_layers_per_pipeline_stage: 2\n"
    )
    found = read(text, name="mine.yml")
    words = {k: found.words[k] for k in ("dp", "ep", "zero", "pp", "chunks", "schedule", "samples", "micro_batch")}
    assert words == {
        "dp": 8, "ep": 4, "zero": 0, "pp": 2, "chunks": 2, "schedule": "bfs", "samples": 32, "micro_batch": 1,
    }  # fmt: skip
    assert set(found.ignored) == {"logical_axis_rules: embed"}


@pytest.mark.parametrize(
    ("setting", "ignored"),
    [
        ("quantization=fp8", "quantization"),
        ("cluster_of_ours=seven", "cluster_of_ours"),
        ("optimizer_memory_host_offload=true", "optimizer_memory_host_offload"),
        ("ici_context_parallelism=2", "context_parallel_load_balance"),
        ("ici_context_parallelism=2 context_parallel_strategy=ring", "context_parallel_strategy"),
        ("remat_policy=save_qkv_proj", "remat_policy"),
        ("max_target_length=4096", "max_target_length"),
        ("ici_fsdp_transpose_parallelism=2", "ici_fsdp_transpose_parallelism"),
        ("num_slices=2 dcn_data_parallelism=1 dcn_fsdp_parallelism=2 ici_data_parallelism=2", "dcn_fsdp_parallelism"),
    ],
)
def test_what_is_not_priced_is_said(setting: str, ignored: str) -> None:
    assert ignored in read(f"python3 -m maxtext.trainers.pre_train.train base.yml {setting}").ignored


WRONG = {
    "unknown": (
        "ici_fdsp_parallelism=4",
        r'run\.sh:1: .* no setting "ici_fdsp_parallelism": did you mean "ici_fsdp_parallelism"\?',
    ),
    "two open": ("ici_data_parallelism=-1", "ici_data_parallelism and ici_fsdp_parallelism are both -1: one can be"),
    "product": ("ici_fsdp_parallelism=4", "ici sizes multiply to 4, but there are 16 devices of a slice"),
    "divide": ("ici_tensor_parallelism=3", "ici sizes multiply to 3, but there are 16 devices of a slice"),
    "slices": ("num_slices=3", "3 slices do not divide 16 devices"),
    "layers": ("ici_pipeline_parallelism=2 num_layers_per_pipeline_stage=3", "is not 8 layers"),
    "batch": ("per_device_batch_size=0.3", "are 4 samples, which do not split over 16 replicas"),
    "policy": ("remat_policy=most", "remat_policy: most must be one of full, minimal"),
    "strategy": (
        "ici_context_parallelism=2 context_parallel_strategy=rings",
        "rings must be one of all_gather, ring, ulysses, usp",
    ),
    "number": ("ici_tensor_parallelism=two", "ici_tensor_parallelism: two must be a whole number"),
    "mesh": ("mesh_axes=[data,model]", "mesh_axes must be a list of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be_right(name: str) -> None:
    setting, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        read(f"python3 -m maxtext.trainers.pre_train.train base.yml {setting}")


def test_what_no_plan_has_is_not_priced() -> None:
    with pytest.raises(Unsupported, match="diloco 2"):
        read(
            "python3 -m maxtext.trainers.pre_train.train base.yml num_slices=2 dcn_diloco_parallelism=2 dcn_data_parallelism=1"
        )


def test_its_files_are_told_from_others() -> None:
    assert TARGET.recognises(COMMAND)
    assert TARGET.recognises("base_config: base.yml\n")
    assert TARGET.recognises("run: 1\nici_fsdp_parallelism: 4\n")
    assert not TARGET.recognises("distributed_type: FSDP\n")
    with pytest.raises(InputError, match="not YAML") as wrong:
        read("a: 1\nb: [1,\n", name="mine.yml")
    assert wrong.value.where == "mine.yml:3"


@pytest.mark.parametrize(
    ("theirs", "ours"), [("llama3.1-8b", "llama3.1-8b"), ("deepseek3-671b", "deepseek-v3"), ("default", "")]
)
def test_the_model_and_the_precision_are_read(theirs: str, ours: str) -> None:
    found = read(
        f"model_name: {theirs}\nici_fsdp_parallelism: 16\nper_device_batch_size: 1\ndtype: float32\n", name="run.yml"
    )
    assert (found.model, found.precision) == (ours, "float32")
    assert model_name(ours) == (theirs if ours else "")
