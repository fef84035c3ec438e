"""Mixtral 8x7B: a Llama-like decoder whose feed-forward is eight experts, two for each token."""

from __future__ import annotations

from ._entry import Config, Entry

# Jiang et al. 2024 (Mixtral of Experts), table 1; sequences of 4,096 and 512 of them a step are our choice (the paper
# names only its context of 32,768).
LAYERS, WIDTH, HEADS, KV_HEADS, FFN, EXPERTS, CHOSEN, VOCAB, SEQ = 32, 4096, 32, 8, 14336, 8, 2, 32000, 4096


def config() -> Config:
    return {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FFN,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "vocab_size": VOCAB,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "output_router_logits": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }


def parameters() -> int:
    attention = 2 * WIDTH**2 + 2 * WIDTH * (WIDTH * KV_HEADS // HEADS)
    block = attention + EXPERTS * 3 * WIDTH * FFN + EXPERTS * WIDTH + 2 * WIDTH
    return 2 * VOCAB * WIDTH + LAYERS * block + WIDTH


ENTRIES = (Entry("mixtral-8x7b", "mixtral", parameters(), 512, SEQ, "Jiang et al. 2024, table 1", config()),)
