"""A user's module with the loss of their loop: how its batches are understood, and the graph that comes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from meshwright.errors import CaptureError, InputError
from meshwright.graph.eval_mode import other_in_eval
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.graph.user_function import FunctionSource
from meshwright.graph.user_model import Batch, Feed, Loss, graph_of, like, twin_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.inner(x) * self.scale
        return y if shift is None else y + shift


X, SHIFT, LABEL = torch.randn(6, 4), torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)


def by_name(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return functional.cross_entropy(output, batch["label"])


def by_place(output: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    return functional.cross_entropy(output, batch[1])


def itself(output: Tensor, batch: Tensor) -> Tensor:
    return functional.mse_loss(output, batch[:, :3])


def graph(module: nn.Module, batch: Batch, loss: Loss | None) -> Graph:
    feed = Feed.of(module, batch, loss)
    return graph_of(module, feed, like(feed.named(batch)), 6, loss=loss)


FORMS = [
    ({"x": X, "label": LABEL}, by_name, ("x", "label"), ("x",)),
    ({"label": LABEL, "x": X, "shift": SHIFT}, by_name, ("label", "x", "shift"), ("x", "shift")),
    ((X, LABEL), by_place, ("x", "batch_1"), ("x",)),
    (X, itself, ("x",), ("x",)),
    ({"x": X, "shift": SHIFT}, None, ("x", "shift"), ("x", "shift")),
    ((X, SHIFT), None, ("x", "shift"), ("x", "shift")),
]


@pytest.mark.parametrize(("batch", "loss", "names", "model"), FORMS)
def test_a_batch_is_taken_apart_and_put_together_again(
    batch: Batch, loss: Loss | None, names: tuple[str, ...], model: tuple[str, ...]
) -> None:
    feed = Feed.of(Net(), batch, loss)
    assert (feed.names, feed.model) == (names, model)
    named = feed.named(batch)
    again = feed.batch(named)
    assert type(again) is type(batch)
    if isinstance(batch, Mapping):
        assert isinstance(again, Mapping)
        assert dict(again) == dict(batch)
    assert Feed.named_like(Net(), names, loss).model == model


@pytest.mark.parametrize("batch", [{"y": X}, (X, SHIFT, LABEL), {"x": X, "n": 3}, [X, "a"], "x", {}])
def test_what_is_no_batch_of_the_model_is_refused(batch: object) -> None:
    with pytest.raises(InputError):
        Feed.of(Net(), batch, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "loss"), [(f[0], f[1]) for f in FORMS[:4]])
def test_the_loss_is_part_of_the_graph_and_every_name_is_the_modules_own(batch: Batch, loss: Loss) -> None:
    found = graph(Net(), batch, loss)
    assert [t.name for t in found.params()] == ["inner.weight", "inner.bias"]
    assert found.tensor[found.loss].shape == ()
    assert "inner/linear" in found.position
    assert found.producer[found.loss] == len(found.ops) - 1


def test_a_loss_with_parameters_or_without_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="the loss has parameters of its own: make it a part of the model"):
        graph(Net(), X, nn.Linear(3, 1))
    with pytest.raises(CaptureError, match=r"loss\(output, batch\) must return one number"):
        graph(Net(), X, lambda output, batch: [output])
    with pytest.raises(CaptureError, match="the loss must be one number"):
        graph(Net(), X, lambda output, batch: output)


def test_a_twin_has_the_structure_and_none_of_the_weights() -> None:
    net = Net()
    net.tied = net.inner  # type: ignore[assignment]
    twin = twin_of(net, "bfloat16")
    assert {n: (p.is_meta, p.dtype) for n, p in twin.named_parameters()} == {
        "inner.weight": (True, torch.bfloat16),
        "inner.bias": (True, torch.bfloat16),
    }
    assert twin.tied is twin.inner
    assert torch.equal(twin.scale, net.scale.bfloat16())
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert not any(p.is_meta for p in net.parameters())


CONFIG = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 64,
    "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def test_a_transformers_module_has_the_graph_of_its_configuration(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    named = resolve(str(tmp_path / "config.json")).graph(2, 16, "bfloat16", cache=False)
    settings = {k: v for k, v in CONFIG.items() if k not in ("model_type", "architectures")}
    own = FunctionSource.of(lambda: GPT2LMHeadModel(GPT2Config(**settings))).graph(2, 16, "bfloat16")
    assert own.digest == named.digest
    (tmp_path / "model.py").write_text(
        "import torch\nfrom transformers import GPT2Config, GPT2LMHeadModel\n"
        f"def build():\n    batch = torch.zeros(2, 16, dtype=torch.int64)\n"
        f"    return GPT2LMHeadModel(GPT2Config(**{settings!r})), {{'input_ids': batch, 'labels': batch}}\n"
    )
    assert resolve(f"{tmp_path / 'model.py'}:build").graph(2, 16, "bfloat16", cache=False).digest == named.digest


def test_only_dropout_and_running_statistics_tell_training_from_evaluation() -> None:
    class Dropping(Net):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return functional.dropout(super().forward(x), 0.5, self.training)

    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return self.norm(super().forward(x))

    class Renormed(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.BatchNorm1d(3)

        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return (self.norm if self.training else self.other)(Net.forward(self, x))

    class Branching(Net):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            y = super().forward(x)
            return y if self.training else y.tanh()

    class Rewired(Net):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            y = super().forward(x)
            a, b = y.relu(), y.tanh()
            return a - b if self.training else b - a

    class Scaled(Net):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(x) * torch.tensor([1.0 if self.training else 2.0])

    batch = {"x": X, "label": LABEL}
    for cls, wanted in (
        (Dropping, ""),
        (Normed, ""),
        (Renormed, "norm/batch_norm"),
        (Branching, "cross_entropy_loss"),
        (Rewired, "sub"),
        (Scaled, "mul.2"),
    ):
        feed = Feed.of(cls(), batch, by_name)
        both = [graph_of(cls(), feed, like(feed.named(batch)), 6, loss=by_name, train=train) for train in (True, False)]
        assert other_in_eval(*both) == wanted
