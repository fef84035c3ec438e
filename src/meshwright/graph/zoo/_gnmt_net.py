"""The module of GNMT, kept apart because it needs torch to be defined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """A recurrent layer; its input passes it by where `residual` is set."""

    def __init__(self, inputs: int, width: int, *, both: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True, bidirectional=both)
        self.residual = residual

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x[samples, seq, width] and, joined to it, context[samples, seq, width] -> the hidden states."""
        y: Tensor = self.lstm(x if context is None else torch.cat([x, context], dim=-1))[0]
        return x + y if self.residual else y


class Gnmt(nn.Module):
    """The encoder's third layer is the first with a residual connection, and so is the decoder's."""

    def __init__(self, *, layers: int, width: int, vocab: int) -> None:
        super().__init__()

        self.source_embed, self.target_embed = nn.Embedding(vocab, width), nn.Embedding(vocab, width)
        rest = [Layer(width, width, residual=True) for _ in range(layers - 2)]
        self.encoder = nn.ModuleList([Layer(width, width, both=True), Layer(2 * width, width), *rest])
        rest = [Layer(2 * width, width, residual=i > 0) for i in range(layers - 1)]
        self.decoder = nn.ModuleList([Layer(width, width), *rest])
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.out = nn.Linear(width, vocab)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """All three [samples, seq]; labels are the tokens that follow those of `target`."""
        x = self.source_embed(source)
        for layer in self.encoder:
            x = layer(x)
        y = self.decoder[0](self.target_embed(target))
        context = self._attend(y, x)
        for layer in self.decoder[1:]:
            y = layer(y, context)
        logits = self.out(y)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    def _attend(self, y: Tensor, memory: Tensor) -> Tensor:
        """y[samples, targets, width], memory[samples, sources, width] -> [samples, targets, width]."""
        both = torch.tanh(self.query(y).unsqueeze(2) + self.key(memory).unsqueeze(1))
        share = self.score(both).squeeze(-1).softmax(dim=-1)
        return torch.matmul(share, memory)
