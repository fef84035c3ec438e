"""accelerate: levels of every row, conditions on both sides, files kept and read back, and settings as people have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from export.drawn import again, drawn, of_row, other, same_as_golden, written
from meshwright.errors import InputError
from meshwright.export.accelerate import Accelerate
from meshwright.export.base import Read
from meshwright.export.outcome import verdict
from meshwright.export.reading import setup_from
from meshwright.export.rows import ROWS, levels
from meshwright.export.setup import Setup
from meshwright.graph.ir import Graph

TARGET = Accelerate()
EXACT = {
    "data parallelism", "ZeRO 3", "ZeRO 3 in groups (hybrid)", "ZeRO 3, gathered once", "tensor + ZeRO 3", "context, by heads", "recompute all",
}  # fmt: skip
CLOSE = {"ZeRO 2, one micro-batch", "ZeRO 2, several micro-batches"}


def test_levels_of_every_row() -> None:
    """Tensor and gathered context parallelism are exact where weights are cut, as FSDP2 cuts them: rows without are refused."""
    wanted = {r.words: "exact" if r.words in EXACT else "close" if r.words in CLOSE else "refused" for r in ROWS}
    assert {words: level for words, (level, _) in levels(TARGET).items()} == wanted
    for row in ("tensor", "context, gathered"):
        assert (
            verdict(TARGET, of_row(row))
            .sentences[0]
            .startswith("accelerate 1.15.0 has no whole copies of weights (z0)")
        )
        assert verdict(TARGET, other(of_row(row), zero=3)).level == "exact"


# ---- conditions

CUT, TENSOR, CONTEXT = of_row("ZeRO 3"), of_row("tensor + ZeRO 3"), other(of_row("context, gathered"), zero=3)
HEADS = of_row("context, by heads")
CASES: dict[str, tuple[Setup, Setup, str]] = {
    "batch splits": (
        CUT,
        other(CUT, samples=1000),
        "a batch that splits over dp 16 × micro-batch 1: 1,000 does not; use 992 or 1,008",
    ),
    "heads over tensor": (
        TENSOR,
        other(TENSOR, facts={"heads": 6}),
        "tp to divide the 6 heads: 4 does not; use 3 or 6",
    ),
    "key-value heads over tensor": (
        TENSOR,
        other(TENSOR, facts={"kv_heads": 2}),
        "tp to divide the 2 key-value heads: 4 does not; use 2",
    ),
    "shards beside copies": (
        other(TENSOR, replicate=2),
        other(TENSOR, replicate=4),
        "dp_shard_size above 1 beside dp_replicate_size 4 and tp 4: the plan has none; use replicate 1",
    ),
    "positions over context": (
        CONTEXT,
        other(CONTEXT, facts={"seq": 68}),
        "positions in a multiple of 2 × cp 4: 68 are not; use 72",
    ),
    "heads over Ulysses": (HEADS, other(HEADS, dp=1, cp=16), "sp to divide the 8 heads: 16 does not; use 8"),
}


@pytest.mark.parametrize("name", [c.name for c in TARGET.conditions() if c.name != "modules with rules"])
def test_a_condition_holds_or_says_what_would(name: str) -> None:
    condition = next(c for c in TARGET.conditions() if c.name == name)
    good, bad, words = CASES[name]
    assert condition.broken(good) == ""
    assert condition.broken(bad) == words


def test_modules_without_rules_are_not_cut(small: Callable[[str], Graph]) -> None:
    """GPT-2's matrices are no linear layers; BERT's code folds its whole width into heads."""
    condition = next(c for c in TARGET.conditions() if c.name == "modules with rules")
    assert condition.broken(TENSOR) == ""
    for family, words in (
        ("gpt2", "transformer.h.*.attn.c_attn: its weight (64×192)"),
        ("bert-large", "attention.self.query: no"),
    ):
        graph = small(family)
        found = Setup(replace(TENSOR.problem, graph=graph), TENSOR.layout, family)
        assert condition.broken(other(found, tp=2)).startswith("rules of transformers for what tp 2 cuts, or tp 1: ")
        assert words in condition.broken(other(found, tp=2))
    assert condition.broken(Setup(TENSOR.problem, TENSOR.layout, "gpt-moe")) == ""
    ours = Setup(TENSOR.problem, TENSOR.layout, "unet")
    assert condition.broken(ours) == "tp 1: unet is no model of transformers, which alone has tensor parallelism here"


def test_other_sentences_of_context() -> None:
    heads = next(c for c in TARGET.conditions() if c.name == "heads over Ulysses")
    wrong = other(HEADS, facts={"kv_heads": 3})
    assert heads.broken(wrong) == "sp to divide the 3 key-value heads, or they sp: 4 and 3 do neither; use 3"
    positions = next(c for c in TARGET.conditions() if c.name == "positions over context")
    assert positions.broken(other(HEADS, facts={"seq": 66})) == "positions in a multiple of cp 4: 66 are not; use 68"
    assert positions.broken(other(HEADS, facts={"seq": 68})) == ""


# ---- files


@pytest.mark.parametrize(
    "row", ["data parallelism", "ZeRO 3 in groups (hybrid)", "tensor + ZeRO 3", "context, by heads", "recompute all"]
)
def test_files_that_are_kept(row: str) -> None:
    found = written(TARGET, of_row(row))
    same_as_golden(found.files, "accelerate/" + row.replace(" ", "_").replace("_+_", "_").replace(",", ""))
    compile(found.files["settings.py"], "settings.py", "exec")


@pytest.mark.parametrize("row", ["ZeRO 1", "experts"])
def test_what_is_written_is_read_back(row: str) -> None:
    seen = set()
    for setup in (s for s in drawn(row, 400, seed=11) if s.stages == 1 or s.point.cp > 1):
        found = written(TARGET, setup)
        seen.add(found.level)
        if found.files:
            assert again(TARGET, found).plan() == found.runs.plan(), setup.point.words()
    assert seen == {"exact", "close", "refused"}


def test_every_option_is_in_a_file() -> None:
    for row in ROWS:
        found = written(TARGET, of_row(row.words))
        text = "\n".join(found.files.values())
        for s in TARGET.said(found.runs) if found.files else ():
            for key in s.options:
                named = {
                    "script.activation_checkpointing": "",
                    "script.dtype": "DTYPE",
                    "deepspeed.zero_optimization.stage": "stage",
                }
                assert named.get(key, key.rpartition(".")[2]) in text, (row.words, key)


def test_gradients_are_cut_after_every_micro_batch_where_they_rest_cut() -> None:
    for row, every in (("ZeRO 3", True), ("data parallelism", False), ("context, by heads", False)):
        assert f"sync_each_batch={every}" in written(TARGET, of_row(row)).files["settings.py"]


def test_types_of_gradients_are_said() -> None:
    def with_types(row: str, **recipe: Any) -> Setup:
        base = of_row(row)
        return replace(base, problem=replace(base.problem, recipe=replace(base.problem.recipe, **recipe)))

    assert "reduce_dtype=torch.float32" in written(TARGET, CUT).files["settings.py"]
    found = written(TARGET, with_types("ZeRO 3", grad_dtype="bfloat16"))
    assert found.level == "exact" and "reduce_dtype=torch.bfloat16" in found.files["settings.py"]
    found = written(TARGET, with_types("data parallelism", grad_dtype="bfloat16"))
    assert found.sentences == ("accelerate 1.15.0 sums gradients in float32 here, not in bfloat16",)
    pure = written(TARGET, with_types("ZeRO 3", param_dtype="bfloat16", grad_dtype="bfloat16"))
    assert (
        "mixed_precision: 'no'" in pure.files["accelerate.yaml"]
        and "DTYPE = torch.bfloat16" in pure.files["settings.py"]
    )
    assert verdict(TARGET, with_types("ZeRO 3", matmul_dtype="fp8")).level == "refused"


def test_other_devices_are_refused() -> None:
    """Tensor parallel groups across machines."""
    (row,) = TENSOR.layout.devices
    turned = tuple(row[4 * (k % 4) + k // 4] for k in range(16))
    found = verdict(TARGET, replace(TENSOR, layout=replace(TENSOR.layout, devices=(turned,))))
    assert found.sentences[0].endswith("the plan has its devices in another order")
    assert found.runs.layout.devices == (row,)


# ---- files as people have them

FSDP2 = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
fsdp_config:
  fsdp_activation_checkpointing: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: false
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_version: 2
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 2
num_processes: 16
parallelism_config:
  parallelism_config_cp_size: 1
  parallelism_config_dp_replicate_size: 2
  parallelism_config_dp_shard_size: 8
  parallelism_config_tp_size: 1
rdzv_backend: static
same_network: true
"""
FSDP1 = """\
distributed_type: FSDP
fsdp_config:
  fsdp_sharding_strategy: HYBRID_SHARD
  fsdp_backward_prefetch: BACKWARD_PRE
  fsdp_auto_wrap_policy: SIZE_BASED_WRAP
  fsdp_min_num_params: 100000000
  fsdp_offload_params: true
num_machines: 2
num_processes: 16
mixed_precision: bf16
"""


def read(text: str, name: str = "config.yaml", **more: str) -> Read:
    return TARGET.read({name: text, **more}, CUT.model, 16)


def test_a_yaml_of_fsdp_2() -> None:
    found = read(FSDP2)
    assert TARGET.recognises(FSDP2)
    setup = setup_from(CUT.problem, TARGET, found)
    p = setup.point
    assert (p.dp, p.replicate, p.zero, p.reshard, p.recompute) == (16, 2, 3, True, "full")
    assert found.lines["replicate"] == "dp_replicate_size: 2"
    assert list(found.ignored) == ["no sync_each_batch"]


def test_a_yaml_of_fsdp_1() -> None:
    found = read(FSDP1)
    p = setup_from(CUT.problem, TARGET, found).point
    assert (p.dp, p.replicate, p.zero, p.reshard) == (16, 2, 3, True)
    assert set(found.ignored) == {"fsdp_auto_wrap_policy: SIZE_BASED_WRAP", "fsdp_offload_params: true"}
    for said, zero, reshard in (
        ("SHARD_GRAD_OP", 3, False),
        ("2", 3, False),
        ("NO_SHARD", 0, True),
        ("FULL_SHARD", 3, True),
    ):
        words = read(FSDP1.replace("HYBRID_SHARD", said)).words
        assert (words["zero"], words["reshard"]) == (zero, reshard)


def test_other_kinds_of_yaml() -> None:
    words = read("distributed_type: MULTI_GPU\nnum_processes: 16\n").words
    assert (words["dp"], words["zero"]) == (16, 0)
    found = read(
        "distributed_type: DEEPSPEED\nnum_processes: 16\ndeepspeed_config:\n  zero_stage: 3\n"
        "  gradient_accumulation_steps: 4\n  offload_optimizer_device: cpu\n"
    )
    assert (found.words["dp"], found.words["zero"]) == (16, 3)
    assert found.ignored == {"offload_optimizer_device: cpu": "priced without offload"}
    words = read(
        "distributed_type: MEGATRON_LM\nnum_processes: 16\nmegatron_lm_config:\n  megatron_lm_tp_degree: 4\n  megatron_lm_pp_degree: 2\n"
        "  megatron_lm_sequence_parallelism: true\n  megatron_lm_use_distributed_optimizer: true\n  megatron_lm_recompute_activations: true\n"
    ).words
    assert [words[w] for w in ("dp", "tp", "pp", "sequence", "zero", "recompute")] == [2, 4, 2, True, 1, "attention"]


def test_calls_of_a_script_have_the_last_word() -> None:
    script = """
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
STEPS = 2 * 2
plugin = GradientAccumulationPlugin(STEPS, sync_each_batch=True)
accelerator = Accelerator(gradient_accumulation_plugin=plugin)
loader = DataLoader(data, batch_size=2, shuffle=True)
model.gradient_checkpointing_enable()
"""
    found = TARGET.read(
        {"config.yaml": FSDP2.replace("checkpointing: true", "checkpointing: false"), "train.py": script}, CUT.model, 16
    )
    setup = setup_from(CUT.problem, TARGET, found)
    assert (setup.layout.samples, setup.point.micro_batch, setup.layout.micro_batches) == (128, 2, 4)
    assert setup.point.recompute == "full"
    assert not found.ignored
    whole = script.replace(", sync_each_batch=True", "")
    assert "no sync_each_batch" in TARGET.read({"config.yaml": FSDP2, "train.py": whole}, CUT.model, 16).ignored


def test_sizes_and_plugins_in_a_script() -> None:
    script = """
config = ParallelismConfig(dp_shard_size=4, cp_size=4, cp_handler=TorchContextParallelConfig(cp_comm_strategy="alltoall"))
fsdp = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=False, activation_checkpointing=True)
accelerator = Accelerator(parallelism_config=config, fsdp_plugin=fsdp, gradient_accumulation_steps=args.steps)
"""
    found = read(script, "train.py")
    assert [found.words[w] for w in ("dp", "cp", "context", "zero", "reshard", "recompute")] == [
        4,
        4,
        "gather",
        3,
        False,
        "full",
    ]
    assert "cp_comm_strategy: alltoall" in found.ignored


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        (FSDP2.replace("reshard_after_forward", "reshard_after_foward"), "did you mean fsdp_reshard_after_forward?", ":10"),
        (FSDP2.replace("mixed_precision", "mixed_precison"), 'ClusterConfig has no "mixed_precison": did you mean mixed_precision?', ":16"),
        (FSDP2.replace("fsdp_version: 2", "fsdp_version: 1"), "parallelism_config needs fsdp_version: 2", ":13"),
        (FSDP2.replace("shard_size: 8", "shard_size: 4"), "sizes multiply to 8, but num_processes is 16", ":22"),
        (FSDP2.replace("shard_size: 8", "shard_size: 1"), "FSDP needs dp_shard_size or cp_size above 1: nothing is left to cut over", ":22"),
        (FSDP2.replace("tp_size: 1", "tp_size: 0"), "parallelism_config.parallelism_config_tp_size: 0 is no whole number", ":23"),
        (FSDP2.replace("cp_size: 1", "cp_size: 2\n  parallelism_config_sp_size: 2"), "cp_size and sp_size exclude each other", ":23"),
        ("distributed_type: FSPD\n", 'no distributed_type "FSPD": did you mean FSDP?', ":1"),
        ("mixed_precision: bf16\n", "no distributed_type", ":1"),
        ("a: [1\n", "not YAML", ":2"),
        ("distributed_type: NO\ndistributed_type: FSDP\n", '"distributed_type" twice, first in line 1', ":2"),
        (FSDP1.replace("HYBRID_SHARD", "FULL_SHARDS"), 'no sharding strategy "FULL_SHARDS": did you mean FULL_SHARD?', ":3"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: /x/ds.json\n", "give /x/ds.json in place of this one", ":3"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_said_with_its_place(text: str, message: str, where: str) -> None:
    with pytest.raises(InputError) as refused:
        read(text)
    assert message in str(refused.value)
    assert refused.value.where == f"config.yaml{where}"


def test_settings_that_are_near_none_are_the_users_own() -> None:
    found = read(FSDP2.replace("debug: false", "my_cluster_name: x"))
    assert found.ignored["my_cluster_name"] == "no setting of accelerate or transformers: taken as the script's own"
    assert found.words["dp"] == 16


def test_settings_of_scripts_that_no_class_has() -> None:
    with pytest.raises(InputError) as refused:
        read("accelerator = Accelerator()\nplugin = GradientAccumulationPlugin(num_step=4)\n", "train.py")
    assert str(refused.value) == 'GradientAccumulationPlugin has no "num_step": did you mean num_steps?'
    assert refused.value.where == "train.py:2"
    with pytest.raises(InputError, match="not Python"):
        read("accelerator = Accelerator(\n", "train.py")
