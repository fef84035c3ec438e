"""A model made smaller without changing its structure: the same modules, gates, ties and biases at other sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd

from ._entry import Config


@dataclass(frozen=True, slots=True)
class Shrink:
    """Sizes to use instead of the model's own; 0 (or below, for dropout) keeps them."""

    blocks: int = 0
    """Of the longest run of equal blocks; blocks in front of it that differ (dense ones, a first with a bias) stay."""
    width: int = 0
    heads: int = 0
    kv_heads: int = 0
    ffn: int = 0
    vocab: int = 0
    """Classes, for a classifier of images."""
    seq: int = 0
    experts: int = 0
    image: int = 0
    """Pixels of one side."""
    dropout: float = -1.0


# How the families of transformers call one and the same size.
NAMES: Mapping[str, tuple[str, ...]] = {
    "blocks": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "decoder_layers"),
    "width": ("hidden_size", "n_embd", "dim", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "ffn_hidden_size", "d_ff"),
    "vocab": ("vocab_size",),
    "seq": ("max_position_embeddings", "n_positions"),
    "expert_ffn": ("moe_intermediate_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "image": ("image_size",),
}
# Their position table begins behind the padding token: its rows are the longest sequence and pad_token_id + 1 more.
PADDED_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod"})
# The first block of each side makes the bias of positions that all others of the side add.
FIRST_HAS_BIAS = frozenset({"t5", "mt5"})
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "unk_token_id")
_DROPOUT = re.compile(r"drop(out|_path)|pdrop|layerdrop")


def size_of(config: Config, concept: str) -> int:
    """What the configuration says, or 0: one of `NAMES` is there and a number, or not."""
    return next((v for n in NAMES[concept] if isinstance(v := config.get(n), int)), 0)


def position_offset(config: Config) -> int:
    if config.get("model_type") not in PADDED_POSITIONS:
        return 0
    pad = config.get("pad_token_id", 1)
    return 1 + (pad if isinstance(pad, int) else 1)


def learned_positions(config: Config) -> bool:
    """A table of positions limits the sequence; rotary and ALiBi positions do not."""
    turned = any(key.startswith(("rope", "rotary", "partial_rotary")) and config[key] for key in config)
    return not turned and not config.get("alibi") and size_of(config, "seq") > 0


def leading_blocks(full: Config) -> int:
    """Blocks in front of the run of equal ones."""
    if full.get("model_type") in FIRST_HAS_BIAS:
        return 1
    return _number(full, "first_k_dense_replace")


def smaller(full: Config, given: Config, shrink: Shrink, seq: int) -> dict[str, object]:
    """`given` at the sizes of `shrink`.

    Args:
        full: the configuration with every default of its class written out.
        given: what the user's file says; what it leaves out is derived again from the new sizes.
        seq: tokens a sample before shrinking, for windows that shrink with it.
    """
    found = dict(given)

    def put(names: Iterable[str], value: int) -> None:
        found.update({name: value for name in names if name in full or name in given})

    width, heads = size_of(full, "width"), size_of(full, "heads")
    kv, ffn = size_of(full, "kv_heads"), size_of(full, "ffn")
    new_width = shrink.width or width
    new_heads = shrink.heads or _divisor(new_width, heads)
    if shrink.blocks:
        blocks = shrink.blocks + leading_blocks(full)
        put(NAMES["blocks"], blocks)
        found.update(_cut_lists(found, size_of(full, "blocks"), blocks))
    if (new_width, new_heads) != (width, heads) and width:
        put(NAMES["width"], new_width)
        put(NAMES["heads"], new_heads)
        found.update(_head_dims(found, width, heads, new_width, new_heads))
        if full.get("word_embed_proj_dim") == width:
            found["word_embed_proj_dim"] = new_width
    if _number(full, "kv_lora_rank"):  # latent attention: every head has keys of its own
        put(NAMES["kv_heads"], new_heads)
    elif kv:
        put(NAMES["kv_heads"], shrink.kv_heads or gcd(new_heads, max(1, kv * new_heads // max(heads, 1))))
    if shrink.ffn or (ffn and new_width != width):
        put(NAMES["ffn"], shrink.ffn or max(8, ffn * new_width // width))
        put(NAMES["expert_ffn"], shrink.ffn or max(8, size_of(full, "expert_ffn") * new_width // width))
    if shrink.experts:
        put(NAMES["experts"], shrink.experts)
        found.update(_routing(full, shrink.experts))
    if shrink.vocab:
        put(NAMES["vocab"], shrink.vocab)
        if "vocab_size" not in full:
            found["num_labels"] = shrink.vocab
        beyond = [name for name in _TOKENS if _number(full, name) >= shrink.vocab]
        found.update(dict.fromkeys(beyond, shrink.vocab - 1))
    if shrink.image:
        put(NAMES["image"], shrink.image)
    if shrink.seq:
        if learned_positions(full):
            put(NAMES["seq"], shrink.seq + position_offset(full))
        if window := _number(full, "sliding_window"):
            found["sliding_window"] = max(1, window * shrink.seq // seq)
    if shrink.dropout >= 0:
        found.update({n: shrink.dropout for n, v in full.items() if _DROPOUT.search(n) and isinstance(v, float)})
    found.update(_residual_network(full, shrink))
    return found


def _number(config: Config, name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) else 0


def _divisor(width: int, heads: int) -> int:
    """The most heads, at most as many as before, that divide the width."""
    return next((h for h in range(heads, 0, -1) if width % h == 0), 1)


def _cut_lists(given: Config, old: int, new: int) -> dict[str, object]:
    """Lists with one value a block (layer types, windows) keep their first ones."""
    return {k: list(v)[:new] for k, v in given.items() if isinstance(v, (list, tuple)) and len(v) == old}


def _head_dims(given: Config, width: int, heads: int, new_width: int, new_heads: int) -> dict[str, object]:
    """A head size that the file states keeps its ratio to width / heads, and stays even for rotary halves."""
    found: dict[str, object] = {}
    for name in ("head_dim", "d_kv", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        if old := _number(given, name):
            found[name] = max(2, old * heads * new_width // (width * new_heads) // 2 * 2)
    for name in ("q_lora_rank", "kv_lora_rank"):
        if old := _number(given, name):
            found[name] = max(2, old * new_width // width)
    return found


def _routing(full: Config, experts: int) -> dict[str, object]:
    """Chosen experts and groups of `experts`: a group holds two or more, and no more are chosen than the groups hold."""
    room, found = experts, dict[str, object]()
    if groups := _number(full, "n_group"):
        few = max(n for n in range(1, max(1, experts // 2) + 1) if groups % n == 0 and experts % n == 0)
        found["n_group"] = few
        found["topk_group"] = chosen = max(1, _number(full, "topk_group") * few // groups)
        room = experts // few * chosen
    if chosen := _number(full, "num_experts_per_tok"):
        found["num_experts_per_tok"] = min(room, chosen)
    return found


def _residual_network(full: Config, shrink: Shrink) -> dict[str, object]:
    """Depth and width of a ResNet are lists, one value a stage."""
    depths, widths, stem = full.get("depths"), full.get("hidden_sizes"), _number(full, "embedding_size")
    found: dict[str, object] = {}
    if not (isinstance(depths, list) and isinstance(widths, list) and stem):
        return found
    if shrink.blocks:
        found["depths"] = [min(depth, shrink.blocks) for depth in depths]
    if shrink.width:
        found["hidden_sizes"] = [max(8, w * shrink.width // widths[-1]) for w in widths]
        found["embedding_size"] = max(2, stem * shrink.width // widths[-1])
    if shrink.image:
        found["image_size"] = shrink.image  # no setting of the class: what its inputs are made by
    return found
