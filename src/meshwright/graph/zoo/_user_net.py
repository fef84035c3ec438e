"""The module of `user-net`, kept apart because it needs torch to be defined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UserNet(nn.Module):
    """Mixes positions, then features, in each block of a ModuleDict; no block has a forward of its own."""

    def __init__(self, *, blocks: int, width: int, ffn: int, vocab: int, seq: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        nn.init.normal_(self.embed.weight, std=width**-0.5)  # it is the head too: logits of order one
        self.blocks = nn.ModuleDict({f"block{i}": self._block(width, ffn, seq) for i in range(blocks)})
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(()))

    @staticmethod
    def _block(width: int, ffn: int, seq: int) -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {
            "mix_norm": nn.LayerNorm(width),
            "mix": nn.Linear(seq, seq),
            "norm": nn.LayerNorm(width),
            "up": nn.Linear(width, ffn),
            "down": nn.Linear(ffn, width),
        }
        return nn.ModuleDict(parts)

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """tokens and labels: [samples, seq], labels are the tokens that follow."""
        x = self.embed(tokens)
        for block in self.blocks.values():
            assert isinstance(block, nn.ModuleDict)
            mixed = block["mix"](block["mix_norm"](x).transpose(1, 2)).transpose(1, 2)
            x = x + mixed * self.scale
            x = x + block["down"](F.gelu(block["up"](block["norm"](x))))
        logits = F.linear(self.norm(x), self.embed.weight)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}
