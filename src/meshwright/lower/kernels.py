"""Which light ops of a piece run as one kernel, and what that kernel moves through memory.

Light ops of one depth (over heavy ops and communication) are one kernel: it reads and writes what crosses its border.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..cost.losses import CROSS_ENTROPIES
from .program import GRAD, INSIDE, RAW, Instr, Kernel
from .values import Values, add


@dataclass(frozen=True, slots=True)
class Kernels:
    kernels: tuple[Kernel, ...]
    of_node: dict[int, int]
    """Light node -> kernel."""
    of_op: dict[str, int]
    written: frozenset[str]
    """Roots made by light ops that leave their kernel."""
    working: tuple[float, float]
    """Bytes of the largest kernel or gathered operand: (fixed, per local sample)."""
    loss: tuple[float, float]
    """The same of kernels that make what a loss reads: how it holds its logits is one decision."""


def kernels(v: Values, fused: bool = True) -> Kernels:
    """`fused`: else each light op is a kernel of its own."""
    groups: dict[int, list[int]] = {}
    for n in v.nodes:
        if n in v.atoms.light and n not in v.w.reads:
            groups.setdefault(v.w.depth[n] if fused else n, []).append(n)
    of_node = {n: k for k, members in enumerate(groups.values()) for n in members}
    written = _written(v, of_node)
    casts = {of_node.get(n, -1) for n in _before_losses(v)}
    found, working, loss = [], (0.0, 0.0), (0.0, 0.0)
    for g, members in enumerate(groups.values()):
        kernel, work = _kernel(v, g, members, of_node, written)
        found.append(kernel)
        if g in casts:
            loss = max(loss, work, key=sum)
        else:
            working = max(working, work, key=sum)
    for i in v.w.forward:
        if i.kind == "collective" and i.collective == "all_gather":
            working = max(working, v.size(i.outputs[0]), key=sum)
        elif i.steps > 1:
            working = max(working, fetched(v, v.node_of[i.on]), key=sum)
    for i in v.w.backward:
        if i.within and i.kind == "compute":
            working = max(working, _laid(v, i), key=sum)
    of_op = {v.graph.ops[v.atoms.nodes[n].index].name: g for n, g in of_node.items()}
    return Kernels(tuple(found), of_node, of_op, written, working, loss)


def fetched(v: Values, n: int) -> tuple[float, float]:
    """Bytes of the blocks of both operands of a SUMMA product, twice: those of the next step come while this one's are multiplied."""
    x, w = (v.size(value) for value in v.w.used[n])
    return add(add(x, w), add(x, w))


def _laid(v: Values, i: Instr) -> tuple[float, float]:
    """Bytes of what one gradient that is computed apart has re-laid for it, and of itself before it goes on."""
    total = (0.0, 0.0)
    for value in (name.removeprefix(GRAD) for name in (*i.inputs, *i.outputs)):
        if value in v.w.base and value not in v.w.maker:
            total = add(total, v.size(value))
    return total


def _before_losses(v: Values) -> set[int]:
    """Nodes that make the logits of a loss."""
    losses = (n for n in v.nodes if v.graph.ops[v.atoms.nodes[n].index].kind in CROSS_ENTROPIES)
    made = (v.node(v.root(v.w.used[n][0])) for n in losses)
    return {n for n in made if n is not None}


def _written(v: Values, of_node: dict[int, int]) -> frozenset[str]:
    """Read by another kernel, a heavy op, a conversion, or another piece."""
    out: set[str] = set()
    inside = set(v.nodes)
    for n in v.nodes:
        for value in v.w.used[n]:
            r = v.root(value)
            made = v.node(r)
            if made is not None and made in of_node and of_node.get(n) != of_node[made]:
                out.add(r)
    for i in v.w.forward:
        if i.kind not in ("compute", "identity", *INSIDE):
            out.add(v.root(i.inputs[0]))
    for n in v.nodes:
        for t in v.atoms.nodes[n].outputs:
            users = v.atoms.users.get(t, [])
            if not users or t in v.carried or any(u not in inside for u, _ in users):
                out.add(v.root(t))
    return frozenset(out)


def _kernel(
    v: Values, g: int, members: list[int], of_node: dict[int, int], written: frozenset[str]
) -> tuple[Kernel, tuple[float, float]]:
    """One kernel, and the bytes that are there while it runs."""
    reads: dict[str, None] = {}
    writes: dict[str, None] = {}
    for n in members:
        if n in v.atoms.alias:
            continue
        for value in v.w.used[n]:
            r = v.root(value)
            made = v.maker(r)
            own = made is not None and made.kind == "compute" and of_node.get(v.node_of[made.on]) == g
            if not own:
                reads[r] = None
        for t in v.atoms.nodes[n].outputs:
            value = t + RAW if t + RAW in v.w.maker else t
            if value in written or t in written:
                writes[value] = None
    size = grad = (0.0, 0.0)
    for r in reads:
        size = add(size, v.size(r))
        if v.tensor(r) in v.atoms.grad:
            grad = add(grad, v.size(r))
    for value in writes:
        size = add(size, v.size(value))
    flows = any(v.tensor(value) in v.atoms.grad for value in writes)
    back = add(size, grad) if flows else (0.0, 0.0)
    return Kernel(size, back, v.samples), add(size, grad)
