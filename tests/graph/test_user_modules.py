"""Modules as people write them: layers of torch.nn, odd losses, writes in place. Replayed, they are what they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import loss_of
from torch import nn

from meshwright.errors import CaptureError
from meshwright.graph.capture import capture
from meshwright.graph.replay import execute_graph, module_values
from meshwright.graph.validate import validate_graph


class Encoder(nn.Module):
    """torch.nn's own encoder, a causal mask as a tensor, keyword inputs that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32, padding_idx=0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 50)

    def forward(self, labels: torch.Tensor, x: torch.Tensor, flag: bool | None = None, scale: int = 2) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y = self.layers(self.embedding(x), mask=mask, is_causal=True)
        return F.cross_entropy(self.out(y).transpose(1, 2) * scale, labels)


class Pair(nn.Module):
    """torch.nn's encoder and decoder; the loss is the first scalar of a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.both(x, y).pow(2).mean()


class ComplexRotation(nn.Module):
    """Rotary positions by complex products, as the first Llama code had them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))
        self.register_buffer("turns", torch.polar(torch.ones(6, 4), torch.randn(6, 4)), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        q = (x @ self.weight).view(x.shape[0], 6, 2, 8)
        turned = torch.view_as_complex(q.reshape(*q.shape[:-1], -1, 2)) * self.turns[None, :, None]
        return {"loss": torch.view_as_real(turned).flatten(3).square().mean()}


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Hardswish(inplace=True), nn.AvgPool2d(2), nn.InstanceNorm2d(8, affine=True), nn.Upsample(scale_factor=2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.nll_loss(F.log_softmax(self.layers(x), -1), y)


class Sundry(nn.Module):
    """Many rarer operators in one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.bilinear, self.prelu, self.rms = nn.Bilinear(8, 8, 4), nn.PReLU(4), nn.RMSNorm(8)
        self.conv = nn.Conv1d(4, 4, 3, padding="same")
        self.heads = nn.Parameter(torch.randn(4, 2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.normed(x)
        z = self.prelu(self.bilinear(x, y))
        u = torch.einsum("bk,hdk->bhd", self.rms(x), self.heads).flatten(1).unflatten(1, (4, 2))
        v = self.conv(u)
        best, where = v.max(-1)
        turned = torch.stack(torch.unbind(v, 1), 0).roll(1, 0).flip(0).mean((0, 2))
        kept = torch.where(x > 0, x, torch.zeros_like(x)).masked_fill(x > 1, 0.5)
        terms = [
            best.mean(), v.topk(1, -1).values.sum() * 0.1, (F.one_hot(where, 2).float() * v).mean(),
            torch.cumsum(z, -1).clamp(min=-1, max=1).std(), turned.var(), F.cosine_similarity(x, y).mean(),
            F.normalize(y, dim=-1).sum(), torch.logsumexp(kept * y, 1).mean(), torch.outer(y[0], y[1]).norm(),
            F.smooth_l1_loss(x, y), F.kl_div(F.log_softmax(x, 1), F.softmax(y, 1)), F.gelu(y).prod(1).mean(),
            y.abs().amax(), torch.tril(y).sum(), torch.cdist(y, x).mean(),
        ]  # fmt: skip
        return torch.stack(terms).sum()


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        y = x @ self.weight
        y.masked_fill_(y < 0, 0.1)
        y[:, 0] = 0
        y += 1
        z = torch.zeros(x.shape[0], 12)
        z[:, :6] = y
        z[:, 6:].copy_(x)
        return z.scatter(1, torch.zeros(x.shape[0], 1, dtype=torch.long), 5.0).sum(1).mean()


class Sequence(nn.Module):
    """Time first, two bidirectional layers, attention with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, 2, bidirectional=True)
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (h, c) = self.lstm(x)
        a, weights = self.attention(y, y, y)
        return a.mean() + h.sum() + c.mean() + weights.std()


def words(*shape: int) -> torch.Tensor:
    return torch.randint(0, 50, shape)


MODULES: list[tuple[type[nn.Module], Callable[[], dict[str, Any]], int]] = [
    (Encoder, lambda: {"x": words(2, 6), "labels": words(2, 6), "scale": 3, "flag": None}, 2),
    (Pair, lambda: {"x": torch.randn(2, 5, 32), "y": torch.randn(2, 4, 32)}, 2),
    (ComplexRotation, lambda: {"x": torch.randn(2, 6, 16)}, 2),
    (Convolutional, lambda: {"x": torch.randn(2, 3, 16, 16), "y": torch.randint(0, 5, (2,))}, 2),
    (Sundry, lambda: {"x": torch.randn(3, 8)}, 3),
    (InPlace, lambda: {"x": torch.randn(4, 6)}, 4),
    (Sequence, lambda: {"x": torch.randn(5, 2, 8)}, 2),
]


@pytest.mark.parametrize(("kind", "inputs", "samples"), MODULES, ids=[m[0].__name__ for m in MODULES])
def test_replay_equals_the_module(kind: type[nn.Module], inputs: Callable[[], dict[str, Any]], samples: int) -> None:
    torch.manual_seed(0)
    module, batch = kind(), inputs()
    reference = copy.deepcopy(module)
    graph = capture(module, batch, samples)
    validate_graph(graph)
    output = reference(**batch)
    loss = output[1] if isinstance(output, tuple) else loss_of(output)
    expected = torch.autograd.grad(loss, list(reference.parameters()), allow_unused=True)
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    values = execute_graph(graph, {**module_values(graph, module), **tensors})
    found = torch.autograd.grad(values[graph.loss], list(module.parameters()), allow_unused=True)
    assert values[graph.loss].item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, _), a, b in zip(module.named_parameters(), found, expected):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class ByCondition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.weight
        return y[y > 0].sum()


def test_shapes_that_depend_on_values_are_refused_with_file_and_line() -> None:
    with pytest.raises(CaptureError, match=r"depends on values: .*torch\.where") as caught:
        capture(ByCondition(), {"x": torch.randn(4, 3)}, 4)
    assert "test_user_modules.py:" in caught.value.where


class ReadsValue(ByCondition):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight)[:, : x[0, 0].int().item()].mean()


class ReadsShape(ByCondition):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).mean() * x.numpy().shape[0]


def test_values_read_into_python_are_refused_but_shapes_are_not() -> None:
    with pytest.raises(CaptureError, match=r"read into Python|depends on values"):
        capture(ReadsValue(), {"x": torch.randn(4, 3)}, 4)
    graph = capture(ReadsShape(), {"x": torch.randn(4, 3)}, 4)
    assert [op.kind for op in graph.ops] == ["mul", "mean", "mul"]
