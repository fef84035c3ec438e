"""Scaled dot-product attention: batch, heads and queries are free; every query needs all keys."""

from __future__ import annotations

from math import prod

from ..ir import Rule
from .call import Call, Kind, Saved
from .space import Names, Space, broadcast


def _attention(call: Call) -> Rule:
    """q[…, heads, s, d], k[…, kv, t, d], v[…, kv, t, e]; with enable_gqa the heads of q are [kv][group]."""
    space = Space()
    q, k, v = (call.shape(i) for i in range(3))
    batch = [space.factor("batch" if i == 0 else f"batch{i}", n) for i, n in enumerate(q[:-3])]
    heads: list[Names] = []
    heads_kv: list[Names] = []
    if len(q) > 2:
        kv = space.factor("heads", k[-3])
        heads = [kv + space.factor("group", q[-3] // k[-3])]
        heads_kv = [kv]
    s = space.factor("queries", q[-2])
    t = space.fixed("keys", k[-2])
    d, e = space.fixed("width", q[-1]), space.fixed("value_width", v[-1])
    operands = [[*batch, *heads, s, d], [*batch, *heads_kv, t, d], [*batch, *heads_kv, t, e]]
    scores = [*batch, *heads, s, t]
    operands += [broadcast(scores, spec.shape) for spec in call.operands[3:]]
    return space.rule(operands, [[*batch, *heads, s, e]])


def _flops(call: Call) -> float:
    """Both products over the full square, masked or not: 2 · batch · heads · s · t · (d + e)."""
    q, k, v = (call.shape(i) for i in range(3))
    return 2.0 * prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _saved(call: Call) -> Saved:
    """q, k, v, the result, the log-sum-exp in float32, a mask (of truth values: as numbers of the dtype of q)."""
    extra = 4.0 * prod(call.shape(0)[:-1])
    masks = [i for i in range(3, len(call.operands)) if call.operands[i].dtype != "bool"]
    extra += sum(s.elements * call.operands[0].item for s in call.operands[3:] if s.dtype == "bool")
    return Saved(operands=(0, 1, 2, *masks), results=(0,), extra=float(extra))


KINDS = (Kind("scaled_dot_product_attention", _attention, _flops, _saved, light=False),)
