"""Which ops of the blocks run again for what a measured row calls its recompute."""

from __future__ import annotations

from ..graph.ir import Graph, Op
from ..graph.kinds import kind_of

MODULES = ("mla_up_proj", "mlp", "moe_act", "layernorm")
"""Words of Megatron-LM's recompute_modules that are known here, joined by + in `Row.recompute`."""


def recomputed(graph: Graph, how: str) -> frozenset[str]:
    """Names of ops: attention; light ops and every other product (alternate); activation and norms (mlp); or those of
    `MODULES`, joined by + and ended by one: "mla_up_proj+", "mla_up_proj+mlp+"."""
    if how.endswith("+"):
        words = how.split("+")
        return frozenset(
            op.name
            for run in graph.runs
            for op in graph.ops[run.first : run.first + run.length]
            if any(_in_module(op, word) for word in words)
        )
    run = graph.runs[-1]
    found, products = set(), 0
    for op in graph.ops[run.first : run.first + run.length]:
        light = _light(op)
        attention = "attention" in op.kind
        part = op.module.rpartition(".")[2]
        if how == "attention":
            again = attention
        elif how == "mlp":
            again = light and (".mlp" in op.module or "norm" in part or "ln_" in part)
        else:
            products += not light and not attention
            again = light or (not attention and products % 2 == 0)
        if again:
            found.add(op.name)
    return frozenset(found)


def _in_module(op: Op, word: str) -> bool:
    """Up-projections of the latents and what becomes of them before attention; feed-forwards without experts; the
    activation of experts; norms of blocks."""
    part = op.module.rpartition(".")[2]
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
