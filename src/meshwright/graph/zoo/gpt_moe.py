"""A GPT whose feed-forward layers are mixtures of experts, as Megatron-LM builds it: learned positions, experts of two
layers or gated, tokens dispatched. From a configuration; no published model of this kind has a name here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ._entry import Config, Inputs
from ._own import number
from ._shrink import Shrink

if TYPE_CHECKING:
    from torch import Tensor, nn

SIZES = ("layers", "width", "heads", "inner", "shared", "experts", "chosen", "vocab", "seq")


def config(*, gated: bool, own_head: bool, room: float, **sizes: int) -> Config:
    """inner, shared: widths of an expert, and of what every token takes besides (0: none); room: of an expert, over its
    even share of a sequence's tokens."""
    return {"model_type": "gpt-moe", "gated": gated, "own_head": own_head, "room": room, **{k: sizes[k] for k in SIZES}}


def build(
    config: Config, batch: int, seq: int, dtype: str, device: str, shrink: Shrink | None = None
) -> tuple[nn.Module, Inputs]:
    import torch

    from ._gpt_moe_net import GptMoe

    sizes = {k: number(config, k) for k in SIZES}
    if shrink is not None:
        wished = {
            "layers": shrink.blocks, "width": shrink.width, "heads": shrink.heads, "inner": shrink.ffn,
            "experts": shrink.experts, "vocab": shrink.vocab, "seq": shrink.seq,
        }  # fmt: skip
        sizes |= {k: v for k, v in wished.items() if v}
        sizes["shared"] = sizes["inner"] if sizes["shared"] else 0
        sizes["chosen"] = min(sizes["chosen"], sizes["experts"])
        seq = shrink.seq or seq
    with torch.device(device):
        module = GptMoe(
            gated=bool(config["gated"]), own_head=bool(config["own_head"]), room=cast(float, config["room"]), **sizes
        )
        module = module.to(getattr(torch, dtype)).train()
        return module, {name: torch.zeros(batch, seq, dtype=torch.int64) for name in ("tokens", "labels")}


def values(module: nn.Module, name: str) -> int:
    return int(module.lm_head.out_features)  # type: ignore[union-attr, arg-type]


def text(tokens: Tensor) -> Inputs:
    return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:]}
