"""Megatron-Bridge: the same words as Megatron-LM, every field set; recipes are read without running them, with what they begin from."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from export.megatron_cases import CONDITIONS, DENSE, EXPERTS, LAYERS, drawn, problem, setup
from meshwright.errors import InputError
from meshwright.export._recipe import Unknown, recipe_of, recipes_of
from meshwright.export.base import Read
from meshwright.export.megatron_bridge import FILE, READ, MegatronBridge, base_of, recipes
from meshwright.export.model import model_of
from meshwright.export.outcome import answer
from meshwright.export.reading import setup_from
from meshwright.export.rows import levels
from meshwright.export.said import WORDS

GOLDEN = Path(__file__).with_name("golden") / "megatron_bridge"
BRIDGE = MegatronBridge()
GOLDENS = {
    "stages": setup(dp=2, tp=2, sequence=True, pp=2, chunks=2, counts=(0, 2, 1, 1), schedule="interleaved", zero=1, recompute="first:1"),
    "experts": setup(EXPERTS, dp=2, tp=2, ep=4, sequence=True, whole_experts=True, zero=3, recompute="attention"),
}  # fmt: skip


def read(text: str, model: str = DENSE) -> Read:
    return BRIDGE.read({"recipe.py": text}, model_of(problem(model).graph), 16)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_files(name: str) -> None:
    assert answer(BRIDGE, GOLDENS[name]).files[FILE] == (GOLDEN / f"{name}.py").read_text()


@pytest.mark.parametrize("model", [DENSE, EXPERTS])
def test_what_is_written_is_read_back(model: str) -> None:
    written = 0
    for found in drawn(model, 24, seed=7):
        out = answer(BRIDGE, found, lossy=True)
        assert {s.word for s in out.said} == set(WORDS)
        if not out.files:
            assert out.broken
            continue
        written += 1
        compile(out.files[FILE], FILE, "exec")
        again = setup_from(found.problem, BRIDGE, BRIDGE.read(out.files, found.model, found.world), found.name)
        assert again == out.runs, out.files[FILE]
    assert written > 8


def test_every_file_sets_every_field_that_decides() -> None:
    """Nothing is left to the recipe that it begins with."""
    first: set[str] = set()
    for found in drawn(DENSE, 20, seed=3):
        out = answer(BRIDGE, found, lossy=True)
        if not out.files:
            continue
        fields = {s.path[-1] for s in recipe_of(FILE, out.files[FILE]).sets}
        inherited = {field for own in recipes()["recipes"].values() for field in own} - {"moe_token_dispatcher_type"}
        assert inherited <= fields
        first = first or fields
    assert first


def test_levels_of_the_table() -> None:
    found = {row: level for row, (level, _) in levels(BRIDGE).items()}
    refused = {
        "schedule gpipe", "schedule bfs", "schedule zb-h1", "schedule zb-v", "schedule dualpipev", "a table of one's own",
        "recompute light ops",
    }  # fmt: skip
    assert {row for row, level in found.items() if level == "refused"} == refused
    assert {row for row, level in found.items() if level == "close"} == {"ZeRO 3, gathered once"}


def test_its_own_condition() -> None:
    assert {c.name for c in BRIDGE.conditions()} == {*CONDITIONS, "order with Megatron-FSDP"}
    order = BRIDGE.conditions()[-1]
    outside = tuple(tuple(2 * d + r for d in range(8)) for r in range(2))
    cut, whole = (setup(dp=8, pp=2, zero=zero).with_words(devices=outside) for zero in (3, 1))
    assert order.broken(setup(dp=8, pp=2, zero=3)) == order.broken(whole) == ""
    assert "with Megatron-FSDP (ZeRO 2 and 3)" in order.broken(cut)
    assert answer(BRIDGE, whole).level == "exact" and answer(BRIDGE, cut).level == "refused"


RECIPE = """\
import torch
from megatron.bridge.recipes.llama.llama3 import llama31_8b_pretrain_config as start
from megatron.bridge.training.comm_overlap import CommOverlapConfig

TP = 2
GLOBAL = 8 * 8


def parallel(cfg):
    cfg.model.tensor_model_parallel_size = TP
    cfg.model.pipeline_model_parallel_size = TP * 2
    cfg.model.sequence_parallel = TP > 1


def mine(seq: int = 32):
    cfg = start()
    parallel(cfg)
    cfg.model.context_parallel_size = 1
    cfg.model.seq_length = seq
    cfg.train.global_batch_size, micro = GLOBAL, 1
    cfg.train.global_batch_size = GLOBAL
    cfg.train.micro_batch_size = 1
    cfg.comm_overlap = CommOverlapConfig(tp_comm_overlap=True)
    cfg.mixed_precision = "bf16_with_fp8_current_scaling_mixed"
    cfg.logger.log_interval = 3
    return cfg
"""


def test_a_recipe_with_a_helper_and_what_it_begins_with() -> None:
    found = read(RECIPE)
    assert (found.words["tp"], found.words["pp"], found.words["cp"], found.words["samples"]) == (2, 4, 1, 64)
    assert found.words["zero"] == 1  # of the recipe that it begins with
    assert "cfg.model.sequence_parallel = TP > 1" in found.ignored
    assert "cfg.comm_overlap.tp_comm_overlap = True" in found.ignored
    assert any("fp8" in key for key in found.ignored)
    assert found.lines["tp"] == "cfg.model.tensor_model_parallel_size = TP"
    base = recipes()["recipes"][recipes()["short"]["llama31_8b_pretrain_config"][0]]
    assert base["context_parallel_size"] == 2
    inherits = read(RECIPE.replace("    cfg.model.context_parallel_size = 1\n", ""))
    assert inherits.words["cp"] == 2
    again = setup_from(problem(DENSE), BRIDGE, found, DENSE)
    assert again.layout == setup(dp=2, tp=2, pp=4, zero=1).layout


def test_a_whole_container() -> None:
    text = """\
from megatron.bridge.training.config import ConfigContainer, DistributedDataParallelConfig, TrainingConfig
cfg = ConfigContainer(
    model=Provider(tensor_model_parallel_size=4, pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=1),
    train=TrainingConfig(micro_batch_size=2, global_batch_size=64),
    ddp=DistributedDataParallelConfig(use_megatron_fsdp=True, data_parallel_sharding_strategy="optim_grads"),
    mixed_precision="bf16_mixed",
)
"""
    found = read(text)
    assert (found.words["tp"], found.words["pp"], found.words["zero"]) == (4, 2, 2)
    assert found.words["counts"] == (1, LAYERS - 1)
    assert "cfg.ddp.overlap_grad_reduce (not given)" in found.ignored


def test_one_of_two_sections_is_enough() -> None:
    base = "cfg.train.micro_batch_size = 1\ncfg.train.global_batch_size = 16\n"
    for ddp, optimizer in ((True, False), (False, True), (False, False)):
        text = (
            f"{base}cfg.ddp.use_distributed_optimizer = {ddp}\ncfg.optimizer.use_distributed_optimizer = {optimizer}\n"
        )
        assert read(text).words["zero"] == int(ddp or optimizer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cfg.model.tensor_model_paralel_size = 2", r"recipe\.py:1: Megatron-Bridge 0\.6\.2 has no field model\.tensor_model_paralel_size: did you mean"),
        ("cfg.model.tensor_model_parallel_size = 3", r"16 devices do not split over tp 3"),
        ("x = 1", r"recipe\.py sets no field of Megatron-Bridge"),
        ("cfg.model.x = (", r"recipe\.py:1: not Python"),
        ("def a():\n    c.model.tensor_model_parallel_size = 1\ndef b():\n    c.model.tensor_model_parallel_size = 2", r"holds 2 configurations \(a, b\)"),
        (
            "cfg.model.pipeline_model_parallel_size = 2\ncfg.model.pipeline_model_parallel_layout = 'Ett|ttL'\n"
            "cfg.model.virtual_pipeline_model_parallel_size = 2",
            r"recipe\.py:3: .*the layout has 1 stages a rank",
        ),
        (
            "cfg.model.pipeline_model_parallel_size = 2\ncfg.model.pipeline_model_parallel_layout = 'Ett|ttL'\n"
            "cfg.model.account_for_loss_in_pipeline_split = True",
            r"not together with a layout",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(text)


def test_layouts_as_lists() -> None:
    text = (
        "cfg.model.pipeline_model_parallel_size = 2\n"
        "cfg.model.pipeline_model_parallel_layout = [['embedding', 'decoder']] + [['decoder'] * 3 + ['loss']]\n"
    )
    assert read(text).words["counts"] == (1, 3)


def test_values_that_are_not_plain_are_not_guessed() -> None:
    found = {
        s.path[-1]: s.value
        for s in recipe_of("r.py", "n = f()\ncfg.model.a = n\ncfg.model.b = -2\ncfg.model.c = torch.float32\n").sets
    }
    assert isinstance(found["a"], Unknown) and (found["b"], found["c"]) == (-2, "float32")
    both = recipes_of("r.py", "def a():\n    c.m.x = 1\ndef b():\n    c.m.x = 2\n")
    assert [r.sets[0].value for r in both.values()] == [1, 2]


def test_recipes_by_the_name_of_a_model() -> None:
    assert base_of("llama-3.1-405b") == ("llama31_405b_pretrain_config", "megatron.bridge.recipes.llama.llama3")
    assert base_of("mixtral-8x7b") == ("", "")
    text = answer(BRIDGE, setup(EXPERTS, dp=4, ep=4)).files[FILE]
    assert "def config(recipe):" in text and "__main__" not in text
    ast.parse(text)
    assert set(next(iter(recipes()["recipes"].values()))) - {"moe_token_dispatcher_type"} <= READ | {
        "recompute_modules"
    }


def test_files_are_told_from_others() -> None:
    assert MegatronBridge.recognises(RECIPE) and not MegatronBridge.recognises("--tensor-model-parallel-size 2")
