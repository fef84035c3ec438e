"""Llama 3.1: grouped-query attention, rotary positions, a gated feed-forward, RMS norms, no biases."""

from __future__ import annotations

from ._entry import Config, Entry

# Grattafiori et al. 2024 (The Llama 3 Herd of Models), table 3: layers, width, heads, feed-forward; 8 key-value heads
# throughout; sequences of 8,192. Batch: 405b trained its main phase on 16 M tokens a step (section 3.4.1).
SIZES = {
    "llama-3.1-8b": (32, 4096, 32, 14336, 1024),
    "llama-3.1-70b": (80, 8192, 64, 28672, 1024),
    "llama-3.1-405b": (126, 16384, 128, 53248, 2048),
}
KV_HEADS, VOCAB, SEQ = 8, 128256, 8192


def config(layers: int, width: int, heads: int, ffn: int) -> Config:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": ffn,
        "vocab_size": VOCAB,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }


def parameters(layers: int, width: int, heads: int, ffn: int) -> int:
    """Queries and output are width², keys and values narrower by heads / KV_HEADS; three feed-forward matrices."""
    attention = 2 * width**2 + 2 * width * (width * KV_HEADS // heads)
    return 2 * VOCAB * width + layers * (attention + 3 * width * ffn + 2 * width) + width


ENTRIES = tuple(
    Entry(
        name,
        "llama",
        parameters(layers, width, heads, ffn),
        batch,
        SEQ,
        "Grattafiori et al. 2024, table 3",
        config(layers, width, heads, ffn),
    )
    for name, (layers, width, heads, ffn, batch) in SIZES.items()
)
