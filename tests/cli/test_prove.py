"""`verify`, `run`, `check`, `validate` from the command line, and the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import Command

SMALL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def planned(meshwright: Command, tmp_path: Path) -> str:
    """A small model planned for two processes of this machine."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    done = meshwright(
        "plan",
        "config.json",
        "-c",
        "localx2",
        "--batch",
        "4",
        "--seq",
        "32",
        "--precision",
        "fp32",
        "-o",
        "small",
        "-q",
    )
    assert done.code == 0, done.err
    return "small"


def test_verify_says_what_was_compared(meshwright: Command, planned: str) -> None:
    done = meshwright("verify", planned, "-q", "--full-size")
    lines = done.out.splitlines()
    assert done.code == 0, done.err
    assert [line.split()[0] for line in lines[1:4]] == ["loss", "gradients", "collectives"]
    assert lines[-1].startswith("✓ the plan computes what one device computes")


def test_run_trains_and_resumes_from_its_checkpoint(meshwright: Command, planned: str) -> None:
    first = json.loads(meshwright("run", planned, "--steps", "3", "-q", "--json").out)
    assert (first["ranks"], first["checkpoint"]) == (2, "run/step-3")
    more = json.loads(meshwright("run", planned, "--steps", "2", "--resume", "run/step-3", "-q", "--json").out)
    whole = json.loads(meshwright("run", planned, "--steps", "5", "-q", "--json", "-o", "whole").out)
    assert [s["step"] for s in more["steps"]] == [4, 5]
    assert [s["loss"] for s in more["steps"]] == pytest.approx([s["loss"] for s in whole["steps"][3:]], rel=1e-6)


def test_run_sets_the_measured_step_beside_the_predicted_one_and_exports_the_weights(
    meshwright: Command, planned: str, tmp_path: Path
) -> None:
    done = meshwright("run", planned, "--steps", "4", "-q", "--export", "small.safetensors")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["step", str(k)] for k in range(1, 5)]
    assert any(line.startswith("They part most where ") and "mean of 3 steps" in line for line in lines)
    assert "Wrote small.safetensors   weights under the names of the model" in lines
    from safetensors import safe_open

    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        names = set(file.keys())
        assert tuple(file.get_slice("model.layers.1.mlp.up_proj.weight").get_shape()) == (96, 64)
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= names


def test_an_export_that_cannot_be_written_is_said_before_a_process_starts(
    meshwright: Command, planned: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for path, why in (("folder", "Is a directory"), ("config.json/w.safetensors", "File exists")):
        done = meshwright("run", planned, "--steps", "1", "-q", "--export", path)
        assert (done.code, done.err) == (2, f"meshwright: {path}: {why}\n")
    assert not (tmp_path / "run").exists() and not list(tmp_path.rglob("*.part"))


def test_a_plan_for_more_devices_than_a_machine_starts_is_refused(meshwright: Command, tmp_path: Path) -> None:
    assert meshwright("plan", "gpt2", "-c", "h100x128", "--batch", "128", "--seq", "64", "-q").code == 0
    done = meshwright("run", "gpt2-h100x128", "-q")
    assert done.code == 2
    assert done.err.startswith(
        "meshwright: gpt2 under a plan for h100x128 needs 1.9 GiB of state on 128 devices and this machine has "
    )
    assert done.err.endswith(
        "verify it here, and on the cluster start it with torchrun --nnodes 16 --nproc-per-node 8 --rdzv-backend c10d "
        "--rdzv-endpoint HOST:29400 --rdzv-id meshwright -m meshwright run gpt2-h100x128\n"
    )


def test_run_writes_a_slurm_script_for_the_machines_of_the_plan(meshwright: Command, tmp_path: Path) -> None:
    assert (
        meshwright("plan", "gpt2", "-c", "h100x16", "--batch", "32", "--seq", "64", "-q", "-o", "my-1.5-model").code
        == 0
    )
    done = meshwright("run", "my-1.5-model", "--steps", "7", "--slurm", "job.sh", "-q")
    assert done.code == 0, done.err
    line = (
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint {}:29400 --rdzv-id meshwright "
        "-m meshwright run my-1.5-model --steps 7 --out run"
    )
    assert done.out == (
        f"Wrote job.sh   sbatch job.sh\nOn each of 2 machines: {line.format('HOST')}   HOST = any one of them\n"
    )
    script = (tmp_path / "job.sh").read_text()
    assert script.splitlines()[-1] == f"srun --kill-on-bad-exit=1 {line.format('$head')}"
    options = {"--nodes=2", "--gpus-per-node=8", "--ntasks-per-node=1", "--job-name=my-1.5-model"}
    assert {f"#SBATCH {option}" for option in options} <= set(script.splitlines())
    assert subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path).returncode == 0


def test_check_prints_the_suite(meshwright: Command) -> None:
    done = meshwright("check", "gpipe", "-q")
    assert done.code == 0, done.out
    assert done.out.splitlines()[-1].startswith("✓ 6 of 6")


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshwright.cli.demo", str(tmp_path / "demo")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "✓ every promise kept" in done.stdout
    assert done.stdout.count("one process ") >= 40
