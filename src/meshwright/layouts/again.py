"""What is recomputed, in words that people use.

none         nothing                              full         whole blocks
light        element-wise ops and norms           attention    the product of queries, keys and values
alternate    light ops and every other product    mlp          activation and norms of the feed-forward
a+b+         parts by Megatron-LM's names: `MODULES`
first:k      the first k blocks of every stage, whole (`Stage.recompute_blocks`)
"""

from __future__ import annotations

from collections.abc import Callable

from .._words import whole_number
from ..graph.ir import Graph, Op, Run
from ..graph.kinds import kind_of
from ..lower.fold import Folded

MODULES = ("core_attn", "mla_up_proj", "mlp", "moe_act", "layernorm")
"""Words of Megatron-LM's recompute_modules that are known here."""
WORDS = ("none", "light", "full", "attention", "alternate", "mlp")
FIRST = "first:"


def known(how: str) -> bool:
    """Whether `how` is a word of this file."""
    if how.startswith(FIRST):
        return whole_number(how.removeprefix(FIRST)) is not None
    return how in WORDS or (how.endswith("+") and all(word in MODULES for word in how.split("+")[:-1]))


def recomputed(folded: Folded, how: str) -> frozenset[str]:
    """Names of ops of repeated blocks that run again; of "first:k" those of any block: which blocks depends on the stage."""
    graph = folded.graph
    if how == "none" or how == FIRST + "0":
        return frozenset()
    if how.startswith(FIRST):
        return recomputed(folded, "full")
    if how in ("full", "light"):
        inside = (graph.ops[i] for i, p in zip(folded.ops, folded.piece, strict=True) if folded.pieces[p].run)
        return frozenset(op.name for op in inside if how == "full" or _light(op))
    if how.endswith("+"):
        words = how.split("+")[:-1]
        return _where(graph, graph.runs, lambda op: any(_in_module(op, word) for word in words))
    if how == "attention":
        return _where(graph, graph.runs, lambda op: "attention" in op.kind)
    if how == "mlp":
        return _where(graph, graph.runs[-1:], _feed_forward)
    return _alternate(graph)


def _where(graph: Graph, runs: tuple[Run, ...], again: Callable[[Op], bool]) -> frozenset[str]:
    ops = (op for r in runs for op in graph.ops[r.first : r.first + r.length])
    return frozenset(op.name for op in ops if again(op))


def _alternate(graph: Graph) -> frozenset[str]:
    found, products = set(), 0
    run = graph.runs[-1]
    for op in graph.ops[run.first : run.first + run.length]:
        product = not _light(op) and "attention" not in op.kind
        products += product
        if _light(op) or (product and products % 2 == 0):
            found.add(op.name)
    return frozenset(found)


def _feed_forward(op: Op) -> bool:
    part = op.module.rpartition(".")[2]
    return _light(op) and (".mlp" in op.module or "norm" in part or "ln_" in part)


def _in_module(op: Op, word: str) -> bool:
    """Attention; up-projections of the latents and what becomes of them before attention; feed-forwards without experts; the
    activation of experts; norms of blocks."""
    part = op.module.rpartition(".")[2]
    if word == "core_attn":
        return "attention" in op.kind
    if word == "mla_up_proj":
        return part in ("q_b_proj", "kv_b_proj") or (part == "self_attn" and _light(op))
    if word == "mlp":
        return ".mlp" in op.module and not any(w in op.module for w in (".gate", ".experts", ".shared_experts"))
    if word == "moe_act":
        return ".experts" in op.module and _light(op)
    return word == "layernorm" and "layernorm" in part


def _light(op: Op) -> bool:
    kind = kind_of(op.kind)
    return kind is not None and kind.light
