"""Small models of transformers with exported settings: what our runner trains, and what the targets are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from meshwright.cluster import resolve as cluster_of
from meshwright.cost import Analytic
from meshwright.execute import train
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import load_values
from meshwright.execute.training.samples import Samples
from meshwright.export.base import Exporter
from meshwright.export.outcome import answer
from meshwright.export.reading import in_order
from meshwright.export.setup import Setup
from meshwright.graph.source import resolve
from meshwright.layouts.expert import expert_of
from meshwright.layouts.point import Point
from meshwright.layouts.recognise import Recognised
from meshwright.layouts.units import Units
from meshwright.plan.model import Schedule
from meshwright.plan.problem import Problem, Recipe

RANKS, SEQ, SAMPLES, STEPS, RATE, SEED = 4, 16, 16, 3, 0.5, 3
COMMON = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": SEQ}  # fmt: skip
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES, **COMMON},
    "tied llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES, **COMMON, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": SEQ,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **COMMON, "tie_word_embeddings": True,
    },
    "mixtral": {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], **SIZES, **COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], **SIZES, **COMMON, "head_dim": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A plan of a small model on four ranks, and how it trains here."""

    setup: Setup
    weights: Path
    batches: list[list[dict[str, Any]]]
    ours: tuple[float, ...]
    """Losses of our runner."""
    one: tuple[float, ...]
    """Losses of one process."""


def case_of(folder: Path, model: str, point: Point, recipe: Mapping[str, Any] | None = None) -> Case:
    """Trains a plan here, and keeps the first values and the samples."""
    config = folder / "config.json"
    config.write_text(json.dumps(MODELS[model]))
    source = resolve(str(config))
    m = SAMPLES // (point.replicas * point.micro_batch)
    micro_batch = SAMPLES // m
    graph = source.graph(micro_batch, SEQ, "float32", cache=False)
    expert = expert_of(graph)
    wanted = Recipe(SAMPLES, optimizer="sgd", state_bytes=0.0, compute_dtype="float32", **(recipe or {}))
    problem = Problem(graph, cluster_of(f"a100x{RANKS}"), Analytic(precision="float32"), wanted)
    layout = Recognised(point, (len(Units(expert.atoms.folded)),), Schedule("1f1b", m), in_order(point), SAMPLES)
    setup = Setup(problem, layout, model)
    rule = partial(torch.optim.SGD, lr=RATE)
    result = train(setup.plan(), source, steps=STEPS, seq=SEQ, seed=SEED, optimizer=rule, reference=True)
    module, _ = source.build(micro_batch, SEQ, "float32", device="cpu", attention="eager")
    load_values(graph, module, Values(SEED))
    weights = folder / "weights"
    module.save_pretrained(weights)  # type: ignore[operator]
    samples = Samples(source, micro_batch, m, SEQ, SEED)
    batches = [[{k: x.tolist() for k, x in one.items()} for one in samples.batch(k)] for k in range(STEPS)]
    losses = tuple(r.loss for r in result.steps), tuple(float(r.reference or 0.0) for r in result.steps)
    return Case(setup, weights, batches, *losses)


def payload(exporter: Exporter, case: Case, folder: Path, *, lossy: bool = False) -> dict[str, Any]:
    """For `hf_run_script`."""
    found = answer(exporter, case.setup, lossy=lossy)
    assert found.files, found.sentences
    p = found.runs.point
    model = MODELS[case.setup.name]
    told = {
        "target": exporter.name, "class": model["architectures"][0], "weights": str(case.weights), "rate": RATE, "steps": case.batches,
        "members": p.tp * p.cp, "as_devices": "distributed_type: FSDP" in found.files.get("accelerate.yaml", "") or p.tp > 1,
    }  # fmt: skip
    return {"folder": str(folder), "case": told, "files": dict(found.files), "ranks": RANKS}
