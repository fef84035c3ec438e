"""What a user writes by hand: a plain module with a loop over its blocks and a dict for an output."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ._entry import Config, Entry, Inputs
from ._shrink import Shrink

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS, WIDTH, FFN, VOCAB, SEQ = 12, 1024, 4096, 32000, 512


def config() -> Config:
    return {"model_type": "user-net", "blocks": BLOCKS, "width": WIDTH, "ffn": FFN, "vocab": VOCAB, "seq": SEQ}


def parameters() -> int:
    """The embedding is the head; a block mixes positions (seq²), then features (2 width · ffn); one shared scale."""
    block = 4 * WIDTH + (SEQ**2 + SEQ) + (2 * WIDTH * FFN + FFN + WIDTH)
    return VOCAB * WIDTH + BLOCKS * block + 2 * WIDTH + 1


def build(
    config: Config, batch: int, seq: int, dtype: str, device: str, shrink: Shrink | None = None
) -> tuple[nn.Module, Inputs]:
    import torch

    from ._user_net import UserNet

    sizes = {name: cast(int, config[name]) for name in ("blocks", "width", "ffn", "vocab")}
    if shrink is not None:
        seq = shrink.seq or seq
        if shrink.width and not shrink.ffn:
            sizes["ffn"] = sizes["ffn"] * shrink.width // sizes["width"]
        for name in sizes:
            sizes[name] = getattr(shrink, name) or sizes[name]
    with torch.device(device):
        module = UserNet(**sizes, seq=seq).to(getattr(torch, dtype)).train()
        inputs = {name: torch.zeros(batch, seq, dtype=torch.int64) for name in ("tokens", "labels")}
    return module, inputs


def values(module: nn.Module, name: str) -> int:
    return int(module.embed.num_embeddings)  # type: ignore[union-attr, arg-type]


def text(tokens: Tensor) -> Inputs:
    return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:]}


ENTRIES = (Entry("user-net", "user-net", parameters(), 256, SEQ, "an example of ours, no paper", config()),)
