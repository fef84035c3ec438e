"""Plans for many devices are verified scaled down, with what was left out said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from execute.conftest import Pools, zoo_model
from execute.layouts import Layout, plan_of
from meshwright.errors import Unsupported
from meshwright.execute import Mismatch, verify
from meshwright.execute.proof.scale import scaled
from meshwright.execute.proof.verification import compare
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.plan.model import Plan

SOURCE = resolve("llama-3.1-8b")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return SOURCE.graph(2, 128, "bfloat16")


def _plan(graph: Graph, layout: Layout, micro_batches: int) -> Plan:
    return replace(plan_of(graph, layout, micro_batches), samples=layout.dp * micro_batches)


def test_a_plan_for_256_devices_is_verified_on_eight(graph: Graph, pools: Pools) -> None:
    layout = Layout(dp=8, tp=8, pp=4, sequence=True, zero=1, recompute="full")
    small = scaled(_plan(graph, layout, 16), graph, SOURCE, 128)
    assert small.ranks == 8
    assert "tp8 to tp2" in small.words and "pp4 to pp2" in small.words
    assert [s.mesh.shape for s in small.plan.stages] == [(2, 2), (2, 2)]
    assert small.plan.schedule.name == "1f1b" and small.plan.schedule.micro_batches > 2


def test_uneven_stages_stay_uneven_and_chunks_stay_chunks(graph: Graph) -> None:
    small = scaled(_plan(graph, Layout(pp=4, schedule="interleaved", chunks=3), 8), graph, SOURCE, 128)
    assert len(small.plan.stages) == 4 and small.plan.schedule.args["v"] == 2
    blocks = [len(s.ops) for s in small.plan.stages]
    assert small.graph.runs[0].count > 4 and len(blocks) == 4


@pytest.mark.parametrize("layout", (Layout(dp=64, zero=3), Layout(tp=8, pp=2, sequence=True)), ids=str)
def test_verify_says_equal_and_what_it_did_not_verify(graph: Graph, layout: Layout, pools: Pools) -> None:
    phases: list[str] = []
    result = verify(_plan(graph, layout, 8), graph, SOURCE, seq=128, pool=pools(4), progress=phases.append)
    assert result.equal, result.problems[:3]
    assert result.check() is result
    assert result.not_verified == ("arithmetic in bfloat16 (checked in float32)",)
    assert phases == ["scale", "one process", "ranks"]
    assert all(predicted == ran for predicted, ran in result.collectives.values())
    assert result.worst[1] <= result.limit == 1e-5


def test_nets_of_relus_are_verified_in_float64(pools: Pools) -> None:
    """Where rounding moves values over a kink, float32 has no digits to compare; float64 has eight more."""
    source = resolve("resnet-50")
    net = source.graph(2, 0, "bfloat16")
    result = verify(plan_of(net, Layout(dp=2, zero=1), 2), net, source, ranks=2, pool=pools(2))
    assert result.equal, result.problems[:3]
    assert result.worst[1] < 1e-11
    assert result.not_verified == ("arithmetic in bfloat16 (checked in float64)",)


def test_a_plan_that_is_only_priced_is_refused_in_one_sentence(graph: Graph) -> None:
    plan = _plan(graph, Layout(dp=2), 4)
    with pytest.raises(Unsupported, match="do not fall into 3 equal micro-batches"):
        verify(replace(plan, schedule=replace(plan.schedule, micro_batches=3)), graph, SOURCE, seq=128, whole=True)


def test_a_wrong_gradient_on_one_rank_alone_is_found(pools: Pools) -> None:
    model = zoo_model("llama-3.1-8b")
    task = model.task(plan_of(model.graph, Layout(dp=2), 2))
    answers = pools(2).run("meshwright.execute.proof.verification:answer", task)
    assert compare(task, model.truth, answers).equal
    name = "model.layers.1.mlp.up_proj.weight"
    answers[1].gradients[0, name] = answers[1].gradients[0, name] * (1 + 1e-3)
    result = compare(task, model.truth, answers)
    assert not result.equal and result.worst[0] == name
    with pytest.raises(Mismatch, match=rf"^the gradient of {name} differs by .* on rank 1, limit 1e-05$"):
        result.check()


def test_a_gradient_of_which_rounding_leaves_nothing_is_said_to_be_unproved(pools: Pools) -> None:
    model = zoo_model("gpt2")
    task = model.task(plan_of(model.graph, Layout(dp=2), len(model.batch)))
    answers = pools(2).run("meshwright.execute.proof.verification:answer", task)
    name = "transformer.h.0.mlp.c_fc.weight"
    size = float(model.truth.gradients[name].abs().max())
    assert compare(task, model.truth, answers).not_verified == ()
    rough = replace(model.truth, rounding={**model.truth.rounding, name: size / 100})
    assert compare(task, rough, answers).not_verified == (f"the gradient of {name}: float32 keeps no digit of it",)


def test_a_loss_that_is_no_number_is_found(pools: Pools) -> None:
    model = zoo_model("gpt2")
    task = model.task(plan_of(model.graph, Layout(), 2))
    answers = pools(1).run("meshwright.execute.proof.verification:answer", task)
    answers[0].losses[1] = float("nan")
    assert compare(task, model.truth, answers).problems[0].startswith("rank 0 has loss nan in micro-batch 1")


def test_a_users_model_of_one_length_is_verified_at_that_length(tmp_path: Path) -> None:
    """`build()` without a parameter called seq: nothing can be shortened."""
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)\n\n"
        "    def forward(self, tokens, labels):\n"
        "        logits = self.head(torch.relu(self.embed(tokens)))\n"
        "        return {'loss': nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}\n\n\n"
        "def build():\n"
        "    x = torch.zeros(2, 24, dtype=torch.long)\n"
        "    return Net(), {'tokens': x, 'labels': x}\n"
    )
    source = resolve(f"{tmp_path / 'model.py'}:build")
    graph = source.graph(2, 24, "float32", cache=False)
    result = verify(plan_of(graph, Layout(dp=2), 1), graph, source, ranks=2)
    assert result.equal, result.problems[:5]
