"""Small models of every family that capture meets, each as (build(device, attention), inputs(samples, device))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY = 101
LENGTH = 32


def tokens(samples: int, device: str, length: int = LENGTH) -> torch.Tensor:
    return torch.zeros(samples, length, dtype=torch.long, device=device)


def text(samples: int, device: str) -> dict[str, Any]:
    return {"input_ids": tokens(samples, device), "labels": tokens(samples, device)}


def images(samples: int, device: str) -> dict[str, Any]:
    return {
        "pixel_values": torch.zeros(samples, 3, 32, 32, device=device),
        "labels": torch.zeros(samples, dtype=torch.long, device=device),
    }


def hugging_face(name: str) -> Callable[[str, str], nn.Module]:
    """build(device, attention) of a two-layer transformers model; experts without drops unless attention is eager."""

    def build(device: str, attention: str) -> nn.Module:
        import transformers as t

        size: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
        gated = {
            **size,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": VOCABULARY,
            "use_cache": False,
        }
        match name:
            case "gpt2":
                config: Any = t.GPT2Config(
                    n_layer=2, n_embd=64, n_head=4, n_positions=LENGTH, vocab_size=VOCABULARY, use_cache=False,
                    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                )  # fmt: skip
                cls = t.GPT2LMHeadModel
            case "llama":
                config, cls = t.LlamaConfig(**gated, tie_word_embeddings=False), t.LlamaForCausalLM
            case "mistral":
                config, cls = t.MistralConfig(**gated, sliding_window=8), t.MistralForCausalLM
            case "qwen2":
                config, cls = t.Qwen2Config(**gated), t.Qwen2ForCausalLM
            case "mixtral":
                config = t.MixtralConfig(**gated, num_local_experts=4, num_experts_per_tok=2)
                cls = t.MixtralForCausalLM
            case "bert":
                config = t.BertConfig(
                    **size, intermediate_size=256, vocab_size=VOCABULARY, max_position_embeddings=LENGTH,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                )  # fmt: skip
                cls = t.BertForMaskedLM
            case "t5":
                config = t.T5Config(
                    d_model=64, num_layers=2, num_decoder_layers=2, num_heads=4, d_kv=16, d_ff=128, dropout_rate=0.0,
                    vocab_size=VOCABULARY, use_cache=False, decoder_start_token_id=0, pad_token_id=0,
                )  # fmt: skip
                cls = t.T5ForConditionalGeneration
            case "vit":
                config = t.ViTConfig(
                    **size, intermediate_size=256, image_size=32, patch_size=8, num_labels=11,
                    problem_type="single_label_classification",
                )  # fmt: skip
                cls = t.ViTForImageClassification
            case "resnet":
                config = t.ResNetConfig(
                    depths=[1, 2], hidden_sizes=[32, 64], embedding_size=16, layer_type="bottleneck", num_labels=11,
                    problem_type="single_label_classification",
                )  # fmt: skip
                cls = t.ResNetForImageClassification
            case _:
                raise KeyError(name)
        config._attn_implementation = attention
        if name == "mixtral":
            from meshwright.graph.transformers_hooks import register_experts

            config._experts_implementation = "eager" if attention == "eager" else register_experts()
        with torch.device(device):
            return cls(config).train()

    return build


class UserNet(nn.Module):
    """A loop over a ModuleDict, nested inputs, a dict output, a tied weight, in-place additions, a scalar parameter."""

    def __init__(self, width: int = 32, blocks: int = 2, vocabulary: int = 50) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleDict(
            {
                f"b{i}": nn.ModuleDict(
                    {"n": nn.LayerNorm(width), "f": nn.Linear(width, 4 * width), "g": nn.Linear(4 * width, width)}
                )
                for i in range(blocks)
            }
        )
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, torch.Tensor], steps: int = 2) -> dict[str, Any]:
        x = self.embedding(batch["tokens"])
        means = []
        for _ in range(steps):
            for block in self.blocks.values():
                y = block["g"](F.gelu(block["f"](block["n"](x)))) * self.scale
                y += x
                x = y
            means.append(x.mean())
        x = x[:, 1:]
        logits = x @ self.embedding.weight.t()
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()) + sum(means) * 0.5
        return {"loss": loss, "stats": {"means": means, "name": "user"}}


class UNet(nn.Module):
    """Convolutions with biases, group norms, pools, transposed convolutions, joined channels."""

    def __init__(self, channels: tuple[int, ...] = (8, 16), classes: int = 11) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(4, o), nn.SiLU())

        self.down = nn.ModuleList([block(3 if i == 0 else channels[i - 1], c) for i, c in enumerate(channels)])
        self.widen = nn.ConvTranspose2d(channels[1], channels[0], 2, 2)
        self.up = block(channels[1], channels[0])
        self.head = nn.Conv2d(channels[0], classes, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        first = self.down[0](x)
        second = self.down[1](F.max_pool2d(first, 2))
        return F.cross_entropy(self.head(self.up(torch.cat([self.widen(second), first], 1))), labels)


class Recommender(nn.Module):
    """Embedding bags, pairwise products, an index by a constant, a binary loss."""

    def __init__(self, tables: int = 3, rows: int = 20, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables)])
        self.bottom = nn.Sequential(nn.Linear(5, width), nn.ReLU())
        pairs = torch.tril_indices(tables + 1, tables + 1, -1, device="cpu")
        self.register_buffer("rows", pairs[0])
        self.register_buffer("columns", pairs[1])
        self.top = nn.Linear(width + pairs.shape[1], 1)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense)
        offsets = torch.arange(dense.shape[0])
        t = torch.stack([x, *(table(sparse[i], offsets) for i, table in enumerate(self.tables))], 1)
        pairs = torch.bmm(t, t.transpose(1, 2))[:, self.rows, self.columns]
        score = self.top(torch.cat([x, pairs], 1)).squeeze(-1)
        return F.binary_cross_entropy_with_logits(score, labels)


class Recurrent(nn.Module):
    """An LSTM and a GRU over embedded tokens."""

    def __init__(self, width: int = 16, vocabulary: int = 50) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, 1, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(2 * width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(self.embedding(tokens))
        x, _ = self.gru(x)
        return F.cross_entropy(self.out(x).flatten(0, 1), labels.flatten())


# One small model of each family that the zoo adds to those above, as the zoo itself scales it down.
FROM_ZOO = {
    "qwen3": ("qwen3-235b", {"kv_heads": 2, "ffn": 48, "experts": 8, "seq": LENGTH}),
    "deepseek": ("deepseek-v3", {"ffn": 48, "experts": 8, "seq": LENGTH}),
    "wide": ("wrn-50-2", {"width": 128, "image": 32}),
    "dlrm": ("dlrm", {"width": 16, "ffn": 32}),
    "gnmt": ("gnmt-8", {"width": 32, "seq": 7}),
    "levels": ("unet", {"width": 64, "image": 32}),
}


def from_zoo(name: str) -> tuple[Callable[[str, str], nn.Module], Callable[[int, str], dict[str, Any]]]:
    """build and inputs of a model of the zoo at two blocks."""
    entry_name, given = FROM_ZOO[name]
    sizes: dict[str, Any] = {"blocks": 2, "width": 64, "heads": 4, "vocab": 53, **given}

    def made(samples: int, device: str, attention: str) -> tuple[nn.Module, dict[str, Any]]:
        from meshwright.graph.zoo import Shrink, by_name

        return by_name()[entry_name].build(samples, device=device, shrink=Shrink(**sizes), attention=attention)

    return (
        lambda device, attention: made(1, device, attention)[0],
        lambda samples, device: made(samples, device, "eager")[1],
    )


def own(cls: Callable[[], nn.Module]) -> Callable[[str, str], nn.Module]:
    def build(device: str, attention: str) -> nn.Module:
        with torch.device(device):
            return cls().train()

    return build


def user_batch(samples: int, device: str) -> dict[str, Any]:
    return {"batch": {"tokens": tokens(samples, device, 16), "labels": tokens(samples, device, 15)}}


def unet_batch(samples: int, device: str) -> dict[str, Any]:
    return {
        "x": torch.zeros(samples, 3, 16, 16, device=device),
        "labels": torch.zeros(samples, 16, 16, dtype=torch.long, device=device),
    }


def recommender_batch(samples: int, device: str) -> dict[str, Any]:
    return {
        "dense": torch.zeros(samples, 5, device=device),
        "sparse": torch.zeros(3, samples, dtype=torch.long, device=device),
        "labels": torch.zeros(samples, device=device),
    }


def recurrent_batch(samples: int, device: str) -> dict[str, Any]:
    return {"tokens": tokens(samples, device, 7), "labels": tokens(samples, device, 7)}


MODELS: dict[str, tuple[Callable[[str, str], nn.Module], Callable[[int, str], dict[str, Any]]]] = {
    **{name: (hugging_face(name), text) for name in ("gpt2", "llama", "mistral", "qwen2", "mixtral", "bert", "t5")},
    **{name: (hugging_face(name), images) for name in ("vit", "resnet")},
    "user": (own(UserNet), user_batch),
    "unet": (own(UNet), unet_batch),
    "recommender": (own(Recommender), recommender_batch),
    "recurrent": (own(Recurrent), recurrent_batch),
    **{name: from_zoo(name) for name in FROM_ZOO},
}


def randomised(value: Any, generator: torch.Generator) -> Any:
    """The same nest with random content: whole numbers below 10, floats in [0, 1)."""
    if isinstance(value, dict):
        return {key: randomised(v, generator) for key, v in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype.is_floating_point:
        return torch.rand(value.shape, generator=generator)
    return torch.randint(0, 10, value.shape, generator=generator)


def flattened(value: dict[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    """Inputs under the names that a graph gives them."""
    found: dict[str, torch.Tensor] = {}
    for key, v in value.items():
        if isinstance(v, dict):
            found.update(flattened(v, f"{prefix}{key}."))
        elif isinstance(v, torch.Tensor):
            found[prefix + key] = v
    return found


def loss_of(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    return output["loss"] if isinstance(output, dict) else output.loss
