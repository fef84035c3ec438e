"""A captured graph computes what the user's module computes, in normal form, and leaves the module as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import MODELS, flattened, loss_of, randomised
from torch import nn

from meshwright.errors import CaptureError
from meshwright.graph.capture import capture
from meshwright.graph.ir import Graph, Op, Slot
from meshwright.graph.kinds import kind_of
from meshwright.graph.replay import execute_graph, module_values
from meshwright.graph.saved import needs_grad
from meshwright.graph.serial import dumps, loads
from meshwright.graph.transformers_hooks import register_attention, register_experts
from meshwright.graph.validate import validate_graph

NAMES = sorted(MODELS)
SAMPLES = 2


@pytest.mark.parametrize("name", NAMES)
def test_captured_graph_equals_eager_module_in_loss_and_every_gradient(
    name: str, captured: Callable[[str], Graph]
) -> None:
    graph = captured(name)
    build, inputs = MODELS[name]
    torch.manual_seed(0)
    module = build("cpu", "eager")
    batch = randomised(inputs(SAMPLES, "cpu"), torch.Generator().manual_seed(1))
    loss = loss_of(module(**batch))
    loss.backward()
    wanted = {k: p.grad for k, p in module.named_parameters()}
    module.zero_grad()
    values = execute_graph(graph, {**module_values(graph, module), **flattened(batch)})
    values[graph.loss].backward()
    assert values[graph.loss].item() == pytest.approx(loss.item(), rel=1e-6)
    largest = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    for key, parameter in module.named_parameters():
        expected = wanted[key]
        if expected is None:
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        error = float((parameter.grad - expected).abs().max())
        assert error <= 2e-6 * max(float(expected.abs().max()), 1e-3 * largest), key


@pytest.mark.parametrize("name", NAMES)
def test_every_op_has_a_rule_that_fits_its_shapes(name: str, captured: Callable[[str], Graph]) -> None:
    graph = captured(name)
    validate_graph(graph)
    assert graph.loss and graph.tensor[graph.loss].shape == ()
    assert all(kind_of(op.kind) is not None for op in graph.ops)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_pointwise_view_like_or_indexing_is_wholly_fixed(name: str, captured: Callable[[str], Graph]) -> None:
    for op in captured(name).ops:
        if op.rule.factors and _cuttable_kind(op):
            assert any(f.kind != "fixed" for f in op.rule.factors), op.name


def _cuttable_kind(op: Op) -> bool:
    row = kind_of(op.kind)
    return bool(row and row.light) or op.kind in (
        "cat",
        "stack",
        "split",
        "index",
        "gather",
        "index_select",
        "embedding",
    )


@pytest.mark.parametrize("name", NAMES)
def test_nearly_all_flops_can_be_cut(name: str, captured: Callable[[str], Graph]) -> None:
    ops = captured(name).ops
    free = sum(op.flops for op in ops if any(f.kind != "fixed" for f in op.rule.factors))
    assert free >= 0.99 * sum(op.flops for op in ops) > 0


@pytest.mark.parametrize("name", NAMES)
def test_sample_factors_are_those_that_grow_with_the_batch(name: str, captured: Callable[[str], Graph]) -> None:
    graph = captured(name)
    build, inputs = MODELS[name]
    larger = capture(build("meta", register_attention()), inputs(2 * SAMPLES, "meta"), 2 * SAMPLES)
    assert [op.name for op in larger.ops] == [op.name for op in graph.ops]
    for small, large in zip(graph.ops, larger.ops):
        scaled = {f.name: f.size * (2 if f.samples else 1) for f in small.rule.factors}
        assert scaled == {f.name: f.size for f in large.rule.factors}, small.name


@pytest.mark.parametrize("name", NAMES)
def test_names_are_stable_under_another_batch_and_unique(name: str, captured: Callable[[str], Graph]) -> None:
    graph = captured(name)
    assert len({t.name for t in graph.tensors}) == len(graph.tensors)
    assert all(not op.module or op.name.startswith(op.module + "/") for op in graph.ops)


def test_ops_are_pure_and_biases_are_adds(captured: Callable[[str], Graph]) -> None:
    for name in NAMES:
        for op in captured(name).ops:
            assert not op.kind.endswith("_"), op.name
            if op.kind in ("linear", "mm", "conv2d", "conv_transpose2d"):
                assert len(op.inputs) == 2, op.name


def test_gradients_flow_exactly_where_autograd_has_them(captured: Callable[[str], Graph]) -> None:
    for name in ("gpt2", "mixtral", "user", "vit"):
        graph = captured(name)
        build, inputs = MODELS[name]
        module = build("cpu", register_attention())
        batch = randomised(inputs(SAMPLES, "cpu"), torch.Generator().manual_seed(1))
        values = execute_graph(graph, {**module_values(graph, module), **flattened(batch)})
        assert needs_grad(graph) == {n for n, value in values.items() if value.requires_grad}, name


def test_tied_parameters_are_one_tensor(captured: Callable[[str], Graph]) -> None:
    graph = captured("gpt2")
    assert graph.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert len(graph.consumers["transformer.wte.weight"]) == 2


def test_module_is_left_as_it_was() -> None:
    build, inputs = MODELS["resnet"]
    module = build("cpu", "eager").eval()
    before = dict(module.state_dict(keep_vars=True))
    capture(module, inputs(SAMPLES, "cpu"), SAMPLES)
    assert not any(part.training for part in module.modules())
    assert all(before[k] is v for k, v in module.state_dict(keep_vars=True).items())


def test_recurrent_module_still_runs_after_capture() -> None:
    build, inputs = MODELS["recurrent"]
    module = build("cpu", "eager")
    batch = randomised(inputs(SAMPLES, "cpu"), torch.Generator().manual_seed(1))
    before = module(**batch).item()
    capture(module, batch, SAMPLES)
    assert module(**batch).item() == before


def test_no_drop_experts_are_said_in_the_notes(captured: Callable[[str], Graph]) -> None:
    assert any("no-drop" in note for note in captured("mixtral").notes)


def test_limited_experts_with_enough_room_equal_eager_experts() -> None:
    build, inputs = MODELS["mixtral"]
    torch.manual_seed(0)
    module = build("cpu", register_attention())
    batch = randomised(inputs(SAMPLES, "cpu"), torch.Generator().manual_seed(1))
    module.config._experts_implementation = "eager"
    expected = module(**batch).loss
    module.config._experts_implementation = register_experts(2.0)
    assert module(**batch).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    graph = capture(module, batch, SAMPLES)
    validate_graph(graph)
    values = execute_graph(graph, {**module_values(graph, module), **flattened(batch)})
    assert values[graph.loss].item() == pytest.approx(expected.item(), rel=1e-6)


def test_padding_mask_is_refused(captured: Callable[[str], Graph]) -> None:
    build, inputs = MODELS["gpt2"]
    batch = {**inputs(SAMPLES, "meta"), "attention_mask": torch.ones(SAMPLES, 32, device="meta")}
    with pytest.raises(CaptureError, match="padding mask"):
        capture(build("meta", register_attention()), batch, SAMPLES)


def test_attention_that_passes_by_the_hook_is_refused() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=50, attn_implementation=register_attention())
    with torch.device("meta"):
        module = BloomForCausalLM(config)
    ids = torch.zeros(SAMPLES, 8, dtype=torch.long, device="meta")
    with pytest.raises(CaptureError, match="BloomForCausalLM computes attention in a way of its own"):
        capture(module, {"input_ids": ids, "labels": ids}, SAMPLES)


class Written(nn.Module):
    """Writes in place through views, reads older views afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.weight
        turned, first = y.t(), y[:, 0]
        y[:, 2:4] += 3.0 * y[:, :2]
        first.mul_(2.0)
        part = y.view(-1, 2, 3)[:, 1]
        part[:, 1] = 7.0
        turned.unsqueeze(0)[:, 5].copy_(self.weight[:4].unsqueeze(0))
        return (y * turned.t()).sum() + first.sum()


def test_writes_through_views_reach_every_other_view() -> None:
    torch.manual_seed(0)
    module, x = Written(), torch.randn(4, 6)
    loss = module(x)
    (expected,) = torch.autograd.grad(loss, [module.weight])
    graph = capture(module, {"x": x}, 4)
    validate_graph(graph)
    values = execute_graph(graph, {**module_values(graph, module), "x": x})
    (found,) = torch.autograd.grad(values[graph.loss], [module.weight])
    assert values[graph.loss].item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(found, expected)


class Regions(nn.Module):
    """no_grad and autocast bodies become plain ops. No biases: their own op would round once more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = self.a(x).abs().mean()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.b(self.a(x))
        return (y.float() * scale).square().mean()


def test_no_grad_and_autocast_regions_keep_their_meaning() -> None:
    torch.manual_seed(0)
    module, x = Regions(), torch.randn(4, 8)
    loss = module(x)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    graph = capture(module, {"x": x}, 4)
    values = execute_graph(graph, {**module_values(graph, module), "x": x})
    found = torch.autograd.grad(values[graph.loss], list(module.parameters()))
    assert values[graph.loss].item() == pytest.approx(loss.item(), rel=1e-6)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
    assert any(op.kind == "linear" and graph.tensor[op.outputs[0]].dtype == "bfloat16" for op in graph.ops)


class Constants(nn.Module):
    """Tensors made of Python numbers, and one that is an attribute without being a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.table = torch.tensor([2.0, 0.5, 1.5])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = torch.tensor([2, 0, 1])
        scale = torch.tensor([0.5, 0.25, 4.0])
        return (x[:, order] * self.weight * scale * self.table + torch.tensor(3.0)).square().mean()


def test_constants_keep_their_values() -> None:
    torch.manual_seed(0)
    module, x = Constants(), torch.randn(4, 3)
    graph = loads(dumps(capture(module, {"x": x}, 4)))
    values = execute_graph(graph, {**module_values(graph, module), "x": x})
    assert values[graph.loss].item() == pytest.approx(module(x).item(), rel=1e-6)


class Bags(nn.Module):
    """Bags of three ids each, and bags that offsets divide."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.uneven = nn.EmbeddingBag(9, 4, mode="sum"), nn.EmbeddingBag(9, 4, mode="sum")

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return (self.even(ids) * self.uneven(ids.flatten(), offsets)).square().mean()


def test_bags_of_equal_length_are_look_ups_that_samples_can_cut() -> None:
    torch.manual_seed(0)
    module = Bags()
    batch = {"ids": torch.randint(0, 9, (4, 3)), "offsets": torch.tensor([0, 1, 7, 9])}
    loss = module(**batch)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    graph = capture(module, batch, 4)
    validate_graph(graph)
    values = execute_graph(graph, {**module_values(graph, module), **batch})
    found = torch.autograd.grad(values[graph.loss], list(module.parameters()))
    assert values[graph.loss].item() == pytest.approx(loss.item(), rel=1e-6)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
    kinds = {op.inputs[0]: op for op in graph.ops if op.kind in ("embedding", "embedding_bag")}
    assert kinds["even.weight"].kind == "embedding" and kinds["uneven.weight"].kind == "embedding_bag"
    assert any(f.samples and f.kind == "free" for f in kinds["even.weight"].rule.factors)


class NoLoss(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": x * 2.0}


class PerSample(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)


@pytest.mark.parametrize(
    ("module", "sentence"), [(NoLoss(), "no loss in the output"), (PerSample(), "must be one number")]
)
def test_output_without_a_scalar_loss_is_refused(module: nn.Module, sentence: str) -> None:
    with pytest.raises(CaptureError, match=sentence):
        capture(module, {"x": torch.zeros(4, 3)}, 4)


def test_slots_name_the_operands_in_order(captured: Callable[[str], Graph]) -> None:
    def slots(value: Any) -> list[int]:
        if isinstance(value, Slot):
            return [value.index]
        return [s for v in value for s in slots(v)] if isinstance(value, tuple) else []

    for op in captured("recommender").ops:
        assert slots((op.args, tuple(v for _, v in op.kwargs))) == list(range(len(op.inputs))), op.name
