"""Every model of the zoo: its size, its blocks, its ties, and that nearly all of its work can be cut."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from functools import cache
from pathlib import Path

import pytest

from meshwright.graph.ir import Graph
from meshwright.graph.kinds import KINDS
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink, by_name, entries

# One of each family at full size in every run; `make test-all` captures the rest.
FIRST = (
    "gpt2", "megatron-1.7b", "llama-3.1-8b", "bert-large", "mixtral-8x7b", "vit-l16", "resnet-50", "user-net", "t5-large",
    "gnmt-8", "wrn-50-2", "unet", "dlrm", "dlrm-criteo",
)  # fmt: skip
NAMES = [pytest.param(entry.name, marks=() if entry.name in FIRST else pytest.mark.slow) for entry in entries()]
# Forward TFLOP a sample by torch's FlopCounterMode on the meta device, to the digits printed in notes of the survey.
TERAFLOPS = {
    "gpt2": 0.292,
    "gpt2-xl": 3.51,
    "gpt3-175b": 734.8,
    "megatron-1t": 4184,
    "llama-3.1-8b": 158.1,
    "llama-3.1-70b": 1315,
    "llama-3.1-405b": 7169,
    "bert-large": 0.368,
    "vit-l16": 0.123,
    "resnet-50": 0.0082,
    "t5-large": 0.493,
    "t5-11b": 7.77,
    "wrn-50-2": 0.023,
    "wrn-101-8": 0.545,
    "gnmt-8": 0.021,
    "unet": 0.096,
    "dlrm": 5e-6,
}
SMALL = Shrink(blocks=2, width=64, heads=4, kv_heads=2, vocab=96, seq=16, experts=4, image=32)
# Kinds that any cut along their rows or columns must pass through.
TRANSPARENT = {"cat", "stack", "split", "split_with_sizes", "chunk", "unbind", "slice", "select", "index", "embedding"}


@cache
def graph_of(name: str) -> Graph:
    return resolve(name).graph(2, cache=False)


@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_the_closed_form_counts_the_parameters_of_the_module(name: str) -> None:
    module, inputs = by_name()[name].build(2)
    assert sum(p.numel() for p in module.parameters()) == by_name()[name].parameters
    assert all(p.is_meta for p in module.parameters())
    assert all(x.is_meta and x.shape[0] == 2 for x in inputs.values())


# Runs that the configuration does not say in so many words. The first block of each side of T5 makes the bias that the
# others add, the first two encoder and decoder layers of GNMT have no residual connection, DeepSeek begins with three
# dense layers. No two levels of a U-Net are equal, and tables that one op reads all together are no chain of blocks.
RUNS = {
    "t5-large": [23, 23],
    "t5-11b": [23, 23],
    "gnmt-8": [6, 6],
    "deepseek-v3": [3, 58],
    "unet": [],
    "dlrm": [],
    "dlrm-criteo": [],
}


def blocks_of(name: str) -> list[int]:
    """What the configuration says: layers, or for a ResNet the blocks of each stage but its first, which differs."""
    if name in RUNS:
        return RUNS[name]
    config = by_name()[name].config
    depths = config.get("depths")
    if isinstance(depths, list):
        return [depth - 1 for depth in depths]
    count = next(config[key] for key in ("num_hidden_layers", "n_layer", "blocks") if key in config)
    assert isinstance(count, int)
    return [count]


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_found(name: str) -> None:
    graph = graph_of(name)
    assert [run.count for run in graph.runs] == blocks_of(name)
    outside = len(graph.ops) - sum(run.length * run.count for run in graph.runs)
    assert outside < 0.5 * len(graph.ops) or not graph.runs
    held = sum(t.nbytes for t in graph.params())
    assert held == 2 * by_name()[name].parameters


@pytest.mark.parametrize("name", NAMES)
def test_nearly_all_work_can_be_cut_and_nothing_light_is_wholly_fixed(name: str) -> None:
    graph = graph_of(name)
    total = sum(op.flops for op in graph.ops)
    cut = sum(op.flops for op in graph.ops if any(f.kind != "fixed" and f.size > 1 for f in op.rule.factors))
    assert cut >= 0.99 * total > 0
    for op in graph.ops:
        kind = KINDS[op.kind]
        if op.rule.factors and (kind.light or kind.alias or op.kind in TRANSPARENT):
            assert any(f.kind != "fixed" for f in op.rule.factors), f"{op.name} is wholly fixed"


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] in TERAFLOPS])
def test_flops_are_those_of_the_survey(name: str) -> None:
    digits = len(Decimal(repr(TERAFLOPS[name])).as_tuple().digits)
    found = sum(op.flops for op in graph_of(name).ops) / 2 / 1e12
    assert float(f"{found:.{digits}g}") == pytest.approx(TERAFLOPS[name], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "ties"),
    [
        ("gpt2", {"lm_head.weight": "transformer.wte.weight"}),
        ("bert-large", {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
                        "cls.predictions.decoder.bias": "cls.predictions.bias"}),
        ("llama-3.1-8b", {}),
        ("t5-large", {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight",
                      "lm_head.weight": "shared.weight"}),
    ],
)  # fmt: skip
def test_tied_parameters_are_one_tensor(name: str, ties: dict[str, str]) -> None:
    graph = graph_of(name)
    assert dict(graph.aliases) == ties
    for alias, own in ties.items():
        assert alias not in graph.tensor and graph.tensor[own].role == "param"


def test_the_plan_is_told_that_experts_drop_no_tokens() -> None:
    assert any("no-drop capacity" in note for note in graph_of("mixtral-8x7b").notes)


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-8b", "bert-large", "mixtral-8x7b", "vit-l16", "user-net", "t5-large",
                                  "gnmt-8", "wrn-50-2", pytest.param("qwen3-235b", marks=pytest.mark.slow),
                                  pytest.param("deepseek-v3", marks=pytest.mark.slow)])  # fmt: skip
def test_a_scaled_down_model_has_the_ops_of_one_block_of_the_whole(name: str) -> None:
    whole, small = graph_of(name), resolve(name).graph(2, dtype="bfloat16", shrink=SMALL, cache=False)
    assert len(small.runs) == len(whole.runs)
    big = max(whole.runs, key=lambda run: run.length * run.count)
    little = next(run for run in small.runs if run.name == big.name and run.length == big.length)
    assert little.count == 2

    def kinds(graph: Graph, first: int, length: int) -> list[tuple[str, tuple[str, ...]]]:
        roles = {name: t.role for name, t in graph.tensor.items()}
        return [(op.kind, tuple(roles[name] for name in op.inputs)) for op in graph.ops[first : first + length]]

    assert kinds(small, little.first, little.length) == kinds(whole, big.first, big.length)
    assert set(small.aliases) == set(whole.aliases)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama-3.1-8b", "bert-large", "mixtral-8x7b", "vit-l16", "resnet-50", "user-net", "t5-large", "qwen3-235b",
     "deepseek-v3", "gnmt-8", "wrn-50-2", "unet", "dlrm", "dlrm-criteo"],
)  # fmt: skip
def test_a_scaled_down_model_trains_on_the_cpu(name: str) -> None:
    import torch

    source = resolve(name)
    module, _ = source.build(2, device="cpu", shrink=SMALL)
    inputs = source.random_inputs(2, 0, torch.Generator().manual_seed(0), shrink=SMALL)
    output = module(**inputs)
    loss = output["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_shrink_scales_what_it_is_not_told() -> None:
    module, inputs = by_name()["llama-3.1-8b"].build(2, shrink=Shrink(blocks=1, width=256))
    layer = module.model.layers[0]
    assert tuple(layer.mlp.up_proj.weight.shape) == (256 * 14336 // 4096, 256)
    assert tuple(layer.self_attn.q_proj.weight.shape) == (256, 256)
    assert tuple(layer.self_attn.k_proj.weight.shape) == (64, 256), "8 of 32 heads hold keys: a quarter"
    assert tuple(inputs["input_ids"].shape) == (2, 8192)


def test_listing_the_zoo_loads_no_torch() -> None:
    program = (
        "import sys\nfrom meshwright.graph.zoo import entries\n"
        "print(len(entries()), 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(entries())), "False", "False"]


def test_every_entry_names_its_source_and_its_defaults(tmp_path: Path) -> None:
    for entry in entries():
        assert entry.source and entry.batch > 0 and entry.seq > 0
        source = resolve(entry.name)
        assert (source.default_batch, source.default_seq, source.text) == (entry.batch, entry.seq, entry.text)
