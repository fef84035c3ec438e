"""DeepSeek-V3: latent attention; three dense layers, then 256 experts in eight groups, and one that every token takes."""

from __future__ import annotations

from ._entry import Config, Entry

# DeepSeek-AI 2024 (DeepSeek-V3 Technical Report), section 4.2: model hyper-parameters; sequences of 4,096 in pre-training
# and 15,360 of them a step once the batch has grown. Its second loss, on the token after the next, is left out.
LAYERS, DENSE, WIDTH, HEADS, FFN, VOCAB, SEQ = 61, 3, 7168, 128, 18432, 129280, 4096
QUERY_RANK, KEY_RANK, PLAIN, ROTARY, VALUE = 1536, 512, 128, 64, 128
EXPERTS, CHOSEN, EXPERT_FFN, SHARED, GROUPS, GROUPS_CHOSEN = 256, 8, 2048, 1, 8, 4


def config() -> Config:
    return {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_hidden_layers": LAYERS,
        "first_k_dense_replace": DENSE,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": QUERY_RANK,
        "kv_lora_rank": KEY_RANK,
        "qk_nope_head_dim": PLAIN,
        "qk_rope_head_dim": ROTARY,
        "v_head_dim": VALUE,
        "intermediate_size": FFN,
        "moe_intermediate_size": EXPERT_FFN,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "n_shared_experts": SHARED,
        "n_group": GROUPS,
        "topk_group": GROUPS_CHOSEN,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,
        "vocab_size": VOCAB,
        "max_position_embeddings": SEQ,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "rope_interleave": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


def parameters() -> int:
    """Queries, and keys with values, go through a narrow latent with a norm; the router's bias is no parameter."""
    queries = WIDTH * QUERY_RANK + QUERY_RANK + QUERY_RANK * HEADS * (PLAIN + ROTARY)
    keys = WIDTH * (KEY_RANK + ROTARY) + KEY_RANK + KEY_RANK * HEADS * (PLAIN + VALUE)
    every = queries + keys + HEADS * VALUE * WIDTH + 2 * WIDTH
    experts = (EXPERTS + SHARED) * 3 * WIDTH * EXPERT_FFN + EXPERTS * WIDTH
    return 2 * VOCAB * WIDTH + LAYERS * every + DENSE * 3 * WIDTH * FFN + (LAYERS - DENSE) * experts + WIDTH


ENTRIES = (Entry("deepseek-v3", "deepseek", parameters(), 15360, SEQ, "DeepSeek-AI 2024, section 4.2", config()),)
