"""`export`, `exporters`, `--for` and `simulate --from`: what a person sees, what scripts get, and that nothing is half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import Command, Done

from meshwright.export.registry import names

GPT2 = ("gpt2", "-c", "a100x8", "--batch", "16", "--seq", "256")


@pytest.fixture
def planned(meshwright: Command) -> Callable[..., str]:
    """A folder with a plan of the degrees that are given."""

    def made(*options: str) -> str:
        done = meshwright("simulate", *GPT2, *options, "-o", "given", "-q")
        assert done.code == 0, done.err
        return "given"

    return made


def last(done: Done) -> str:
    """The error of a command."""
    return done.err.strip().splitlines()[-1]


def test_a_plan_is_written_for_a_trainer_and_read_back(meshwright: Command, planned: Callable[..., str]) -> None:
    folder = planned("--dp", "4", "--tp", "2", "--zero", "1", "--micro-batch", "2")
    done = meshwright("export", folder, "--to", "megatron", "--check", "-q")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "Megatron-LM 0.19.2: exact."
    assert "✓ read back: the same layout" in done.out
    assert any(line.endswith("Wrote given/megatron/") for line in lines)
    script = Path("given/megatron/megatron.sh").read_text()
    assert "--tensor-model-parallel-size 2\n" in script and "--use-distributed-optimizer\n" in script


def test_scripts_get_every_word(meshwright: Command, planned: Callable[..., str]) -> None:
    folder = planned("--dp", "8", "--zero", "1", "--micro-batch", "2")
    value = json.loads(meshwright("export", folder, "--to", "megatron@0.16.1", "--json", "-q").out)
    assert value["schema"] == "meshwright.export/1"
    assert (value["target"]["name"], value["target"]["version"], value["level"]) == ("megatron", "0.16.1", "exact")
    assert value["plan"] == value["as_run"]
    assert {w["word"] for w in value["words"]} >= {"dp", "tp", "zero", "recompute", "schedule", "devices"}
    assert set(value["files"]) == {"megatron.sh"}


def test_what_a_trainer_cannot_say_is_refused_and_nothing_is_written(
    meshwright: Command, planned: Callable[..., str]
) -> None:
    folder = planned("--dp", "4", "--pp", "2", "--schedule", "gpipe", "--micro-batch", "2")
    done = meshwright("export", folder, "--to", "megatron", "-q")
    assert (done.code, done.out) == (2, "")
    assert last(done) == (
        "meshwright: Megatron has no schedule gpipe, only 1F1B and, with several stages a rank, interleaved 1F1B: use "
        "--allow-lossy to write the nearest that it can, or --to meshwright runs the plan as it is"
    )
    assert not Path("given/megatron").exists()
    lossy = meshwright("export", folder, "--to", "megatron", "--allow-lossy", "-q")
    assert lossy.code == 0
    assert lossy.out.startswith("Megatron-LM 0.19.2: refused.  Megatron has no schedule gpipe")
    assert "riced the way Megatron-LM runs it" in lossy.out
    assert Path("given/megatron/megatron.sh").exists()


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("megatorn", 'no exporter "megatorn": did you mean megatron? ("meshwright exporters" tells what each can say)'),
        ("megatron@0.18.0", "megatron@0.18.0: Megatron-LM is known here as 0.19.2, 0.16.1; use megatron@0.16.1"),
    ],
)
def test_unknown_targets_and_versions_name_the_nearest(
    meshwright: Command, planned: Callable[..., str], to: str, sentence: str
) -> None:
    done = meshwright("export", planned("--dp", "8", "--micro-batch", "2"), "--to", to, "-q")
    assert (done.code, last(done)) == (2, f"meshwright: {sentence}")


def test_our_own_runner_takes_the_folder_as_it_is(meshwright: Command, planned: Callable[..., str]) -> None:
    done = meshwright("export", planned("--dp", "8", "--micro-batch", "2"), "--to", "meshwright")
    assert (done.code, done.out) == (0, "given/ is what our own runner takes:  meshwright run given\n")


def test_exporters_are_listed_and_each_has_a_page(meshwright: Command) -> None:
    rows = json.loads(meshwright("exporters", "--json").out)["exporters"]
    assert [r["name"] for r in rows] == list(names())
    for name in names():
        page = meshwright("exporters", name)
        assert page.code == 0 and "versions" in page.out and "needs" in page.out
    assert meshwright("exporters", "megatorn").code == 2


def test_a_search_for_a_trainer_is_written_into_the_problem(meshwright: Command) -> None:
    done = meshwright("plan", *GPT2, "--for", "megatron", "-o", "searched", "-q")
    assert done.code == 0, done.err
    assert 'for = "megatron"' in Path("searched/problem.toml").read_text()
    assert "meshwright export searched --to megatron" in done.out
    value = json.loads(meshwright("export", "searched", "--to", "megatron", "--json", "-q").out)
    assert value["level"] == "exact"
    again = meshwright("plan", "searched/problem.toml", "-o", "searched", "-q", "--json")
    assert json.loads(again.out)["candidates"][0]["layout"] in done.out


ROWS = [
    (
        ("simulate", "gpt2", "-c", "a100x8", "--batch", "20", "--dp", "8", "--for", "megatron"),
        "Megatron-LM 0.19.2 needs a batch that splits over",
    ),
    (
        ("simulate", "gpt2", "-c", "a100x5", "--batch", "20", "--tp", "5", "--for", "megatron"),
        "Megatron-LM 0.19.2 needs tp to divide the 12 heads",
    ),
]


@pytest.mark.parametrize(("command", "begins"), ROWS)
def test_degrees_that_the_trainer_does_not_take_are_refused_with_what_would_do(
    meshwright: Command, command: tuple[str, ...], begins: str
) -> None:
    done = meshwright(*command, "-q")
    assert done.code == 2
    assert last(done).startswith(f"meshwright: {begins}"), done.err
    assert "use " in last(done) and last(done).endswith("(our own runner takes it, unevenly)")


SCRIPT = """#!/bin/bash
torchrun --nproc-per-node 8 pretrain_gpt.py \\
  --num-layers 12 --hidden-size 768 --num-attention-heads 12 --seq-length 256 --max-position-embeddings 1024 \\
  --tensor-model-parallel-size 4 --micro-batch-size 1 --global-batch-size 16 --bf16 \\
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
"""


def test_settings_of_a_trainer_are_priced_and_every_option_has_its_gain(meshwright: Command) -> None:
    Path("train.sh").write_text(SCRIPT)
    value = json.loads(meshwright("simulate", *GPT2, "--from", "train.sh", "--json", "-q", "-o", "theirs").out)
    assert value["trainer"] == "Megatron-LM 0.19.2"
    assert value["candidates"][0]["recompute"] == "full"
    gains = value["gains"]
    assert gains["step_s"] == value["candidates"][0]["step_s"]
    assert gains["changes"][-1]["step_s"] < gains["step_s"]
    changed = {option for c in gains["changes"] for option in c["options"]}
    assert {"--recompute-granularity", "--micro-batch-size"} <= changed
    assert Path("theirs/plan.json").exists()
    shown = meshwright("simulate", *GPT2, "--from", "train.sh", "-q").out
    assert "What Megatron-LM could do on the same machine, one change after the other" in shown
    assert "drop --recompute-granularity" in shown


def test_a_file_of_no_trainer_is_refused(meshwright: Command) -> None:
    Path("notes.txt").write_text("hello\n")
    done = meshwright("simulate", *GPT2, "--from", "notes.txt", "-q")
    assert done.code == 2 and last(done).startswith(
        f"meshwright: no file of {', '.join(names())}: say which with --format"
    )
    missing = meshwright("simulate", *GPT2, "--from", "nothing.sh", "-q")
    assert last(missing) == "meshwright: cannot read nothing.sh: No such file or directory"


def test_two_plans_of_one_problem_differ_by_options(meshwright: Command, planned: Callable[..., str]) -> None:
    planned("--dp", "8", "--micro-batch", "2", "--recompute", "full")
    meshwright("simulate", *GPT2, "--dp", "4", "--tp", "2", "--micro-batch", "2", "-o", "other", "-q")
    value = json.loads(meshwright("show", "given", "--diff", "other", "--json").out)
    changed = {option for c in value["gains"]["changes"] for option in c["options"]}
    assert {"--dp", "--tp", "--recompute"} <= changed
    assert value["gains"]["changes"][-1]["step_s"] == value["plans"][1]["candidate"]["step_s"]


MAXTEXT = """
base_config: base.yml
model_name: llama3.1-8b
ici_fsdp_parallelism: 8
per_device_batch_size: 2
max_target_length: 256
remat_policy: full
"""
TORCHTITAN = """torchtitan.train --parallelism.data_parallel_replicate_degree 8 --parallelism.data_parallel_shard_degree 1 \
  --training.local_batch_size 1 --training.global_batch_size 16 --training.seq_len 256 --activation-checkpoint:none
"""
ACCELERATE = """
distributed_type: FSDP
num_processes: 8
mixed_precision: bf16
fsdp_config:
  fsdp_version: 1
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_activation_checkpointing: true
"""


@pytest.mark.parametrize(
    ("file", "text", "option", "instead"),
    [
        (
            "train.sh",
            SCRIPT.replace("--bf16", "--fp16"),
            "--fp16",
            "computes in float16; priced in bfloat16 (--precision)",
        ),
        ("run.yml", MAXTEXT, "model_name: llama3.1-8b", "priced for gpt2, the model that was asked for"),
    ],
)
def test_another_model_or_precision_than_was_asked_for_is_said(
    meshwright: Command, file: str, text: str, option: str, instead: str
) -> None:
    Path(file).write_text(text)
    value = json.loads(meshwright("simulate", *GPT2, "--from", file, "--json", "-q").out)
    assert value["ignored"][option] == instead


def test_sums_at_every_micro_batch_are_in_the_price_and_the_first_to_go(meshwright: Command) -> None:
    Path("titan.sh").write_text(TORCHTITAN)
    value = json.loads(meshwright("simulate", *GPT2, "--from", "titan.sh", "--json", "-q").out)
    once = json.loads(meshwright("simulate", *GPT2, "--dp", "8", "--micro-batch", "1", "--json", "-q").out)
    assert value["candidates"][0]["step_s"] > once["candidates"][0]["step_s"]
    assert value["gains"]["step_s"] == value["candidates"][0]["step_s"]
    assert value["gains"]["changes"][-1]["step_s"] < value["gains"]["step_s"]


def test_gains_begin_at_what_the_file_has(meshwright: Command) -> None:
    Path("accelerate.yaml").write_text(ACCELERATE)
    value = json.loads(meshwright("simulate", *GPT2, "--from", "accelerate.yaml", "--json", "-q").out)
    changed = {k: v["from"] for c in value["gains"]["changes"] for k, v in c["options"].items()}
    file = {"distributed_type": "FSDP", "num_processes": 8, "fsdp_config.fsdp_activation_checkpointing": True}
    assert changed and all(before in (None, file.get(k)) for k, before in changed.items()), changed
