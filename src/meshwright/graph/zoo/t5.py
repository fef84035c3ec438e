"""T5: an encoder and a decoder that reads it; positions are a learned bias that the first block makes and all add."""

from __future__ import annotations

from ._entry import Config, Entry

# Raffel et al. 2020, section 3.7 (model sizes) and 3.1.2 (inputs of 512 tokens); 2^11 sequences a step in the final runs.
# Layers of each side, width, heads, width of a head, feed-forward.
SIZES = {"t5-large": (24, 1024, 16, 64, 4096), "t5-11b": (24, 1024, 128, 128, 65536)}
# The released vocabulary of 32,100 pieces, padded to a multiple of 128; 32 buckets of distances for each side.
VOCAB, SEQ, BATCH, BUCKETS = 32128, 512, 2048, 32


def config(layers: int, width: int, heads: int, head: int, ffn: int) -> Config:
    """Dropout is off: a plan is compared with one device number by number."""
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "num_layers": layers,
        "num_decoder_layers": layers,
        "d_model": width,
        "num_heads": heads,
        "d_kv": head,
        "d_ff": ffn,
        "vocab_size": VOCAB,
        "relative_attention_num_buckets": BUCKETS,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": True,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def parameters(layers: int, width: int, heads: int, head: int, ffn: int) -> int:
    """One embedding for both sides and the head; a decoder block attends twice; norms have no bias, nothing else either."""
    attention, feed = 4 * width * heads * head, 2 * width * ffn
    encoder, decoder = attention + feed + 2 * width, 2 * attention + feed + 3 * width
    return VOCAB * width + layers * (encoder + decoder) + 2 * (BUCKETS * heads + width)


ENTRIES = tuple(
    Entry(name, "t5", parameters(*size), BATCH, SEQ, "Raffel et al. 2020, section 3.7", config(*size))
    for name, size in SIZES.items()
)
