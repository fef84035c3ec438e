"""GNMT with eight layers: recurrent encoder and decoder, and an additive attention from the one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._entry import Config, Entry, Inputs
from ._own import number
from ._shrink import Shrink

if TYPE_CHECKING:
    from torch import Tensor, nn

# Wu et al. 2016 (Google's Neural Machine Translation System), section 3 and 8.3: 8 layers of 1,024 on both sides, the
# first of the encoder in both directions, 32 K word pieces. Sentences of 50 tokens and 1,024 of them a step are our choice.
LAYERS, WIDTH, VOCAB, SEQ, BATCH = 8, 1024, 32000, 50, 1024


def config() -> Config:
    return {"model_type": "gnmt", "layers": LAYERS, "width": WIDTH, "vocab": VOCAB, "seq": SEQ}


def parameters() -> int:
    """An LSTM has four gates with two biases; the first two of the encoder and the rest of the decoder read 2 widths."""

    def lstm(inputs: int) -> int:
        return 4 * WIDTH * (inputs + WIDTH + 2)

    encoder = 2 * lstm(WIDTH) + lstm(2 * WIDTH) + (LAYERS - 2) * lstm(WIDTH)
    decoder = lstm(WIDTH) + (LAYERS - 1) * lstm(2 * WIDTH)
    attention = 2 * WIDTH**2 + WIDTH
    return 2 * VOCAB * WIDTH + encoder + decoder + attention + (WIDTH + 1) * VOCAB


def build(
    config: Config, batch: int, seq: int, dtype: str, device: str, shrink: Shrink | None = None
) -> tuple[nn.Module, Inputs]:
    import torch

    from ._gnmt_net import Gnmt

    layers, width, vocab = number(config, "layers"), number(config, "width"), number(config, "vocab")
    if shrink is not None:
        layers = shrink.blocks + 2 if shrink.blocks else layers
        width, vocab, seq = shrink.width or width, shrink.vocab or vocab, shrink.seq or seq
    with torch.device(device):
        module = Gnmt(layers=layers, width=width, vocab=vocab).to(getattr(torch, dtype)).train()
        return module, {name: torch.zeros(batch, seq, dtype=torch.int64) for name in ("source", "target", "labels")}


def values(module: nn.Module, name: str) -> int:
    return int(module.out.out_features)  # type: ignore[union-attr, arg-type]


def text(tokens: Tensor) -> Inputs:
    """A text says itself: the encoder has read all tokens when the decoder predicts the next."""
    return {"source": tokens[:, :-1], "target": tokens[:, :-1], "labels": tokens[:, 1:]}


ENTRIES = (Entry("gnmt-8", "gnmt", parameters(), BATCH, SEQ, "Wu et al. 2016, section 8.3", config()),)
