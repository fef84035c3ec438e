"""The module of a GPT with experts, kept apart because it needs torch to be defined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dispatch import moe_combine, moe_dispatch, sizes_of


class Attention(nn.Module):
    """Causal; queries, keys and values without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        samples, seq, width = x.shape
        q, k, v = (p(x).view(samples, seq, self.heads, -1).transpose(1, 2) for p in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(samples, seq, width))
        return out


class Feed(nn.Module):
    """Two layers, or three where they are gated."""

    def __init__(self, width: int, inner: int, gated: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner, bias=False)
        self.gate = nn.Linear(width, inner, bias=False) if gated else None
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        out: Tensor = self.down(inner)
        return out


class Experts(nn.Module):
    """Every token goes to `chosen` of the experts, in the order of arrival while they have room."""

    def __init__(self, width: int, inner: int, experts: int, chosen: int, gated: bool, room: float, seq: int) -> None:
        super().__init__()
        self.experts, self.chosen = experts, chosen
        self.group = sizes_of(room, chosen, experts, seq)
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, width, inner))
        self.gate = nn.Parameter(torch.empty(experts, width, inner)) if gated else None
        self.down = nn.Parameter(torch.empty(experts, inner, width))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.flatten(0, 1)
        share, index = self.router(hidden).softmax(-1).topk(self.chosen)
        rows, weight = moe_dispatch(hidden, index, share, self.experts, *self.group)
        inner = torch.bmm(rows, self.up)
        inner = F.gelu(inner) if self.gate is None else F.silu(torch.bmm(rows, self.gate)) * inner
        y = torch.bmm(inner * weight.unsqueeze(-1), self.down)
        summed: Tensor = moe_combine(y, index, *self.group).view(x.shape)
        return summed


class Block(nn.Module):
    def __init__(self, width: int, heads: int, experts: Experts, shared: Feed | None) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp, self.shared = experts, shared

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        y = self.second(x)
        routed = self.mlp(y)
        out: Tensor = x + (routed if self.shared is None else routed + self.shared(y))
        return out


class GptMoe(nn.Module):
    """A GPT with learned positions, every feed-forward a mixture; the head is the embedding unless `own_head`."""

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        inner: int,
        shared: int,
        experts: int,
        chosen: int,
        gated: bool,
        own_head: bool,
        room: float,
        vocab: int,
        seq: int,
    ) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocab, width), nn.Embedding(seq, width)

        def block() -> Block:
            routed = Experts(width, inner, experts, chosen, gated, room, seq)
            return Block(width, heads, routed, Feed(width, shared, gated) if shared else None)

        self.layers = nn.ModuleList([block() for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        if not own_head:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Both [samples, seq]; labels are the tokens that follow."""
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.norm(x))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}
