"""Graphs of measured models: three captured blocks stretched to any depth."""

from __future__ import annotations

import pytest

from meshwright.graph.source import ConfigSource
from meshwright.graph.validate import validate_graph
from meshwright.validation.models import SAMPLES, Dense, Graphs, stretched


@pytest.mark.parametrize(("style", "kv_heads"), [("gpt", 8), ("llama", 2), ("nemotron", 2)])
def test_stretched_blocks_equal_a_capture_at_full_depth(style: str, kv_heads: int) -> None:
    model = Dense(style, 6, 256, 8, kv_heads, 512, 1024, 64)
    made = Graphs().of(model)
    source = ConfigSource("m", "m", "config", model.config(6), SAMPLES, model.seq)
    whole = source.graph(SAMPLES, model.seq, "bfloat16", cache=False)
    assert made.ops == whole.ops
    assert made.runs == whole.runs
    assert {t.name: t for t in made.tensors} == {t.name: t for t in whole.tensors}
    validate_graph(made)


def test_useful_flops_follow_the_graph() -> None:
    """Three forwards of the graph's FLOPs, with causal attention halved."""
    model = Dense("llama", 4, 256, 8, 2, 512, 1024, 64)
    graph = Graphs().of(model)
    attention = sum(op.flops for op in graph.ops if "attention" in op.kind)
    counted = 3.0 * (sum(op.flops for op in graph.ops) - attention / 2) / SAMPLES
    # The graph multiplies out the rotary frequencies too: a few thousandths.
    assert model.flops == pytest.approx(counted, rel=0.01)


def test_only_a_run_of_three_blocks_is_stretched() -> None:
    graph = Graphs().of(Dense("gpt", 4, 256, 8, 8, 512, 1024, 64))
    with pytest.raises(ValueError, match="a graph whose last run has three blocks is stretched"):
        stretched(graph, 5)
