"""What Megatron-Core demands of a layout, each with what would do."""

from __future__ import annotations

from collections.abc import Sequence

from .._words import count, plural
from ._needs import decoder
from .said import Condition
from .setup import Setup


def conditions() -> Sequence[Condition]:
    return (
        Condition("decoder", decoder),
        Condition("batch splits", _batch, unevenly=True),
        Condition("heads", _heads, unevenly=True),
        Condition("query groups", _groups),
        Condition("heads over context", _heads_over_context),
        Condition("positions over context", _positions_over_context),
        Condition("positions over tensor", _positions_over_tensor),
        Condition("experts", _experts),
        Condition("experts with tensor", _experts_with_tensor),
        Condition("ranks of interleaved", _ranks),
        Condition("micro-batches of interleaved", _micro_batches),
    )


def _batch(s: Setup) -> str:
    each, samples = s.replicas * s.point.micro_batch, s.layout.samples
    if samples % each == 0:
        return ""
    below = samples // each * each
    use = f"{count(below)} or {count(below + each)}" if below else count(each)
    return f"a batch that splits over dp {s.replicas} × micro-batch {s.point.micro_batch}: {count(samples)} does not; use {use}"


def _heads(s: Setup) -> str:
    n, tp = s.model.heads, s.point.tp
    return f"tp to divide the {n} heads: {tp} does not; use {_below(n, tp)}" if n % tp else ""


def _groups(s: Setup) -> str:
    n, tp = s.model.kv_heads, s.point.tp
    if not n or n % tp == 0 or tp % n == 0:
        return ""
    return f"tp to divide the {n} query groups, or they tp: {tp} and {n} do neither; use {_below(n, tp)}"


def _heads_over_context(s: Setup) -> str:
    """attention/dot_product_attention/context_parallel.py of Transformer Engine."""
    p, m = s.point, s.model
    if p.cp == 1 or p.context != "ulysses":
        return ""
    wrong = next((n for n in (m.heads // p.tp, max(1, m.kv_heads // p.tp)) if n % p.cp), 0)
    if not wrong:
        return ""
    best = _below(wrong, p.cp)
    use = f"{best} or all_gather" if best > 1 else "all_gather"
    return f"cp with all-to-all (a2a) to divide the {plural(wrong, 'head')} of a rank: {p.cp} does not; use {use}"


def _positions_over_context(s: Setup) -> str:
    n, each = s.model.seq, 2 * s.point.cp
    if s.point.cp == 1 or n % each == 0:
        return ""
    return f"positions in a multiple of 2 × cp {s.point.cp}: {count(n)} are not; use {count(-(-n // each) * each)}"


def _positions_over_tensor(s: Setup) -> str:
    p, n = s.point, s.model.seq // s.point.cp
    if not p.sequence or n % p.tp == 0:
        return ""
    each = p.tp * (2 * p.cp if p.cp > 1 else 1)
    return (
        f"positions of a rank ({count(n)}) in a multiple of tp {p.tp} with sequence parallelism; use a sequence of "
        f"{count(-(-s.model.seq // each) * each)}"
    )


def _experts(s: Setup) -> str:
    p, n = s.point, s.model.experts
    size = p.ep * (p.tp if p.whole_experts else 1)
    if size == 1:
        return ""
    if not n:
        return f"experts for ep {size}: the model has none"
    return f"ep to divide the {n} experts: {size} does not; use {_below(n, size)}" if n % size else ""


def _experts_with_tensor(s: Setup) -> str:
    """transformer/moe/moe_layer.py."""
    if not s.model.experts or s.point.tp == 1 or s.point.sequence:
        return ""
    return f"sequence parallelism for experts with tp {s.point.tp}: the plan has none"


def _ranks(s: Setup) -> str:
    p = s.point
    return (
        f"two pipeline ranks or more for {p.chunks} stages a rank: the plan has one"
        if p.chunks > 1 and p.pp < 2
        else ""
    )


def _micro_batches(s: Setup) -> str:
    """forward_backward_pipelining_with_interleaving: a last group that is not whole is refused."""
    p, m = s.point, s.layout.micro_batches
    if p.chunks == 1 or (m >= p.pp and m % p.pp == 0):
        return ""
    below = m // p.pp * p.pp
    use = f"{count(below)} or {count(below + p.pp)}" if below else count(p.pp)
    return (
        f"micro-batches in a multiple of the {p.pp} pipeline ranks for interleaved 1F1B: {count(m)} is none; use {use}"
    )


def _below(n: int, most: int) -> int:
    """The largest divisor of n up to `most`."""
    return max(k for k in range(1, min(n, most) + 1) if n % k == 0)
