"""Mixtures of experts of measured rows: their shapes, published ones by name, and the configurations they are captured from.

Tokens are dispatched to their even share of rows per expert (capacity 1): forced balanced routing. What learned routing
costs more is `Recipe.routing_skew`, a setting of the row, not of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..graph.zoo import Config, gpt_moe
from .columns import Columns, Refused
from .models import padded

EVEN = 1.0
"""Room of an expert over its even share of tokens."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-AI, arXiv 2405.04434, §2.1). Widths."""

    queries: int
    """Of the queries' latent; 0 = queries come straight from the hidden state."""
    keys: int
    plain: int
    """Of a head, without positions."""
    rotary: int
    value: int


@dataclass(frozen=True, slots=True)
class Sparse:
    """A decoder whose layers, all but the first `dense`, have experts."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    """Width of a head; says nothing with latent attention."""
    dense: int
    """Leading layers without experts."""
    ffn: int
    """Width of the feed-forward of those."""
    experts: int
    chosen: int
    expert_ffn: int
    shared_ffn: int
    """Width that every token takes besides its experts."""
    vocab: int
    seq: int
    latent: Latent | None = None
    norms: bool = False
    """Of queries and keys, before their product."""
    groups: int = 1
    groups_chosen: int = 1
    """A token's experts are of so many of the groups."""
    later: int = 0
    """Layers that also predict the token after the next (DeepSeek-AI, arXiv 2412.19437, §2.2), among `layers`; their
    second pass through the head is left out."""

    @property
    def capacity(self) -> float:
        return EVEN

    def shortened(self) -> Sparse:
        """Three layers of each kind that there is; the model itself if it has no more."""
        dense = min(self.dense, 3)
        return replace(self, layers=min(dense + 3, self.layers), dense=dense, later=0)

    def config(self, layers: int) -> Config:
        """A configuration of the transformers library with `layers` layers."""
        sizes: dict[str, object] = {
            "num_hidden_layers": layers, "hidden_size": self.hidden, "num_attention_heads": self.heads,
            "num_experts_per_tok": self.chosen, "vocab_size": self.vocab, "max_position_embeddings": self.seq,
            "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
        }  # fmt: skip
        if self.latent:
            latent = self.latent
            return {
                "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], **sizes,
                "num_key_value_heads": self.heads, "first_k_dense_replace": self.dense, "intermediate_size": self.ffn,
                "moe_intermediate_size": self.expert_ffn, "n_routed_experts": self.experts,
                "n_shared_experts": self.shared_ffn // self.expert_ffn, "n_group": self.groups,
                "topk_group": self.groups_chosen, "q_lora_rank": latent.queries or None, "kv_lora_rank": latent.keys,
                "qk_nope_head_dim": latent.plain, "qk_rope_head_dim": latent.rotary, "v_head_dim": latent.value,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            }  # fmt: skip
        sizes |= {"num_key_value_heads": self.kv_heads, "head_dim": self.head}
        if self.dense or self.shared_ffn:
            raise Refused("experts beside dense layers or shared experts without latent attention")
        if self.norms:
            return {
                "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **sizes,
                "intermediate_size": self.ffn, "moe_intermediate_size": self.expert_ffn, "num_experts": self.experts,
            }  # fmt: skip
        return {
            "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], **sizes,
            "intermediate_size": self.expert_ffn, "num_local_experts": self.experts, "sliding_window": None,
        }  # fmt: skip

    @property
    def flops(self) -> float:
        """Useful FLOPs of one sample, forward and backward: products thrice, causal attention halved, no recompute."""
        h = self.hidden
        if self.latent:
            of = self.latent
            query, both = of.plain + of.rotary, of.plain + of.value
            queries = (h + self.heads * query) * of.queries if of.queries else h * self.heads * query
            weights = queries + h * (of.keys + of.rotary) + of.keys * self.heads * both + self.heads * of.value * h
        else:
            weights = h * self.head * 2 * (self.heads + self.kv_heads)
        experts = 3 * h * (self.chosen * self.expert_ffn + self.shared_ffn) + h * self.experts
        sparse = self.layers - self.dense
        inner = self.layers * weights + self.dense * 3 * h * self.ffn + sparse * experts + h * self.vocab
        return 6.0 * self.seq * inner + self.masked_flops

    @property
    def masked_flops(self) -> float:
        """FLOPs of one sample on scores that a causal mask hides; as many as on those that it shows."""
        of = self.latent
        width = (of.plain + of.rotary + of.value) / 2 if of else self.head
        return 6.0 * self.layers * self.seq * self.seq * self.heads * width


@dataclass(frozen=True, slots=True)
class Plain:
    """A GPT of Megatron-LM whose feed-forward layers are all mixtures."""

    layers: int
    hidden: int
    heads: int
    experts: int
    chosen: int
    expert_ffn: int
    shared_ffn: int
    """Width that every token takes besides its experts."""
    gated: bool
    own_head: bool
    vocab: int
    seq: int

    @property
    def capacity(self) -> str | float:
        """Says nothing: the configuration has the room of its experts."""
        return "no-drop"

    def shortened(self) -> Plain:
        """Three blocks: first, middle and last."""
        return replace(self, layers=3)

    def config(self, layers: int) -> Config:
        """A configuration of the zoo's own GPT with experts."""
        return gpt_moe.config(
            gated=self.gated, own_head=self.own_head, room=EVEN, layers=layers, width=self.hidden, heads=self.heads,
            inner=self.expert_ffn, shared=self.shared_ffn, experts=self.experts, chosen=self.chosen, vocab=self.vocab,
            seq=self.seq,
        )  # fmt: skip

    @property
    def flops(self) -> float:
        """Useful FLOPs of one sample, forward and backward: products thrice, causal attention halved, no recompute."""
        h = self.hidden
        feed = (3 if self.gated else 2) * h * (self.chosen * self.expert_ffn + self.shared_ffn)
        layer = 4 * h * h + feed + h * self.experts
        return 6.0 * self.seq * (self.layers * layer + h * self.vocab) + self.masked_flops

    @property
    def masked_flops(self) -> float:
        """FLOPs of one sample on scores that a causal mask hides; as many as on those that it shows."""
        return 6.0 * self.layers * self.seq * self.seq * self.hidden


_V3 = Latent(1536, 512, 128, 64, 128)
PUBLIC: Mapping[str, Sparse] = {
    # As in the released configurations; sequence and vocabulary are replaced by the row's own.
    "deepseek-v2": Sparse(60, 5120, 128, 128, 0, 1, 12288, 160, 6, 1536, 3072, 102400, 4096, _V3, False, 8, 3),
    "deepseek-v3": Sparse(61, 7168, 128, 128, 0, 3, 18432, 256, 8, 2048, 2048, 129280, 4096, _V3, False, 8, 4),
    "kimi-k2": Sparse(61, 7168, 64, 64, 0, 1, 18432, 384, 8, 2048, 2048, 163840, 4096, _V3),
    "moonlight-16b-a3b": Sparse(
        27, 2048, 16, 16, 0, 1, 11264, 64, 6, 1408, 2816, 163840, 8192, replace(_V3, queries=0)
    ),
    "qwen3-30b-a3b": Sparse(48, 2048, 32, 4, 128, 0, 6144, 128, 8, 768, 0, 151936, 4096, None, True),
    "qwen3-235b-a22b": Sparse(94, 4096, 64, 4, 128, 0, 12288, 128, 8, 1536, 0, 151936, 4096, None, True),
    "mixtral-8x7b": Sparse(32, 4096, 32, 8, 128, 0, 14336, 8, 2, 14336, 0, 32000, 4096),
    "mixtral-8x22b": Sparse(56, 6144, 48, 8, 128, 0, 16384, 8, 2, 16384, 0, 32768, 4096),
}


def sparse(row: Columns, tp: int) -> Sparse:
    """The published model of the row's name, with as many layers and words as the row had.

    Raises:
        Refused: a name whose shape is not known here, or columns that contradict it.
    """
    public = PUBLIC.get(row.text("model"))
    if public is None:
        raise Refused(f"mixture of experts whose shape is not published with it: {row.text('model')}")
    layers = row.whole("layers", public.layers)
    found = replace(
        public,
        layers=layers + later_of(row, layers == public.layers),
        seq=row.whole("seq_len"),
        vocab=padded(row.whole("vocab", public.vocab), tp),
        later=later_of(row, layers == public.layers),
    )
    for column, own in (("hidden", found.hidden), ("experts", found.experts), ("topk", found.chosen)):
        if row.whole(column, own) != own:
            raise Refused(f"{row.text('model')} of another {column} than the published one")
    return found


def plain(row: Columns, tp: int) -> Plain | Sparse:
    """A GPT with experts by the row's columns; with latent attention it is a DeepSeek.

    Raises:
        Refused: a column is missing.
    """
    layers, hidden, heads = row.whole("layers"), row.whole("hidden"), row.whole("heads")
    width = row.whole("moe_ffn")
    shared = round(row.number("shared_experts", 0) * width)
    vocab, seq = padded(row.whole("vocab"), tp), row.whole("seq_len")
    if not row.flag("mla"):
        return Plain(
            layers, hidden, heads, row.whole("experts"), row.whole("topk"), width, shared, row.flag("swiglu"),
            row.flag("untied"), vocab, seq,
        )  # fmt: skip
    ranks = [int(row.settings[k]) for k in ("q_lora", "kv_lora", "qk_head_dim", "qk_rope_dim", "v_head_dim")]
    later = int(row.settings.get("mtp_layers", "0"))
    return Sparse(
        layers + later, hidden, heads, heads, 0, row.whole("dense_layers"), row.whole("ffn"), row.whole("experts"),
        row.whole("topk"), width, shared, vocab, seq, Latent(*ranks), later=later,
    )  # fmt: skip


def later_of(row: Columns, whole: bool) -> int:
    """Layers for the token after the next: NVIDIA's recipes of DeepSeek-V3 have one unless they say otherwise."""
    if row.text("model") != "deepseek-v3" or not whole or row.mentions(r"w/o MTP"):
        return 0
    return 1
