"""transformers: levels of every row, rules by module, conditions on both sides, files kept and read back, scripts of people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from export.drawn import again, drawn, of_row, other, same_as_golden, written
from meshwright.errors import InputError
from meshwright.export._hf_modules import BLOCKS, expert_rules, sharding_rules, tensor_rules
from meshwright.export.base import Read
from meshwright.export.outcome import verdict
from meshwright.export.reading import setup_from
from meshwright.export.rows import ROWS, levels
from meshwright.export.setup import Setup
from meshwright.export.transformers import Transformers
from meshwright.graph.ir import Graph
from meshwright.layouts.units import Units

TARGET = Transformers()
EXACT = {"ZeRO 3", "ZeRO 3 in groups (hybrid)", "ZeRO 3, gathered once", "tensor + ZeRO 3", "experts + ZeRO 3"}
CLOSE = {"data parallelism", "ZeRO 2, one micro-batch", "ZeRO 2, several micro-batches", "tensor", "recompute all"}
CUT, TENSOR, EXPERTS = of_row("ZeRO 3"), of_row("tensor + ZeRO 3"), of_row("experts + ZeRO 3")


def test_levels_of_every_row() -> None:
    """Whole copies of weights (z0) are close: groups of one in FSDP2; with experts they are refused."""
    wanted = {r.words: "exact" if r.words in EXACT else "close" if r.words in CLOSE else "refused" for r in ROWS}
    assert {words: level for words, (level, _) in levels(TARGET).items()} == wanted
    assert verdict(TARGET, other(CUT, recompute="full")).level == "exact"


# ---- rules by module


def setup_for(graph: Graph, setup: Setup, **words: object) -> Setup:
    found = Setup(replace(setup.problem, graph=graph), setup.layout)
    return other(found, parts=(len(Units(found.expert.atoms.folded)),), **words)


LLAMA = {
    "model.embed_tokens": "embedding_rowwise", "model.layers.*.self_attn.q_proj": "colwise", "model.layers.*.self_attn.k_proj": "colwise",
    "model.layers.*.self_attn.v_proj": "colwise", "model.layers.*.self_attn.o_proj": "rowwise", "model.layers.*.mlp.gate_proj": "colwise",
    "model.layers.*.mlp.up_proj": "colwise", "model.layers.*.mlp.down_proj": "rowwise", "lm_head": "colwise_vocabulary_loss",
}  # fmt: skip


def test_rules_are_those_of_the_shardings() -> None:
    assert tensor_rules(TENSOR).rules == LLAMA
    assert set(sharding_rules(TENSOR).values()) == {"free_full_weight"}
    kept = other(TENSOR, reshard=False)
    assert set(sharding_rules(kept).values()) == {"keep_full_weight"}
    assert list(sharding_rules(TENSOR)) == ["model.embed_tokens", "model.layers.*", "model.norm", "lm_head"]


@pytest.mark.parametrize("family", ["mixtral-8x7b", "qwen3-235b"])
def test_rules_are_those_that_the_library_has_for_the_model(small: Callable[[str], Graph], family: str) -> None:
    """Our rules of a plan with tp are its own (which none of the models here names otherwise), but for head and experts on tp."""
    configuration = pytest.importorskip("transformers").AutoConfig.for_model(
        {"mixtral-8x7b": "mixtral", "qwen3-235b": "qwen3_moe"}[family]
    )
    known = {f"model.{key}": style for key, style in configuration.base_model_tp_plan.items()}
    setup = setup_for(small(family), TENSOR, tp=2, dp=8)
    rules = {key: style for key, style in tensor_rules(setup).rules.items() if ".layers." in key}
    assert {key: style for key, style in rules.items() if key in known} == {
        k: v for k, v in known.items() if k in rules
    }
    assert rules.keys() <= known.keys()
    assert {key for key in known if key not in rules and "shared" not in key and ".mlp.experts" not in key} <= {
        "model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj", "model.layers.*.mlp.down_proj",
    }  # fmt: skip
    assert expert_rules(setup_for(small(family), EXPERTS, tp=1)) == {
        f"model.{key}": style for key, style in configuration.base_model_ep_plan.items()
    }


def test_a_tied_head_is_one_group_with_its_table(small: Callable[[str], Graph]) -> None:
    rules = sharding_rules(setup_for(small("gpt2"), CUT))
    assert rules["lm_head"] == "keep_full_weight"
    assert rules["transformer.wte"] == rules["transformer.h.*"] == "free_full_weight"


def test_names_of_blocks_are_those_with_rules_in_the_library() -> None:
    """Read from every configuration of the version beside us."""
    package = pytest.importorskip("transformers")
    if package.__version__ != TARGET.versions[0]:
        pytest.skip(f"transformers {package.__version__} is beside us, not {TARGET.versions[0]}")
    import ast
    from pathlib import Path

    named = set()
    for file in Path(package.__file__).parent.glob("models/*/configuration_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            plan = (
                node.value
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "base_model_tp_plan"
                else None
            )
            if isinstance(plan, ast.Dict):
                keys = [k.value for k in plan.keys if isinstance(k, ast.Constant)]
                named |= {".".join(str(key).split(".")[-2:]) for key in keys}
    assert named >= BLOCKS


# ---- conditions

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
    "experts over members": (
        EXPERTS,
        other(EXPERTS, facts={"experts": 6}),
        "ep to divide the 6 experts: 4 does not; use 3 or 6",
    ),
}


@pytest.mark.parametrize("name", [c.name for c in TARGET.conditions() if c.name != "modules with rules"])
def test_a_condition_holds_or_says_what_would(name: str) -> None:
    condition = next(c for c in TARGET.conditions() if c.name == name)
    good, bad, words = CASES[name]
    assert condition.broken(good) == ""
    assert condition.broken(bad) == words


def test_modules_without_rules_are_not_cut(small: Callable[[str], Graph]) -> None:
    condition = next(c for c in TARGET.conditions() if c.name == "modules with rules")
    assert condition.broken(TENSOR) == ""
    latents = setup_for(small("deepseek-v3"), TENSOR, tp=2, dp=8)
    assert "model.layers.*.self_attn.q_b_proj: no model of transformers has a rule" in condition.broken(latents)
    gpt2 = setup_for(small("gpt2"), TENSOR, tp=2, dp=8)
    assert "GPT-2's Conv1D has neither" in condition.broken(gpt2)
    assert condition.broken(other(gpt2, tp=1, dp=16)) == ""


# ---- files


@pytest.mark.parametrize("row", ["ZeRO 3 in groups (hybrid)", "tensor + ZeRO 3", "experts + ZeRO 3"])
def test_files_that_are_kept(row: str) -> None:
    found = written(TARGET, of_row(row))
    same_as_golden(found.files, "transformers/" + row.replace(" ", "_").replace("_+_", "_").replace(",", ""))
    compile(found.files["settings.py"], "settings.py", "exec")


@pytest.mark.parametrize("row", ["ZeRO 1", "experts"])
def test_what_is_written_is_read_back(row: str) -> None:
    seen = set()
    for setup in (s for s in drawn(row, 400, seed=12) if s.stages == 1):
        found = written(TARGET, setup)
        seen.add(found.level)
        if found.files:
            assert again(TARGET, found).plan() == found.runs.plan(), setup.point.words()
    assert seen >= {"close", "refused"}


def test_whole_experts_of_tensor_members_are_told_as_such() -> None:
    both = other(EXPERTS, dp=2, ep=4, tp=2, whole_experts=True)
    text = written(TARGET, both).files["settings.py"]
    assert "ep_size=8" in text and 'experts.gate_up_proj": "grouped_gemm' in text
    cut_inside = verdict(TARGET, other(both, whole_experts=False))
    assert cut_inside.level == "refused" and "cuts each expert over tp 2" in cut_inside.sentences[0]
    assert cut_inside.runs.point.whole_experts


def test_every_option_is_in_a_file() -> None:
    for row in ROWS:
        found = written(TARGET, of_row(row.words))
        text = "\n".join(found.files.values())
        for s in TARGET.said(found.runs) if found.files else ():
            for key in s.options:
                assert key.rpartition(".")[2] in text, (row.words, key)


def test_what_it_cannot_do_is_said() -> None:
    assert verdict(TARGET, of_row("pipeline")).sentences[0] == (
        "transformers 5.24.0 has no pipeline to train with (its pp_size is for generation): the plan has pp 4 (2-2-2-2 layers, schedule 1f1b)"
    )
    assert verdict(TARGET, of_row("context, gathered")).sentences[0].endswith("the plan has cp 4; accelerate has it")
    ours = verdict(TARGET, replace(CUT, name="unet"))
    assert ours.sentences == (
        "transformers 5.24.0 cannot build unet, a module of ours: use --to accelerate, which takes any module",
    )


# ---- scripts of people


def read(text: str) -> Read:
    return TARGET.read({"train.py": text}, CUT.model, 16)


def test_a_script_with_a_distributed_config() -> None:
    script = """
import torch
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.distributed import DistributedConfig
TP = 4
config = DistributedConfig(tp_size=TP, tp_plan="auto", fsdp_size=2, dp_replicate_size=2)
model = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B", distributed_config=config)
args = TrainingArguments(output_dir="out", per_device_train_batch_size=2, gradient_accumulation_steps=16, gradient_checkpointing=True, torch_compile=True)
"""
    found = read(script)
    assert TARGET.recognises(script)
    setup = setup_from(CUT.problem, TARGET, found)
    p = setup.point
    assert (p.dp, p.replicate, p.tp, p.zero, p.reshard, p.micro_batch, p.recompute) == (4, 2, 4, 3, True, 2, "full")
    assert setup.layout.samples == 128
    assert set(found.ignored) == {"tp_plan of the head", "torch_compile=True"}
    assert found.lines["tp"] == "tp_size=4"


COMMAND = """\
export NCCL_DEBUG=WARN
BATCH=4
torchrun --nproc_per_node 8 run_clm.py \\
    --model_name_or_path gpt2 --block_size 1024 --do_train \\
    --per_device_train_batch_size $BATCH \\
    --gradient_accumulation_steps=2 --gradient_checkpointing True \\
    --evaluation_strategy "no" --learning_rate 2e-5 \\
    --bf16 True --fsdp "full_shard auto_wrap" --fsdp_transformer_layer_cls_to_wrap GPT2Block $MORE
"""


def test_a_command_line_with_training_arguments() -> None:
    assert TARGET.recognises(COMMAND)
    found = TARGET.read({"train.sh": COMMAND}, CUT.model, 16)
    words = found.words
    assert (words["dp"], words["zero"], words["reshard"], words["micro_batch"]) == (16, 3, True, 4)
    assert (words["samples"], words["recompute"]) == (4 * 2 * 16, "full")
    assert {"$MORE", "no sync_each_batch"} <= set(found.ignored)
    whole = COMMAND.replace('--fsdp "full_shard auto_wrap"', "").replace("--gradient_checkpointing True", "")
    words = TARGET.read({"train.txt": whole}, CUT.model, 16).words
    assert (words["zero"], words["recompute"]) == (0, "none")


@pytest.mark.parametrize(
    ("old", "new", "message", "line"),
    [
        ("--gradient_checkpointing", "--gradient_chekpointing", "did you mean --gradient_checkpointing?", 6),
        ("--bf16 True", "--deepspeed ds.json", "give ds.json in place of this script", 8),
        ("torchrun", "accelerate launch --config_file a.yaml", "give a.yaml in place of this command", 3),
        ("$BATCH", "none", "a whole number of at least 1", 5),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_command_is_said_with_its_line(old: str, new: str, message: str, line: int) -> None:
    with pytest.raises(InputError) as refused:
        TARGET.read({"train.sh": COMMAND.replace(old, new)}, CUT.model, 16)
    assert message in str(refused.value)
    assert refused.value.where == f"train.sh:{line}"


def test_sizes_that_are_left_out_are_the_librarys() -> None:
    found = read('config = DistributedConfig(tp_plan="auto", fsdp_size=4)\n').words
    assert (found["tp"], found["dp"], found["zero"]) == (4, 4, 3)
    words = read("args = TrainingArguments(output_dir='x', gradient_accumulation_steps=2)\n").words
    assert (words["dp"], words["zero"], words["micro_batch"], words["samples"]) == (16, 0, 8, 256)
    words = read("args = TrainingArguments(fsdp='shard_grad_op auto_wrap')\n").words
    assert (words["zero"], words["reshard"]) == (3, False)


def test_whole_gradients_between_micro_batches_are_told() -> None:
    script = "config = DistributedConfig(fsdp_size=16)\nargs = TrainingArguments(gradient_accumulation_steps=4{})\n"
    assert "no sync_each_batch" in read(script.format("")).ignored
    every = ', accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}}'
    assert "no sync_each_batch" not in read(script.format(every)).ignored


@pytest.mark.parametrize(
    ("script", "message", "line"),
    [
        ("a = 1\nc = DistributedConfig(tp_sizes=2)\n", 'DistributedConfig has no "tp_sizes": did you mean tp_size?', 2),
        ("c = DistributedConfig(tp_size=0)\n", "DistributedConfig(tp_size=0): a whole number of at least 1", 1),
        ("c = DistributedConfig(pp_size=2)\n", "pp_size=2: transformers has pipelines for generation, not for training", 1),
        ("c = DistributedConfig(ep_size=3, tp_size=2)\n", "ep_size=3 is no multiple of tp_size=2", 1),
        ("c = DistributedConfig(ep_size=4, fsdp_size=2)\n", "ep_size=4 does not divide fsdp_size × tp_size = 2", 1),
        ("a = TrainingArguments(\n    deepspeed='ds.json')\n", "give ds.json in place of this script", 2),
        ("c = DistributedConfig(\n", "not Python", 1),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_said_with_its_place(script: str, message: str, line: int) -> None:
    with pytest.raises(InputError) as refused:
        read(script)
    assert message in str(refused.value)
    assert refused.value.where == f"train.py:{line}"


def test_degrees_that_are_not_the_clusters() -> None:
    found = read("c = DistributedConfig(tp_size=4, fsdp_size=2)\n")
    with pytest.raises(InputError) as refused:
        setup_from(CUT.problem, TARGET, found)
    assert "dp 2 × tp 4 = 8 devices, but" in str(refused.value)
