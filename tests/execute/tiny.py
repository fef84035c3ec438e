"""A tiny Llama from a config file, and runs of it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from execute.layouts import Layout, plan_of
from meshwright.execute import AdamW
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.training.trainer import Trainer
from meshwright.execute.training.training import prepare
from meshwright.graph.ir import Graph
from meshwright.graph.source import ModelSource, resolve
from meshwright.plan.model import Plan

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEQ, SAMPLES, MICRO_BATCHES = 32, 4, 2
RULE = AdamW(lr=5e-3)


def tiny_source(folder: Path) -> ModelSource:
    file = folder / "config.json"
    file.write_text(json.dumps(CONFIG))
    return resolve(str(file))


@cache
def _graph(spec: str) -> Graph:
    return resolve(spec).graph(SAMPLES, SEQ, "float32", cache=False)


def tiny_graph(source: ModelSource) -> Graph:
    return _graph(source.spec)


def tiny_plan(source: ModelSource, layout: Layout) -> Plan:
    return plan_of(tiny_graph(source), layout, MICRO_BATCHES)


def losses_here(source: ModelSource, steps: int, resume: Path | None = None) -> dict[int, float]:
    """Step, from 1 -> loss, of one rank in this process."""
    setup, samples, _ = prepare(tiny_plan(source, Layout()), source, seq=SEQ, optimizer=RULE)
    trainer = Trainer(setup, 0, Groups())
    at = trainer.resume(resume).step if resume is not None else 0
    found = {}
    for k in range(at, at + steps):
        losses = trainer.step(samples.batch(k)).losses
        found[k + 1] = sum(losses) / len(losses)
    return found
