"""How every op of one graph computes under one style: the rules of `expert`, op by op."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ..lower.assign import cuts_along, on, plan_layout
from ..lower.atoms import FIXED, PRODUCTS, Node
from ..lower.convert import Axes
from ..plan.model import Cut, Layout, OpSharding
from .style import CP, EP, NARROW, TP, Style

if TYPE_CHECKING:
    from .expert import Expert


class Computing:
    """How every op of one graph computes under one style."""

    def __init__(self, expert: Expert, style: Style) -> None:
        self.expert, self.atoms, self.graph = expert, expert.atoms, expert.graph
        self.style = style
        self.size = {CP: style.cp, EP: style.ep, TP: style.tp}
        self.data = style.data
        self.beside_experts = tuple(a for a in self.data if a != EP)
        self.keeps = style.zero == 3 and not style.reshard
        self.whole = style.whole_experts and style.tp > 1
        self.expert_of: dict[str, int] = {}
        """Result of an op that is cut on experts -> which of its atoms they are."""
        self.rest: dict[str, Axes] = {}
        self.use: dict[str, Axes] = {}
        self.shardings: dict[str, OpSharding] = {}
        self.layouts: dict[str, Layout] = {}
        self.waiting: dict[str, Node] = {}
        self.alone = style.tp == style.cp == style.ep == 1

    def result(self) -> tuple[dict[str, OpSharding], dict[str, Layout], dict[str, Axes]]:
        atoms = self.atoms
        self.rest.update((t, self._arrives(t)) for t in atoms.samples if t not in atoms.producer)
        for n, node in enumerate(atoms.nodes):
            constant = all(u in atoms.const for u in node.inputs)
            if self._reshapes_parameters(n):  # waits for its reader
                self.rest.update((t, ((),) * len(atoms.size[t])) for t in node.outputs)
                self.waiting.update((t, node) for t in node.outputs)
                continue
            cuts: Axes = ((),) * len(node.size) if constant else self._cuts(n, node)
            if not constant:
                self._say(node, cuts)
            self._read(node, cuts)
            for t, m in zip(node.outputs, node.results, strict=True):
                self._leave(node, t, m, cuts)
        for read, b in atoms.folded.carries:
            entry = atoms.folded.name(read)
            if b in self.layouts and entry not in self.layouts and atoms.role.get(entry) == "activation":
                self.layouts[entry] = plan_layout(atoms, entry, self.rest[b])
        return self.shardings, self.layouts, self.use

    def _arrives(self, t: str) -> Axes:
        """How data lies before anything reads it."""
        return tuple(self.data if s else () for s in self.atoms.samples[t])

    def _reshapes_parameters(self, n: int) -> bool:
        """A light op on parameters alone: a transpose, a cast."""
        node = self.atoms.nodes[n]
        return (
            n in self.atoms.light
            and any(self.atoms.is_weight(t) for t in node.inputs)
            and all(t in self.atoms.from_params for t in node.inputs)
        )

    def _read(self, node: Node, cuts: Axes) -> None:
        """What a node reads first rests as it reads it, if it is a parameter or made of parameters."""
        for t, need in zip(node.inputs, self._needs(node, cuts), strict=True):
            if self.atoms.role[t] == "param" and t not in self.use:
                self.use[t] = self.rest[t] = need
            elif t in self.waiting:
                maker = self.waiting.pop(t)
                own: list[tuple[str, ...]] = [()] * len(maker.size)
                for a, x in zip(maker.results[maker.outputs.index(t)], need, strict=True):
                    if a != FIXED and maker.kind[a] in ("free", "stat"):
                        own[a] = x
                self._say(maker, tuple(own))
                self._read(maker, tuple(own))
                for u, r in zip(maker.outputs, maker.results, strict=True):
                    self.rest[u] = on(r, tuple(own))

    def _needs(self, node: Node, cuts: Axes) -> list[Axes]:
        """How a node reads its operands."""
        return [on(m, cuts) for m in node.operands]

    def _cuts(self, n: int, node: Node) -> Axes:
        cuts: list[tuple[str, ...]] = [()] * len(node.size)
        expert = self._expert(n, node)
        data = self.data if expert is None else self.beside_experts
        for a, samples in enumerate(node.samples):
            if samples:
                cuts[a] = data
        if self.alone:  # data parallelism only
            return tuple(cuts)
        picks = []
        if expert is not None and self.style.ep > 1:
            picks.append((EP, expert))
        if self.style.cp > 1 and (position := self._position(n, node, cuts)) is not None:
            picks.append((CP, position))
        for axis, a in picks:
            cuts[a] = (*cuts[a], axis)
        tensor = self._tensor(node, cuts) if expert is None or not self.whole else expert
        if self.style.tp > 1 and tensor is not None:
            cuts[tensor] = (*cuts[tensor], TP)
        return tuple(cuts)

    def _say(self, node: Node, cuts: Axes) -> None:
        op = self.graph.ops[node.index]
        by_factor: dict[str, tuple[Cut, ...]] = {}
        for a, f in enumerate(node.factor):
            if cuts[a]:
                name = op.rule.factors[f].name
                by_factor[name] = by_factor.get(name, ()) + cuts_along(cuts[a])
        kept = tuple(t for t in op.inputs if self.atoms.is_weight(t)) if self.keeps else ()
        if by_factor or kept:
            self.shardings[op.name] = OpSharding(by_factor, kept=kept)

    def _leave(self, node: Node, t: str, mapping: tuple[int, ...], cuts: Axes) -> None:
        """How a result rests: as produced, but sums over experts go back to the samples, sums over "tp" to positions."""
        produced = on(mapping, cuts)
        partial = {x for a in node.summed for x in cuts[a]}
        if EP not in partial and not (TP in partial and self.style.sequence):
            self.rest[t] = produced
            return
        here = [*produced]
        if EP in partial:
            for k, a in enumerate(mapping):
                if a != FIXED and node.samples[a]:
                    here[k] = (*here[k], EP)
                    break
        if TP in partial and self.style.sequence:
            longest = self._longest(node, t, mapping, here)
            if longest is not None:
                here[longest] = (*here[longest], TP)
        self.rest[t] = tuple(here)
        if self.rest[t] != produced:
            self.layouts[t] = plan_layout(self.atoms, t, self.rest[t])

    # ---- which atom an axis cuts

    def _held(self, node: Node, axis: str) -> list[int]:
        """Atoms on which `axis` cuts an operand already, the largest operand first; samples do not count."""
        order = [k for k, t in enumerate(node.inputs) if any(axis in x for x in self.rest[t])]
        if len(order) > 1:
            order.sort(key=lambda k: -prod(node.size[a] for a in node.operands[k] if a != FIXED))
        return [
            a
            for k in order
            for a, x in zip(node.operands[k], self.rest[node.inputs[k]], strict=True)
            if axis in x and a != FIXED and not node.samples[a] and node.kind[a] in ("free", "stat")
        ]

    def _expert(self, n: int, node: Node) -> int | None:
        """The atom of the experts of a product with one matrix each, and of what follows until they are summed."""
        if self.style.ep == 1 and not self.whole:
            return None
        found = self.expert.experts.get(n)
        for t, m in zip(node.inputs, node.operands, strict=True):
            if found is None and t in self.expert_of:
                a = m[self.expert_of[t]]
                found = a if a != FIXED and node.kind[a] in ("free", "stat") else None
        if found is not None:
            for t, m in zip(node.outputs, node.results, strict=True):
                if found in m:
                    self.expert_of[t] = m.index(found)
        return found

    def _position(self, n: int, node: Node, cuts: list[tuple[str, ...]]) -> int | None:
        """The positions if the op allows it; the heads or the queries of an attention, which must see all of them."""
        cp = self.style.cp
        if self.style.context == "halo":
            return next((a for a in self._held(node, CP) if self.expert.positions[n][a]), self.expert.row(n, cp))
        mine = [a for a, flag in enumerate(self.expert.positions[n]) if flag]
        if mine and "attention" in self.graph.ops[node.index].kind:
            mine = self.expert.queries(node) if self.style.context == "gather" else self.expert.heads(node)[::-1]
            return next((a for a in mine if self._left(node, a, cuts) % cp == 0), None)
        return next((a for a in mine if node.kind[a] in ("free", "stat") and node.size[a] % cp == 0), None)

    def _tensor(self, node: Node, cuts: list[tuple[str, ...]]) -> int | None:
        tp, op = self.style.tp, self.graph.ops[node.index]
        if op.kind in PRODUCTS and self.expert.weighted(node):
            held = {a for a, x in zip(node.operands[0], self.rest[node.inputs[0]], strict=True) if TP in x}
            row = [a for a in held if a in node.summed and not self._narrow(node)]
            column = row[0] if row else self.expert.column(node, tp)
            return column if column is not None else self._stays(node, held, cuts)
        if op.kind == "embedding":
            rows = [a for a in node.summed if node.size[a] >= tp]
            return rows[0] if rows and node.inputs[1] not in self.atoms.const else None
        return next((a for a in self._held(node, TP) if self._left(node, a, cuts) >= tp), None)

    def _stays(self, node: Node, held: set[int], cuts: list[tuple[str, ...]]) -> int | None:
        """The positions of a product that cannot be cut otherwise (a router), if its operand is cut on them."""
        free = [a for a in held if a not in node.summed and not node.samples[a] and node.kind[a] == "free"]
        return next((a for a in free if self._left(node, a, cuts) % self.style.tp == 0), None)

    def _narrow(self, node: Node) -> bool:
        """Whether what a product sums over is so small beside its result that gathering it is cheaper than the sums."""
        others = set(node.operands[0])
        wide = prod(node.size[b] for b in node.results[0] if b != FIXED and b not in others)
        return (
            NARROW * prod(node.size[b] for b in node.summed) <= wide
            and self.expert.column(node, self.style.tp) is not None
        )

    def _left(self, node: Node, a: int, cuts: list[tuple[str, ...]]) -> int:
        size = node.size[a]
        for x in cuts[a]:
            size = -(-size // self.size.get(x, 1))
        return size

    def _longest(self, node: Node, t: str, mapping: tuple[int, ...], here: list[tuple[str, ...]]) -> int | None:
        """Position, among the atoms of a result, of the longest that is neither samples nor features."""
        features = set(node.results[0][-self.atoms.dims[t][-1] :]) if self.atoms.dims[t] else set()

        def left(k: int) -> int:
            return node.size[mapping[k]] // prod(self.size.get(x, 1) for x in here[k])

        free = [
            k
            for k, a in enumerate(mapping)
            if a != FIXED and not node.samples[a] and a not in features and left(k) % self.style.tp == 0
        ]
        return max(free, key=left) if free else None
