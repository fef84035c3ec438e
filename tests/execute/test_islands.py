"""Islands of every family, in other precisions and with drawn numbers, against the tape of single ops."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from execute.cells import FAMILIES
from execute.conftest import Model, zoo_model
from execute.layouts import Layout, plan_of
from execute.matrix import small
from execute.stage_jobs import Ran, both, compiled
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import Reference, constants_of
from meshwright.execute.ranks.device import Hardware
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.ranks.worker import Context
from meshwright.execute.stage.islands import Island
from meshwright.execute.step.optimizer import SGD
from meshwright.execute.step.runtime import Runtime
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink

CPU = Hardware(torch.device("cpu"), "gloo")
SHRINK = Shrink(blocks=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=32, seq=8)


@cache
def _model(name: str, dtype: str, dropout: float) -> Model:
    source, shrink = resolve(name), replace(SHRINK, dropout=dropout)
    graph = source.graph(4, shrink.seq, dtype, shrink=shrink, cache=False)
    module, _ = source.build(4, shrink.seq, dtype, device="cpu", shrink=shrink)
    generator = torch.Generator().manual_seed(0)
    batch = tuple(source.random_inputs(4, shrink.seq, generator, shrink=shrink) for _ in range(2))
    values = Values(0, "uneven")
    return Model(graph, module, values, constants_of(graph, module), batch, Reference((), {}, {}, values))


def _same(single: Ran, islands: Ran, close: float) -> None:
    torch.testing.assert_close(islands.losses, single.losses, rtol=close, atol=0)
    largest = max(float(g.abs().max()) for g in single.gradients.values())
    assert largest > 0
    for name, grad in single.gradients.items():
        torch.testing.assert_close(islands.gradients[name], grad, rtol=close, atol=close * largest)


@pytest.mark.parametrize("recompute", ("none", "light", "full"))
def test_islands_in_bfloat16_agree_with_the_tape_of_single_ops(recompute: str) -> None:
    model = _model("llama-3.1-8b", "bfloat16", 0.0)
    single, islands = both(Context(0, 1, CPU), model.task(plan_of(model.graph, Layout(recompute=recompute), 2)))
    assert all(g.dtype == torch.float32 for g in islands.gradients.values())
    _same(single, islands, torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("recompute", ("none", "full"))
def test_blocks_with_dropout_draw_their_own_masks(recompute: str) -> None:
    model = _model("gpt2", "float32", 0.3)
    task = model.task(plan_of(model.graph, Layout(recompute=recompute), 2))
    single, islands = both(Context(0, 1, CPU), replace(task, dropout=True))
    _same(single, islands, 2e-6)
    quiet, _ = both(Context(0, 1, CPU), task)
    assert quiet.losses != single.losses


def _graphs(model: Model, layout: Layout) -> int:
    """Graph modules that one rank makes."""
    plan = plan_of(model.graph, layout, len(model.batch))
    made = Runtime(model.program(plan), model.graph, plan, model.values, model.constants, SGD(), CPU, Groups())
    segments = made.locals[0].runner._segments
    return len({unit.run for code in segments for unit in code.units if isinstance(unit, Island)})


@pytest.mark.parametrize("recompute", ("none", "light", "full"))
def test_equal_blocks_share_their_graphs(recompute: str) -> None:
    layout = Layout(recompute=recompute)
    two, four = (_graphs(zoo_model("llama-3.1-8b", blocks=n), layout) for n in (2, 4))
    assert two == four


def test_a_block_without_collectives_is_one_graph() -> None:
    assert _graphs(zoo_model("llama-3.1-8b"), Layout()) == 4  # constants, embedding, block, head


@pytest.mark.slow
@pytest.mark.parametrize("family", [f.name for f in FAMILIES])
def test_every_family_runs_as_islands_and_compiles(family: str) -> None:
    model = small(family, 4, 1).model
    for recompute in ("none", "light", "full"):
        task = model.task(plan_of(model.graph, Layout(recompute=recompute), 1))
        _same(*both(Context(0, 1, CPU), task), 2e-6)
    task = model.task(plan_of(model.graph, Layout(), 1))
    _same(*compiled(Context(0, 1, CPU), (task, "aot_eager")), 2e-6)
