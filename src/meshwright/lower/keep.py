"""What a piece keeps for its backward, what it runs again, and which light ops are one kernel.

Light ops of one depth (over heavy ops and communication) run as one kernel: it reads and writes what crosses its border;
what its backward needs from inside is made again from what it read. A gathered operand is not kept but gathered again,
unless `OpSharding.kept` says otherwise. An op in `recompute` keeps nothing: its values are made again when the backward
of the block begins, as far as something needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from .assign import Choices
from .atoms import Atoms
from .emit import Emitter, Written
from .program import GRAD, RAW, Instr, Kept, Kernel


@dataclass(frozen=True, slots=True)
class Keeping:
    rerun: tuple[Instr, ...]
    kernels: tuple[Kernel, ...]
    kept: Kept
    group: dict[str, int]
    """Op -> kernel."""


def keeping(emit: Emitter, w: Written, nodes: range, samples: tuple[str, ...]) -> Keeping:
    return _Keeper(emit, w, nodes, samples).result()


class _Keeper:
    def __init__(self, emit: Emitter, w: Written, nodes: range, samples: tuple[str, ...]) -> None:
        self.emit, self.w, self.samples = emit, w, samples
        self.atoms: Atoms = emit.atoms
        self.choices: Choices = emit.choices
        self.graph = emit.graph
        self.nodes = [n for n in nodes if n in w.used]
        self.node_of = {self.graph.ops[self.atoms.nodes[n].index].name: n for n in self.nodes}
        self.recomputed = {n for name, n in self.node_of.items() if name in self.choices.recompute}
        self.alias = self.atoms.alias

    # ---- values

    def _maker(self, value: str) -> Instr | None:
        k = self.w.maker.get(value)
        return None if k is None else self.w.forward[k]

    def _node(self, value: str) -> int | None:
        """The node whose op makes `value` (raw or, through its completion, at rest); None for conversions of operands."""
        made = self._maker(value)
        while made is not None and made.kind != "compute":
            source = made.inputs[0]
            if not source.endswith(RAW) and "@" not in source:
                return None
            if source == value:
                return None
            value = source
            made = self._maker(value)
            if "@" in value and made is None:
                return None
        return self.node_of.get(made.on) if made is not None else None

    def root(self, value: str) -> str:
        """The value whose storage `value` shares."""
        while True:
            made = self._maker(value)
            if made is None:
                return value
            if made.kind == "identity" or (made.kind == "compute" and self.node_of[made.on] in self.alias):
                value = made.inputs[0]
            else:
                return value

    def size(self, value: str) -> tuple[float, float]:
        """(fixed, per local sample of the piece) bytes."""
        t, axes = self.w.base.get(value) or (value, self.emit.done.rest[value])
        nbytes, over = self.emit.amount(t, axes)
        if over is None:
            return nbytes, 0.0
        mesh = self.emit.mesh
        return 0.0, nbytes * prod(mesh[a] for a in self.samples) / prod(mesh[a] for a in over)

    # ---- needed by the backward

    def saved(self, n: int) -> list[str]:
        """Values that the backward of node n reads."""
        node = self.atoms.nodes[n]
        op = self.graph.ops[node.index]
        if not any(t in self.atoms.grad for t in node.outputs):
            return []
        found = []
        for t in op.saved:
            if t in op.inputs:
                found.append(self.w.used[n][op.inputs.index(t)])
            elif t in op.outputs:
                found.append(t + RAW if t + RAW in self.w.maker else t)
        return found

    def _again(self, value: str) -> bool:
        """Whether `value` is there only if it is made again: recomputed, or gathered and not kept."""
        made = self._maker(value)
        if made is None:
            return False
        if made.kind == "compute":
            n = self.node_of[made.on]
            if n in self.recomputed:
                return True
            return n in self.alias and self._again(made.inputs[0])
        if made.collective == "all_gather" and not self._stays(value) and self._node(value) is None:
            return True
        return self._again(made.inputs[0])

    def _stays(self, value: str) -> bool:
        """A gathered operand that every reader keeps."""
        readers = [n for n, used in self.w.used.items() if value in used]
        if not readers:
            return False
        for n in readers:
            op = self.graph.ops[self.atoms.nodes[n].index]
            sharding = self.choices.shardings.get(op.name)
            if sharding is None or op.inputs[self.w.used[n].index(value)] not in sharding.kept:
                return False
        return True

    def rerun(self) -> tuple[tuple[Instr, ...], set[str]]:
        """Forward instructions run again, in order, and the values they make."""
        again: set[int] = set()
        todo = [v for n in self.nodes for v in self.saved(n)]
        seen: set[str] = set()
        while todo:
            value = todo.pop()
            if value in seen:
                continue
            seen.add(value)
            if self._again(value):
                k = self.w.maker[value]
                again.add(k)
                todo += self.w.forward[k].inputs
        made = {v for k in again for v in self.w.forward[k].outputs}
        names = {self.w.forward[k].on for k in again if self.w.forward[k].kind == "compute"}
        out = []
        for k, i in enumerate(self.w.forward):
            if k in again or (i.kind == "stat" and i.on in names):
                out.append(i)
        return tuple(out), made

    # ---- kernels and bytes

    def result(self) -> Keeping:
        again, made = self.rerun()
        groups: dict[int, list[int]] = {}
        for n in self.nodes:
            if n in self.atoms.light:
                groups.setdefault(self.w.depth[n], []).append(n)
        number = {level: k for k, level in enumerate(groups)}
        group_of = {n: number[level] for level, members in groups.items() for n in members}
        written = self._written(group_of)
        kernels, largest = [], (0.0, 0.0)
        for level, members in groups.items():
            kernel, working = self._kernel(number[level], members, group_of, written)
            kernels.append(kernel)
            largest = max(largest, working, key=sum)
        kept: dict[str, None] = {}
        extra = (0.0, 0.0)
        for n in self.nodes:
            for v in self.saved(n):
                kept |= dict.fromkeys(self._leaves(v, group_of, written))
            extra = _add(extra, self._extra(n))
        activations = extra
        for v in kept:
            if not self._constant(v):
                activations = _add(activations, self.size(v))
        rerun = (0.0, 0.0)
        for v in made:
            if self.root(v) == v:
                rerun = _add(rerun, self.size(v))
        for i in self.w.forward:
            if i.kind == "collective" and i.collective == "all_gather":
                largest = max(largest, self.size(i.outputs[0]), key=sum)
        names = {self.graph.ops[self.atoms.nodes[n].index].name: g for n, g in group_of.items()}
        return Keeping(
            tuple(replace(i, group=names.get(i.on, -1)) if i.kind == "compute" else i for i in again),
            tuple(kernels), Kept(activations, rerun, largest), names,
        )  # fmt: skip

    def _constant(self, value: str) -> bool:
        t = self.w.base[value][0] if value in self.w.base else value
        return t in self.atoms.const or self.atoms.role[t] in ("param", "buffer")

    def _written(self, group_of: dict[int, int]) -> set[str]:
        """Roots made by light ops that leave their kernel: read by another kernel, a heavy op, a conversion, another piece."""
        out: set[str] = set()
        inside = set(self.nodes)
        for n in self.nodes:
            for v in self.w.used[n]:
                r = self.root(v)
                made = self._node(r)
                if made is not None and made in group_of and group_of.get(n) != group_of[made]:
                    out.add(r)
        for i in self.w.forward:
            if i.kind not in ("compute", "stat", "identity"):
                out.add(self.root(i.inputs[0]))
        for n in self.nodes:
            for t in self.atoms.nodes[n].outputs:
                users = self.atoms.users.get(t, [])
                if not users or any(u not in inside for u, _ in users) or self._carried(t):
                    out.add(self.root(t))
        return out

    def _carried(self, t: str) -> bool:
        return any(b == t for _, b in self.atoms.folded.carries)

    def _kernel(
        self, g: int, members: list[int], group_of: dict[int, int], written: set[str]
    ) -> tuple[Kernel, tuple[float, float]]:
        reads: dict[str, None] = {}
        writes: dict[str, None] = {}
        for n in members:
            if n in self.alias:
                continue
            for v in self.w.used[n]:
                r = self.root(v)
                made = (
                    self._node(r) if r in self.w.maker and self.w.forward[self.w.maker[r]].kind == "compute" else None
                )
                if made is None or group_of.get(made) != g:
                    reads[r] = None
            for t in self.atoms.nodes[n].outputs:
                v = t + RAW if t + RAW in self.w.maker else t
                if v in written or t in written:
                    writes[v] = None
        size = (0.0, 0.0)
        grad = (0.0, 0.0)
        for v in reads:
            size = _add(size, self.size(v))
            if self._tensor(v) in self.atoms.grad:
                grad = _add(grad, self.size(v))
        for v in writes:
            size = _add(size, self.size(v))
        flows = any(self._tensor(v) in self.atoms.grad for v in writes)
        back = _add(size, grad) if flows else (0.0, 0.0)
        return Kernel(size, back, self.samples), _add(size, grad)

    def _tensor(self, value: str) -> str:
        return self.w.base[value][0] if value in self.w.base else value

    def _leaves(self, value: str, group_of: dict[int, int], written: set[str]) -> set[str]:
        """What must be kept so that `value` is there in the backward."""
        found: set[str] = set()
        todo, seen = [value], set()
        while todo:
            r = self.root(todo.pop())
            if r in seen:
                continue
            seen.add(r)
            made = self._maker(r)
            if made is None:
                found.add(r)
            elif self._again(r):
                todo += made.inputs
            elif made.kind == "compute":
                n = self.node_of[made.on]
                if n in group_of and r not in written:
                    todo += made.inputs
                else:
                    found.add(r)
            else:
                found.add(r)
        return found

    def _extra(self, n: int) -> tuple[float, float]:
        """Bytes kept besides tensors (statistics, log-probabilities), of the local part."""
        node = self.atoms.nodes[n]
        op = self.graph.ops[node.index]
        if not op.saved_extra or n in self.recomputed or not any(t in self.atoms.grad for t in node.outputs):
            return 0.0, 0.0
        value = self.w.used[n][0]
        whole = self.graph.tensor[op.inputs[0]].nbytes
        fixed, each = self.size(value)
        share = op.saved_extra / whole if whole else 0.0
        return fixed * share, each * share


def _add(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]


__all__ = ["GRAD", "Keeping", "keeping"]
