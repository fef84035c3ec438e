"""Gradients that are computed apart: cut otherwise than their op is (`OpSharding.backward`).

Y = X · W cut as C says, its gradient of X as B says:

    forward    X and W as C reads them ──▶ Y as C makes it ──▶ Y at rest                       one call, no duals inside
    backward   ∂Y   from where it rests ──▶ as B reads it
               W    from where W rests ──▶ as B reads it      (or as C read it, where that is the same)
               product under B ──▶ ∂X, cut, or a partial sum ──▶ where it rests: sums completed, or deferred

A product computes each gradient alone: those that the plan says nothing of under C. Any other op computes all of its
gradients at once, under one B, from what its backward keeps (`reads`); what it keeps of its own, statistics and
log-probabilities, it computes again.
What two gradients read alike is sent once. All of it stands in the program, marked with the op that carries it out
(`Instr.within`). Ranks run it as one op, see `joined`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import Unsupported
from ..graph.ir import Graph, Op, Phase
from ..graph.saved import FLOATS
from .atoms import Node
from .convert import Axes, steps
from .halo import DATA, exchanges, returned, windows
from .program import APART, GRAD, Instr

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
CUTTABLE = ("free", "stat", "halo")
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Apart:
    """How one gradient is computed."""

    cuts: Axes
    """Per atom of the op."""
    needs: tuple[Axes, ...]
    """Per operand: as it is read; of one whose gradient it is, as the gradient is made."""
    results: tuple[Axes, ...]
    """As the gradient of each result is read, and a result that the backward keeps."""


def factors(op: Op) -> tuple[int, ...]:
    """Operands that are multiplied with each other; none of what is no product."""
    if op.kind == "einsum":
        return tuple(range(len(op.inputs)))
    return FACTORS.get(op.kind, ())


def others(op: Op, operand: int) -> tuple[int, ...]:
    """Of a product: operands that the gradient of `operand` is made of, besides that of the result."""
    every = factors(op)
    return tuple(k for k in every if k != operand) if operand in every else ()


def alone(op: Op) -> bool:
    """Whether each gradient of `op` is a product of its own."""
    tensors = (*op.rule.operands, *op.rule.results)
    if not factors(op) or len(op.outputs) != 1:
        return False
    if op.kind.startswith("conv"):
        batched = len(op.rule.operands[0]) == int(op.kind[4]) + 2
        return batched and not any(isinstance(v, str) for v in (*op.args, *(v for _, v in op.kwargs)))
    parts = any(len(names) > 1 for dims in tensors for names in dims)
    diagonal = any(len(own) != len(set(own)) for own in ([n for names in dims for n in names] for dims in tensors))
    return not parts and not diagonal and not any(name in SCALED for name, _ in op.kwargs)


def reads(graph: Graph, op: Op) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(operands, results) that the backward of an op that is no product computes from.

    What an op keeps of its own besides values is computed again, from all operands; so are indices, which count from where the
    own part begins.
    """
    exact = not op.saved_extra and all(graph.tensor[t].dtype in FLOATS for t in op.saved if t in op.outputs)
    operands = (k for k, t in enumerate(op.inputs) if not exact or t in op.saved or graph.tensor[t].dtype not in FLOATS)
    results = (k for k, t in enumerate(op.outputs) if exact and t in op.saved)
    return tuple(operands), tuple(results)


def check_apart(op: Op, node: Node, own: Axes, variant: str, weights: bool) -> None:
    """Raises Unsupported for a gradient that cannot be computed apart.

    `own`: its cuts. `weights`: the result is made of parameters alone.
    """
    why = "is made of parameters alone" if weights else f"runs as {variant}" if variant else ""
    if not why:
        bad = next((a for a, axes in enumerate(own) if axes and node.kind[a] not in CUTTABLE), None)
        why = "" if bad is None else f'has a gradient cut along "{op.rule.factors[node.factor[bad]].name}"'
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
    write = _Writer(emit, w, n, used)
    node = emit.atoms.nodes[n]
    if alone(write.op):
        for k, t in enumerate(node.inputs):
            if t in emit.atoms.grad:
                write.product(k)
    else:
        write.all_at_once()
    known = (*used, *node.outputs)
    enters = (v for v in dict.fromkeys((*write.reads, *write.ends)) if v not in known and not v.endswith(APART))
    return Gradients(write.out, tuple(write.reads), tuple(enters))


class _Writer:
    """Instructions of the backward of one op, each value laid once for all of its gradients."""

    def __init__(self, emit: Emitter, w: Written, n: int, used: Sequence[str]) -> None:
        self.emit, self.w, self.n, self.used = emit, w, n, used
        self.node = emit.atoms.nodes[n]
        self.op = emit.graph.ops[self.node.index]
        done = emit.done
        self.dual = Apart(done.cuts[n], tuple(done.need[n]), tuple(done.raw[t][0] for t in self.node.outputs))
        self.out: list[Instr] = []
        self.reads: dict[str, None] = {}
        self.ends: dict[str, None] = {}
        self._laid: dict[object, str] = {}

    # ---- what is computed

    def product(self, k: int) -> None:
        """The gradient of operand k alone."""
        own = self.emit.done.apart.get((self.n, k), self.dual)
        values = [self._arriving(0, own), *(self._operand(j, own) for j in others(self.op, k))]
        multiplied = factors(self.op)
        phase: Phase = "input_grad" if k == multiplied[0] else "weight_grad"
        self._compute(own, phase, values, [0], [k], int(k in multiplied))

    def all_at_once(self) -> None:
        """Of all operands that have one."""
        grad = self.emit.atoms.grad
        wanted = [k for k, t in enumerate(self.node.inputs) if t in grad]
        own = self.emit.done.apart[self.n, wanted[0]]
        operands, results = reads(self.emit.graph, self.op)
        arriving = [j for j, t in enumerate(self.node.outputs) if t in grad]
        values = [self._arriving(j, own) for j in arriving]
        values += [self._operand(k, own) for k in operands] + [self._result(j, own) for j in results]
        stats = self.emit.stats(self.node, own.cuts)
        again = [replace(s, phase="backward", within=self.op.name) for s in stats if s.phase == "forward"]
        self.out += again
        self._compute(own, "backward", values, arriving, wanted, 1, [s for s in stats if s.phase == "backward"])

    def _compute(
        self, own: Apart, phase: Phase, values: Sequence[str], arriving: Sequence[int], wanted: Sequence[int], times: int,
        stats: Sequence[Instr] = (),
    ) -> None:  # fmt: skip
        """`wanted`: operands whose gradients are made, each then brought to where it rests."""
        emit, node = self.emit, self.node
        sizes, over = emit.sizes(node, own.cuts)
        made = {k: self._leaving(k, own) for k in wanted}
        self.out.append(
            Instr(
                "compute", self.op.name, phase, tuple(values), tuple(GRAD + name for name, _ in made.values()),
                cuts=emit.by_factor(node, own.cuts),
                operands=tuple(emit.layout(u, need) for u, need in zip(node.inputs, own.needs, strict=True)),
                results=tuple(emit.layout(t, axes) for t, axes in zip(node.outputs, own.results, strict=True)),
                sizes=sizes, samples=over, steps=times, within=self.op.name,
                arriving=tuple(arriving), targets=tuple(wanted),
            )
        )  # fmt: skip
        self.out += stats
        for _, brought in made.values():
            self.out += [replace(i, within=self.op.name) for i in brought]

    # ---- what is read

    def _arriving(self, j: int, own: Apart) -> str:
        """The gradient of result j."""
        t = self.node.outputs[j]
        return self._relaid(t, GRAD + self.emit.home(t), self.emit.rest_of_gradient(t), own.results[j])

    def _result(self, j: int, own: Apart) -> str:
        t = self.node.outputs[j]
        self.reads[t] = None
        return self._relaid(t, t, self.emit.done.rest[t], own.results[j])

    def _operand(self, k: int, own: Apart) -> str:
        done, t = self.emit.done, self.node.inputs[k]
        wide = k == DATA and "halo" in self.node.kind
        same = not wide or self._windows(own.cuts) == self._windows(done.cuts[self.n])
        if same and own.needs[k] == done.need[self.n][k]:
            self.reads[self.used[k]] = None
            return self.used[k]
        self.reads[t] = None
        value = self._relaid(t, t, done.rest[t], own.needs[k])
        return self._wide(value, own) if wide else value

    def _windows(self, cuts: Axes) -> object:
        return windows(self.op, self.node, cuts)

    def _wide(self, value: str, own: Apart) -> str:
        """With the rows of its neighbours."""
        key = ("halo", value, own.cuts)
        if key not in self._laid:
            rows = exchanges(self.emit, self.w, self.node, own.needs[DATA], own.cuts, value)
            self.out += [replace(i, within=self.op.name) for i in rows]
            self._laid[key] = rows[-1].outputs[0] if rows else value
        return self._laid[key]

    def _relaid(self, t: str, value: str, here: Axes, need: Axes) -> str:
        """`value` of tensor t, or its gradient, as `need` says."""
        if here == need:
            return value
        if (value, need) not in self._laid:
            source = value
            for s in steps(here, (), need, NONE, NONE):
                name = self.emit.fresh(t)
                self.w.base[name] = (t, s.after)
                name = (GRAD if value.startswith(GRAD) else "") + name
                self.out.append(replace(self.emit.step(t, s, source, name), phase="backward", within=self.op.name))
                source = name
            self._laid[value, need] = source
        return self._laid[value, need]

    # ---- what is made

    def _leaving(self, k: int, own: Apart) -> tuple[str, list[Instr]]:
        """(value whose gradient is made of operand k, what brings it to where it rests)."""
        emit, t = self.emit, self.node.inputs[k]
        if (self.n, k) not in emit.done.apart:
            self.ends[self.used[k]] = None
            return self.used[k], []
        self.ends[emit.home(t)] = None
        name, brought = emit.from_use(self.w, t, own.needs[k], emit.sums.use[self.n, k])
        if k == DATA and "halo" in self.node.kind:
            rows = exchanges(emit, self.w, self.node, own.needs[k], own.cuts, name)
            brought = [*map(returned, reversed(rows)), *brought]
            name = rows[-1].outputs[0] if rows else name
        return name, brought
