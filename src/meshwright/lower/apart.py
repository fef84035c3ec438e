"""Gradients that are computed apart: cut otherwise than their op is (`OpSharding.backward`).

Y = X · W cut as C says, its gradient of X as B says:

    forward    X and W as C reads them ──▶ Y as C makes it ──▶ Y at rest                       one call, no duals inside
    backward   ∂Y   from where Y rests ──▶ as B reads it
               W    from where W rests ──▶ as B reads it      (or as C read it, where that is the same)
               product under B ──▶ ∂X, cut, or a partial sum ──▶ where X rests: sums completed, or deferred

An op of which one gradient is computed apart computes each of them so, those that the plan says nothing of under C; what
two of them read alike is sent once. All of it stands in the program, marked with the op that carries it out
(`Instr.within`). Ranks run it as one op, see `joined`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import Unsupported
from ..graph.ir import Op, Phase
from .atoms import Node
from .convert import Axes, Step, steps
from .program import GRAD, Instr, Segment

if TYPE_CHECKING:
    from .emit import Emitter, Written

FACTORS = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (0, 1)),
}
"""Kind -> the operands that are multiplied; what else it has is added. Of an einsum all are."""
SCALED = ("alpha", "beta")
"""Arguments that scale a product before it is added."""
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Apart:
    """How one gradient is computed."""

    cuts: Axes
    """Per atom of the op."""
    needs: tuple[Axes, ...]
    """Per operand: as it is read; of the one whose gradient it is, as the gradient is made."""
    result: Axes
    """As the gradient of the result is read."""


def factors(op: Op) -> tuple[int, ...]:
    """Operands that are multiplied with each other; none if its gradients cannot be computed apart."""
    if op.kind == "einsum":
        return tuple(range(len(op.inputs)))
    return FACTORS.get(op.kind, ())


def others(op: Op, operand: int) -> tuple[int, ...]:
    """Operands that the gradient of `operand` is made of, besides that of the result."""
    every = factors(op)
    return tuple(k for k in every if k != operand) if operand in every else ()


def why_not(op: Op) -> str:
    """Why gradients of `op` cannot be computed apart, as the end of a sentence; "" if they can."""
    tensors = (*op.rule.operands, *op.rule.results)
    if not factors(op) or len(op.outputs) != 1:
        return "is no product"
    if op.kind.startswith("conv"):
        batched = len(op.rule.operands[0]) == int(op.kind[4]) + 2
        by_word = any(isinstance(value, str) for value in (*op.args, *(v for _, v in op.kwargs)))
        return "pads by a word" if by_word else "" if batched else "has no batch"
    if any(len(names) > 1 for dims in tensors for names in dims):
        return "multiplies parts of dims"
    if any(len(own) != len(set(own)) for own in ([n for names in dims for n in names] for dims in tensors)):
        return "reads a diagonal"
    return "scales what it adds" if any(name in SCALED for name, _ in op.kwargs) else ""


def check_apart(op: Op, node: Node, cuts: Axes, own: Axes, variant: str, weights: bool) -> None:
    """Raises Unsupported for a gradient that cannot be computed apart.

    `cuts`, `own`: of the op, of the gradient. `weights`: the result is made of parameters alone.
    """
    why = "is made of parameters alone" if weights else f"runs as {variant}" if variant else why_not(op)
    if not why and any(axes and node.kind[a] == "halo" for a, axes in enumerate(cuts)):
        why = "is cut along its windows"
    if not why:
        bad = next((a for a, axes in enumerate(own) if axes and node.kind[a] != "free"), None)
        why = "" if bad is None else f'has a gradient cut along "{op.rule.factors[node.factor[bad]].name}", a window'
    if why:
        raise Unsupported(
            f'"{op.name}" ({op.kind}) {why}, so its gradients cannot be computed apart: leave backward out',
            reason="backward",
        )


@dataclass(slots=True)
class Gradients:
    """All gradients of one op, written out in the order in which they run."""

    instrs: list[Instr]
    reads: tuple[str, ...]
    """Values of the forward that they read."""
    enters: tuple[str, ...]
    """Values besides the operands as the forward reads them: those that are read, and those whose gradients are made."""


def gradients(emit: Emitter, w: Written, n: int, used: Sequence[str]) -> Gradients:
    """`used`: per operand the value that the forward reads."""
    node, done = emit.atoms.nodes[n], emit.done
    op, result = emit.graph.ops[node.index], node.outputs[0]
    write = _Writer(emit, w, op.name)
    dual = Apart(done.cuts[n], tuple(done.need[n]), done.raw[result][0])
    reads: dict[str, None] = {}
    ends: dict[str, None] = {}
    for k, t in enumerate(node.inputs):
        if t not in emit.atoms.grad:
            continue
        own = done.apart.get((n, k), dual)
        arriving = write.laid(result, GRAD + result, done.rest[result], own.result)
        values = []
        for j in others(op, k):
            u = node.inputs[j]
            as_used = own.needs[j] == done.need[n][j]
            source = used[j] if as_used else u
            reads[source] = None
            values.append(source if as_used else write.laid(u, u, done.rest[u], own.needs[j]))
        end = t if (n, k) in done.apart else used[k]
        ends[end] = None
        path = emit.way(t, own.needs[k], emit.sums.use[n, k]) if (n, k) in done.apart else ()
        names = [end, *(emit.fresh(t) for _ in path)]
        sizes, over = emit.sizes(node, own.cuts)
        multiplied = factors(op)
        phase: Phase = "input_grad" if k == multiplied[0] else "weight_grad"
        write.out.append(
            Instr(
                "compute", op.name, phase, (arriving, *values), (GRAD + names[-1],), dim=k,
                cuts=emit.by_factor(node, own.cuts),
                operands=tuple(emit.layout(u, need) for u, need in zip(node.inputs, own.needs, strict=True)),
                results=(emit.layout(result, own.result),), sizes=sizes, samples=over,
                steps=int(k in multiplied), within=op.name,
            )
        )  # fmt: skip
        if path:
            w.base[names[-1]] = (t, own.needs[k])
        for s, source, target in zip(reversed(path), reversed(names[1:]), reversed(names[:-1]), strict=True):
            write.dual(t, s, GRAD + source, GRAD + target)
            if target != end:
                w.base[target] = (t, s.before)
    enters = tuple(v for v in dict.fromkeys((*reads, *ends)) if v not in used)
    return Gradients(write.out, tuple(reads), enters)


class _Writer:
    """Instructions of the backward of one op, each value laid once for all of its gradients."""

    def __init__(self, emit: Emitter, w: Written, op: str) -> None:
        self.emit, self.w, self.op = emit, w, op
        self.out: list[Instr] = []
        self._laid: dict[tuple[str, Axes], str] = {}

    def laid(self, t: str, value: str, here: Axes, need: Axes) -> str:
        """`value` of tensor t, or its gradient, as `need` says."""
        if here == need:
            return value
        if (value, need) not in self._laid:
            source = value
            for s in steps(here, (), need, NONE, NONE):
                name = self.emit.fresh(t)
                self.w.base[name] = (t, s.after)
                name = (GRAD if value.startswith(GRAD) else "") + name
                self.out.append(replace(self.emit.step(t, s, source, name), phase="backward", within=self.op))
                source = name
            self._laid[value, need] = source
        return self._laid[value, need]

    def dual(self, t: str, s: Step, source: str, target: str) -> None:
        self.out.append(replace(self.emit.dual(t, s, source, target), within=self.op))


def joined(segment: Segment) -> Segment:
    """The segment as ranks run it: an op with gradients apart is one instruction forward, with its result at rest, and one
    backward, with all gradients that leave it."""
    if not any(i.within for i in (*segment.forward, *segment.backward)):
        return segment
    backward = _merged(segment.backward)
    read = {i.on: i.inputs for i in segment.forward if i.kind == "compute"}
    made = {i.on: i.outputs for i in _merged(segment.forward) if i.kind == "compute"}
    return replace(
        segment,
        forward=_merged(segment.forward),
        rerun=_merged(segment.rerun),
        backward=tuple(
            replace(
                i, phase="backward", within="", inputs=tuple(GRAD + v for v in made[i.on]),
                outputs=tuple(dict.fromkeys(g for g in i.outputs if g.removeprefix(GRAD) in read[i.on])),
            )
            if i.within else i
            for i in backward
        ),
    )  # fmt: skip


def _merged(instrs: Iterable[Instr]) -> tuple[Instr, ...]:
    """Consecutive instructions of one op as one, which has the outputs of the last one forward, of all backward."""
    found: list[Instr] = []
    for i in instrs:
        last = found[-1] if found else None
        if not i.within:
            found.append(i)
        elif last is not None and last.kind == "compute" and last.phase == i.phase == "forward" and last.on == i.within:
            found[-1] = replace(last, outputs=i.outputs)
        elif last is not None and last.within == i.within:
            found[-1] = replace(last, outputs=(*last.outputs, *i.outputs))
        else:
            found.append(Instr("compute", i.within, "backward", (), i.outputs, within=i.within))
    return tuple(found)
