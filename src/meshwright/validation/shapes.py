"""Which model a measured row trained, from its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .columns import Columns, Refused
from .encoders import encoder, encoder_decoder
from .models import Adapted, Dense, Shape, padded
from .moe import plain, sparse

STYLES = {"gpt": "gpt", "mpt": "gpt", "llama": "llama", "internlm": "llama", "nemotron": "nemotron"}
VOCAB = {"gpt": 51200, "mpt": 50304, "llama": 32000, "internlm": 103168, "nemotron": 256000}
"""Where the row does not say."""


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What has adapters in MLPerf's low-rank adaptation (its reference: qkv and o projections)."""


def dense(row: Columns, tp: int) -> Dense | Adapted:
    """A decoder-only transformer without experts."""
    if row.number("experts", 0) > 1 or row.number("ep", 1) > 1:
        raise Refused("experts")
    family = row.text("family")
    hidden, heads = row.whole("hidden"), row.whole("heads")
    style = STYLES[family]
    if style == "gpt" and row.flag("swiglu"):
        style = "llama"
    elif style == "gpt" and row.whole("kv_heads", heads) < heads:
        style = "nemotron"  # of those known here, the one with two layers of feed-forward and shared keys
    model = Dense(
        style,
        row.whole("layers"),
        hidden,
        heads,
        heads if style == "gpt" else row.whole("kv_heads", heads),
        row.whole("ffn", 4 * hidden),
        padded(row.whole("vocab", VOCAB[family]), tp),
        row.whole("seq_len"),
    )
    rank = row.settings.get("lora_rank")
    return Adapted(model, int(rank), ATTENTION) if rank else model


READERS: Mapping[str, Callable[[Columns, int], Shape]] = {
    **dict.fromkeys(STYLES, dense),
    **dict.fromkeys(("deepseek", "kimi", "qwen3-moe", "mixtral"), sparse),
    "gpt-moe": plain,
    "bert": encoder,
    "t5": encoder_decoder,
}
"""Family -> reader of (row, tensor degree)."""


def shape_of(row: Columns, tp: int) -> Shape:
    """The model of a row.

    Raises:
        Refused: a kind of model that is not known here, or a column is missing.
    """
    reader = READERS.get(row.text("family"))
    if reader is None:
        raise Refused(f"a kind of model that no shape says: {row.text('family')}")
    return reader(row, tp)
