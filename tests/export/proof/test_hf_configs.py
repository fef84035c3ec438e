"""accelerate's launcher and configuration objects, and transformers' `DistributedConfig`, take what is exported and refuse what is
refused."""

from __future__ import annotations

from typing import Any

import pytest

from export.drawn import drawn, of_row, written
from export.proof.hf_cases import MODELS
from export.proof.target import run
from meshwright.export._calls import calls
from meshwright.export._hf_options import names
from meshwright.export._sides import pattern
from meshwright.export.accelerate import Accelerate
from meshwright.export.setup import Setup
from meshwright.export.transformers import Transformers

pytestmark = pytest.mark.slow
LLAMA = {**MODELS["llama"], "num_hidden_layers": 8, "num_attention_heads": 8, "hidden_size": 64}
MIXTRAL = {
    **MODELS["mixtral"],
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "hidden_size": 64,
    "num_local_experts": 8,
}


def asked(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run("accelerate", "hf_config_script.py", cases)
    return found


def arguments(text: str, name: str) -> dict[str, Any]:
    """Of the one call of that name in a written file."""
    (found,) = calls(text, "settings.py", {name: names(name)})
    return dict(found.arguments)


def some(row: str, seed: int) -> list[Setup]:
    return [s for s in drawn(row, 300, seed) if s.stages == 1][:25]


def test_the_launcher_sets_what_the_yaml_says() -> None:
    found = [written(Accelerate(), s) for s in (*some("ZeRO 1", 21), of_row("ZeRO 3 in groups (hybrid)"))]
    plain = [e for e in found if e.files and "DEEPSPEED" not in e.files["accelerate.yaml"]]
    told = asked([{"kind": "yaml", "text": e.files["accelerate.yaml"]} for e in plain])
    assert len(told) > 5
    for e, answer in zip(plain, told, strict=True):
        env, p = answer["is"], e.runs.point
        if "distributed_type: FSDP" not in e.files["accelerate.yaml"]:
            assert "ACCELERATE_USE_FSDP" not in env
            continue
        assert env["ACCELERATE_USE_FSDP"] == env["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"
        assert env["FSDP_VERSION"] == "2"
        assert env["FSDP_RESHARD_AFTER_FORWARD"] == str(p.reshard).lower()
        assert env["FSDP_ACTIVATION_CHECKPOINTING"] == str(p.recompute == "full").lower()
        assert env["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] == str(p.replicate)
        assert env["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == str(p.dp // p.replicate)
        assert env["PARALLELISM_CONFIG_CP_SIZE"] == str(p.cp)
        if p.cp > 1:
            assert env["PARALLELISM_CONFIG_CP_COMM_STRATEGY"] == "allgather"


def test_sizes_are_taken_and_refused() -> None:
    good = [s for s in some("ZeRO 1", 22) if s.point.tp > 1]
    texts = [e.files["settings.py"] for s in good if (e := written(Accelerate(), s)).files]
    sizes = [arguments(text, "ParallelismConfig") for text in texts]
    bad = [
        {"dp_replicate_size": 4, "tp_size": 4},  # "shards beside copies"
        {"cp_size": 2, "sp_size": 2, "dp_shard_size": 4},
        {"tp_size": 0},
    ]
    told = asked([{"kind": "parallelism", "sizes": s} for s in [*sizes, *bad]])
    assert sizes and all(answer["is"]["total"] == 16 for answer in told[: len(sizes)])
    for answer in told[: len(sizes)]:
        assert answer["is"]["order"] == [a for a in ("dp_replicate", "dp_shard", "tp") if a in answer["is"]["order"]]
    assert all("ValueError" in answer["error"] for answer in told[len(sizes) :])


def test_distributed_configs_are_taken_with_all_their_rules() -> None:
    setups = [(s, LLAMA) for s in some("ZeRO 1", 23)] + [(s, MIXTRAL) for s in some("experts", 24)]
    cases, exported = [], []
    for setup, model in setups:
        e = written(Transformers(), setup)
        if e.files and "DistributedConfig(" in e.files["settings.py"]:
            cases.append(
                {
                    "kind": "distributed",
                    "config": arguments(e.files["settings.py"], "DistributedConfig"),
                    "model": model,
                }
            )
            exported.append(e)
    assert len(cases) > 10
    for e, case, answer in zip(exported, cases, asked(cases), strict=True):
        p, config, found = e.runs.point, case["config"], answer["is"]
        assert found["dp"] == p.replicas
        if p.replicas > 1:
            assert found["loose"] == [], "every parameter is in a group"
            assert set(found["sharded"].values()) == set(config["fsdp_plan"].values())
        if p.tp > 1:
            laid = {pattern(name) for name in found["tensor"]}
            assert set(config["tp_plan"]) <= laid
        if p.ep > 1:
            assert found["experts"] == p.dp // p.replicate
            assert set(found["experts_rules"].values()) == {"grouped_gemm", "ep_dispatch_experts"}


def test_what_is_refused_is_refused_there() -> None:
    gpt2 = {"transformer.h.*.attn.c_attn": "colwise"}
    bad = [
        ({"config": {"tp_size": 2, "tp_plan": gpt2}, "model": MODELS["gpt2"]}, "Conv1D has no `out_features`"),
        ({"config": {"pp_size": 2, "fsdp_size": 2}}, "pipeline"),
        ({"config": {"ep_size": 3, "tp_size": 2, "fsdp_size": 4}}, "multiple of `tp_size`"),
        ({"config": {"ep_size": 4, "tp_size": 1, "fsdp_size": 2}}, "must divide"),
        ({"config": {"tp_size": 2, "tp_plan": {"model.layers.*.self_attn.c_attn": "colwise"}}, "model": LLAMA}, "match nothing"),
    ]  # fmt: skip
    for (_, words), answer in zip(bad, asked([{"kind": "distributed", **case} for case, _ in bad]), strict=True):
        assert words in answer["error"]
