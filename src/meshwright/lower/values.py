"""What is known of the values of one written piece: who makes them, whose storage they share, how many bytes they have."""

from __future__ import annotations

from functools import cached_property

from .atoms import Atoms
from .emit import Emitter, Written
from .parts import shrinks
from .program import RAW, Instr


class Values:
    def __init__(self, emit: Emitter, w: Written, nodes: range, samples: tuple[str, ...]) -> None:
        self.emit, self.w, self.samples = emit, w, samples
        self.atoms: Atoms = emit.atoms
        self.graph = emit.graph
        self.nodes = [n for n in nodes if n in w.used]
        self.node_of = {self.graph.ops[self.atoms.nodes[n].index].name: n for n in self.nodes}
        self._roots: dict[str, str] = {}
        self._sizes: dict[str, tuple[float, float]] = {}

    def maker(self, value: str) -> Instr | None:
        k = self.w.maker.get(value)
        return None if k is None else self.w.forward[k]

    def node(self, value: str) -> int | None:
        """The node whose op makes `value`, raw or through its completion; None for conversions of operands."""
        made = self.maker(value)
        while made is not None and made.kind != "compute":
            source = made.inputs[0]
            if not source.endswith(RAW) and "@" not in source:
                return None
            made = self.maker(source)
        return self.node_of.get(made.on) if made is not None else None

    def root(self, value: str) -> str:
        """The value whose storage `value` shares."""
        if value not in self._roots:
            at = value
            while (made := self.maker(at)) is not None:
                if made.kind != "identity" and not (
                    made.kind == "compute" and self.node_of[made.on] in self.atoms.alias
                ):
                    break
                at = made.inputs[0]
            self._roots[value] = at
        return self._roots[value]

    def tensor(self, value: str) -> str:
        return self.w.base[value][0] if value in self.w.base else value

    def constant(self, value: str) -> bool:
        t = self.tensor(value)
        return t in self.atoms.const or self.atoms.role[t] in ("param", "buffer")

    def size(self, value: str) -> tuple[float, float]:
        """(fixed, per local sample of the piece) bytes."""
        if value not in self._sizes:
            t, axes = self.w.base.get(value) or (value, self.emit.done.rest[value])
            nbytes, over = self.emit.amount(t, axes)
            nbytes *= self.w.wider.get(value, 1.0)
            mesh = self.emit.mesh
            if over is None:
                self._sizes[value] = nbytes, 0.0
            elif over == self.samples:
                self._sizes[value] = 0.0, nbytes
            else:
                self._sizes[value] = 0.0, nbytes * shrinks(self.samples, mesh) / shrinks(over, mesh)
        return self._sizes[value]

    def saved(self, n: int) -> list[str]:
        """Values that the backward of node n reads."""
        node = self.atoms.nodes[n]
        op = self.graph.ops[node.index]
        if not any(t in self.atoms.grad for t in node.outputs):
            return []
        if n in self.w.reads:
            return list(self.w.reads[n])
        found = []
        for t in op.saved:
            if t in op.inputs:
                found.append(self.w.used[n][op.inputs.index(t)])
            elif t in op.outputs:
                found.append(t + RAW if t + RAW in self.w.maker else t)
        return found

    @cached_property
    def carried(self) -> frozenset[str]:
        """Results that flow from block to block."""
        return frozenset(b for _, b in self.atoms.folded.carries)


def add(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]
