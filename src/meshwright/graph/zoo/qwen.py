"""Qwen3-235B-A22B: a decoder with grouped keys, norms of queries and keys, and 128 small experts, eight for each token."""

from __future__ import annotations

from ._entry import Config, Entry

# Yang et al. 2025 (Qwen3 Technical Report), table 2: layers, heads, experts; widths as in the released configuration.
# Sequences of 4,096 as in section 3.2, first stage; 4,096 of them a step are our choice.
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD = 94, 4096, 64, 4, 128
FFN, EXPERTS, CHOSEN, VOCAB, SEQ = 1536, 128, 8, 151936, 4096


def config() -> Config:
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "intermediate_size": 3 * WIDTH,
        "moe_intermediate_size": FFN,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "vocab_size": VOCAB,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "use_sliding_window": False,
        "output_router_logits": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    }


def parameters() -> int:
    """Heads of 128 make the attention wider than the model; no layer has a dense feed-forward."""
    attention = 2 * WIDTH * HEADS * HEAD + 2 * WIDTH * KV_HEADS * HEAD + 2 * HEAD
    block = attention + EXPERTS * 3 * WIDTH * FFN + EXPERTS * WIDTH + 2 * WIDTH
    return 2 * VOCAB * WIDTH + LAYERS * block + WIDTH


ENTRIES = (Entry("qwen3-235b", "qwen3", parameters(), 4096, SEQ, "Yang et al. 2025, table 2", config()),)
