"""MaxText's own configuration takes what is written, with the same mesh, batch and rules, and refuses what is refused."""

from __future__ import annotations

import os
import shlex
from functools import cache
from typing import Any

import numpy as np
import pytest

from export.drawn import of_row, other, written
from export.proof.target import run
from meshwright.export._maxtext_names import axis_of
from meshwright.export.maxtext import FEATURES, WEIGHTS, MaxText
from meshwright.export.rows import ROWS
from meshwright.export.setup import Setup

pytestmark = pytest.mark.slow
TARGET = MaxText()
DEVICES = 16
SMALL = (
    "hardware=cpu", "skip_jax_distributed_system=true", "override_model_config=true", "base_num_decoder_layers=8",
    "base_num_query_heads=8", "base_num_kv_heads=4", "base_emb_dim=64", "base_mlp_dim=128", "base_moe_mlp_dim=128", "vocab_size=256", "log_config=false",
)  # fmt: skip
"""The rows' models, on the devices of this machine."""


def case(files: Any, *more: str) -> dict[str, Any]:
    """Files as MaxText starts with them: what the launch script says after the file, and then the small model."""
    words = shlex.split(files["launch.sh"].partition("maxtext.yml")[2].replace("\\\n", " "))
    return {"files": {"maxtext.yml": files["maxtext.yml"]}, "command": [*words, *SMALL, *more], "devices": DEVICES}


def full(row: str, **words: Any) -> Setup:
    return other(of_row(row), recompute="full", **words)


PLANS: dict[str, Setup] = {
    row.words: full(row.words) for row in ROWS if row.point.context == "gather" or row.point.cp == 1
}
"""All rows but heads exchanged, which it takes on TPUs alone."""
PLANS |= {
    "experts of a part": full("experts", dp=2, ep=4, tp=2),
    "two chunks of two": full("chunks", dp=8, pp=2, chunks=2, counts=(2, 2, 2, 2)),
    "a fraction of a sample": full("context, gathered", dp=2, cp=8),
    "ZeRO 3 beside context": full("context, gathered", dp=4, cp=4, zero=3),
}


@cache
def answers() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> what is exported, and MaxText's answer; all in one process."""
    found = {name: written(TARGET, setup) for name, setup in PLANS.items()}
    env = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "HOME": os.environ.get("HOME", "/tmp"),
    }
    told = run("maxtext", "maxtext_script.py", [case(e.files) for e in found.values()], env)
    return {name: (e, a) for (name, e), a in zip(found.items(), told, strict=True)}


@pytest.mark.parametrize("name", PLANS)
def test_it_takes_what_is_written(name: str) -> None:
    exported, told = answers()[name]
    setup = exported.runs
    p, m = setup.point, setup.layout.micro_batches
    assert "error" not in told, told["error"]
    assert told["global_batch_size_to_train_on"] == setup.layout.samples
    assert told["micro_batch_size_to_train_on"] == (
        setup.layout.samples if p.pp > 1 else setup.replicas * p.micro_batch
    )
    assert told["gradient_accumulation_steps"] == (1 if p.pp > 1 else m)
    assert told["max_target_length"] == setup.model.seq
    if p.pp > 1:
        assert told["num_pipeline_microbatches"] == m
        assert told["num_pipeline_repeats"] == p.chunks
        assert told["num_layers_per_pipeline_stage"] * p.pp * p.chunks == len(setup.model.layers)
    assert told["shard_optimizer_over_data"] == (p.zero == 1)


@pytest.mark.parametrize("name", PLANS)
def test_its_mesh_has_the_devices_of_the_plan(name: str) -> None:
    exported, told = answers()[name]
    setup = exported.runs
    size = dict(zip(told["axes"], told["shape"], strict=True))
    wanted = dict.fromkeys(told["axes"], 1)
    for word, axis in axis_of(setup).items():
        wanted[axis] *= setup.sizes[word]
    assert size == wanted
    mesh = np.array(told["ids"]).reshape(told["shape"])
    order = ["stage", "data", "fsdp", "expert", "context", "tensor", "tensor_sequence"]
    rest = [a for a in told["axes"] if a not in order]
    turned = mesh.transpose([told["axes"].index(a) for a in (*order, *rest)])
    assert turned.ravel().tolist() == [d for rank in setup.layout.devices for d in rank]


def test_rules_are_those_of_the_plan() -> None:
    _, tensor = answers()["tensor"]
    assert {name: tensor["rules"][name] for name in FEATURES} == {name: [[]] for name in FEATURES}
    _, context = answers()["context, gathered"]
    assert {name: context["rules"][name] for name in WEIGHTS} == {
        name: [["fsdp", "fsdp_transpose"]] for name in WEIGHTS
    }
    _, cut = answers()["ZeRO 3 beside context"]
    assert all("context" in axes for name in ("embed", "embed_vocab") for axes in cut["rules"][name])


REJECTED = {
    "layers split": (other(full("pipeline"), dp=5, pp=3), ("ici_data_parallelism=5",), "must be equal to pipeline_parallel_layers"),
    "pipeline micro-batches": (
        full("pipeline", samples=4 * 30),
        (),
        "The number of microbatches (30) must be divisible by the number of stages (4)",
    ),
    "devices": (full("ZeRO 3"), ("ici_fsdp_parallelism=8",), "does not match"),
    "two left open": (full("ZeRO 3"), ("ici_fsdp_parallelism=-1", "ici_data_parallelism=-1"), "more than one ICI"),
    "unknown": (full("ZeRO 3"), ("ici_fdsp_parallelism=8",), "ici_fdsp_parallelism"),
}  # fmt: skip


def test_it_refuses_what_is_refused() -> None:
    cases = [case(TARGET.files(setup), *more) for setup, more, _ in REJECTED.values()]
    env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    told = run("maxtext", "maxtext_script.py", cases, env)
    for (name, (_, _, words)), found in zip(REJECTED.items(), told, strict=True):
        assert words in " ".join(found.get("error", "accepted").split()), (name, found)
