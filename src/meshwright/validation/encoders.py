"""Encoders (BERT) and encoder-decoders (T5) of measured rows.

BERT's loss is on masked tokens alone, at most 15 % of them. Some software computes its head only there (NVIDIA's
DeepLearningExamples: modeling.py picks them from the encoder's output before BertPreTrainingHeads, and its recipes mask at most
20 of 128 tokens), some at every position and throws the rest away (Megatron-LM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..graph.source import ConfigSource
from ..graph.zoo import Config, Inputs, Shrink
from .columns import Columns, Refused
from .models import padded

if TYPE_CHECKING:
    from torch import Tensor, nn

MASKED = {128: 20, 512: 80}
"""Most masked tokens of a sequence in the recipes of DeepLearningExamples, by its length."""
BERT_WORDS = 30522
T5_V1_1: Mapping[str, tuple[int, int, int, int, int]] = {
    "t5-v1.1-small": (8, 512, 6, 64, 1024),
    "t5-v1.1-large": (24, 1024, 16, 64, 2816),
}
"""Layers of a side, width, heads, width of a head, feed-forward: as in the released configurations."""
T5_WORDS = 32128


@dataclass(frozen=True, slots=True)
class Encoder:
    """BERT: every position sees all, the loss is on masked tokens. ffn = width of the feed-forward layer."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    seq: int
    masked: int
    """Positions that the head computes."""

    @property
    def capacity(self) -> str | float:
        return "no-drop"

    def shortened(self) -> Encoder:
        """Three blocks: first, middle and last."""
        return replace(self, layers=3)

    def config(self, layers: int) -> Config:
        """A configuration of the transformers library with `layers` blocks."""
        return {
            "model_type": "bert", "architectures": ["BertForMaskedLM"], "num_hidden_layers": layers,
            "hidden_size": self.hidden, "num_attention_heads": self.heads, "intermediate_size": self.ffn,
            "vocab_size": self.vocab, "max_position_embeddings": self.seq, "type_vocab_size": 2,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        }  # fmt: skip

    @property
    def flops(self) -> float:
        """Useful FLOPs of one sample, forward and backward: products thrice."""
        layer = 4 * self.hidden * self.hidden + 2 * self.hidden * self.ffn + 2 * self.seq * self.hidden
        return 6.0 * (self.seq * self.layers * layer + self.masked * self.hidden * (self.hidden + self.vocab))

    @property
    def masked_flops(self) -> float:
        """None: no mask hides anything."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class MaskedSource(ConfigSource):
    """A BERT whose head computes `masked` positions of a sequence; which of them, costs nothing."""

    masked: int

    def identity(self) -> Mapping[str, object]:
        return {**super().identity(), "masked": self.masked}

    def build(
        self,
        batch: int = 0,
        seq: int = 0,
        dtype: str = "float32",
        *,
        device: str = "meta",
        shrink: Shrink | None = None,
        attention: str = "meshwright",
    ) -> tuple[nn.Module, Inputs]:
        from torch import nn

        module, inputs = super().build(batch, seq, dtype, device=device, shrink=shrink, attention=attention)
        masked = self.masked

        class OnMasked(nn.Module):
            """The head of some positions."""

            def __init__(self, head: nn.Module) -> None:
                super().__init__()
                self.head = head

            def forward(self, hidden: Tensor) -> Tensor:
                found: Tensor = self.head(hidden[:, :masked])
                return found

        module.cls = OnMasked(module.cls)  # type: ignore[arg-type]
        return module, {**inputs, "labels": inputs["labels"][:, :masked].contiguous()}


@dataclass(frozen=True, slots=True)
class EncoderDecoder:
    """T5: relative positions, a decoder of a quarter of the encoder's positions. Captured whole: its first blocks differ."""

    side: int
    """Layers of the encoder, and of the decoder."""
    hidden: int
    heads: int
    head: int
    ffn: int
    gated: bool
    """Gated feed-forward and a head of its own (version 1.1)."""
    vocab: int
    seq: int

    @property
    def layers(self) -> int:
        return 2 * self.side

    @property
    def capacity(self) -> str | float:
        return "no-drop"

    def shortened(self) -> EncoderDecoder:
        return self

    def config(self, layers: int) -> Config:
        """A configuration of the transformers library with `layers` blocks, half on each side."""
        return {
            "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "num_layers": layers // 2,
            "num_decoder_layers": layers // 2, "d_model": self.hidden, "num_heads": self.heads, "d_kv": self.head,
            "d_ff": self.ffn, "vocab_size": self.vocab, "relative_attention_num_buckets": 32,
            "feed_forward_proj": "gated-gelu" if self.gated else "relu", "tie_word_embeddings": not self.gated,
            "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        }  # fmt: skip

    @property
    def flops(self) -> float:
        """Useful FLOPs of one sample, forward and backward: products thrice; the decoder's own attention halved."""
        inner, short = self.heads * self.head, self.seq // 4
        attend, feed = 4 * self.hidden * inner, (3 if self.gated else 2) * self.hidden * self.ffn
        encoder = self.seq * (attend + feed + 2 * self.seq * inner)
        decoder = short * (1.5 * attend + feed + (short + 2 * self.seq) * inner) + self.seq * attend / 2
        return 6.0 * (self.side * (encoder + decoder) + short * self.hidden * self.vocab)

    @property
    def masked_flops(self) -> float:
        """Of the decoder's own attention."""
        return 6.0 * self.side * (self.seq // 4) ** 2 * self.heads * self.head


def encoder(row: Columns, tp: int) -> Encoder:
    """BERT as the row has it; its vocabulary is padded as Megatron-LM pads where the row gives none."""
    hidden, seq = row.whole("hidden"), row.whole("seq_len")
    return Encoder(
        row.whole("layers"), hidden, row.whole("heads"), row.whole("ffn", 4 * hidden),
        row.whole("vocab", padded(BERT_WORDS, tp)), seq, MASKED.get(seq, seq) if row.text("source") == "nv-dle" else seq,
    )  # fmt: skip


def encoder_decoder(row: Columns, tp: int) -> EncoderDecoder:
    """T5 of Megatron-LM (BERT's words, and 100 more for spans) by its columns, or a released version 1.1 by its name.

    Raises:
        Refused: neither.
    """
    released = T5_V1_1.get(row.text("model"))
    if released:
        return EncoderDecoder(*released, True, T5_WORDS, row.whole("seq_len"))
    hidden, heads, seq = row.whole("hidden"), row.whole("heads"), row.whole("seq_len")
    if row.settings.get("dec_seq") != str(seq // 4) or row.settings.get("enc_layers") != row.settings.get("dec_layers"):
        raise Refused("an encoder-decoder of two lengths that capture does not build")
    vocab = padded(BERT_WORDS + 100, tp)
    return EncoderDecoder(row.whole("layers"), hidden, heads, hidden // heads, row.whole("ffn"), False, vocab, seq)
