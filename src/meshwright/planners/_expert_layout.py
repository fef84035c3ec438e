"""Data, tensor and sequence parallelism without names: the expert layout of any captured graph.

samples            cut over "dp" everywhere
product x·W        row parallel if x arrives cut on what is summed, else column parallel
embedding table    cut on the vocabulary when data indexes it
everything else    follows its largest operand that is cut
sequence parallel  results that are partial sums over "tp" rest cut along their longest dim that is neither samples
                   nor features, so the sum becomes a reduce-scatter (Korthikanti et al., arXiv 2205.05198, §4.2.2)
ZeRO 1, 2, 3       state; also gradients; also parameters rest cut over "dp" (Rajbhandari et al., arXiv 1910.02054, §5)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..graph.ir import Graph
from ..graph.kinds import kind_of
from ..lower.assign import Choices, on, plan_layout
from ..lower.atoms import FIXED, Atoms, Node, refine
from ..lower.convert import Axes
from ..lower.fold import fold
from ..lower.stages import unfoldable
from ..plan.model import Cut, Layout, OpSharding, Storage

DP, TP = "dp", "tp"
PRODUCTS = frozenset({"linear", "mm", "matmul", "bmm", "addmm"})


@dataclass(frozen=True, slots=True)
class Style:
    """What of a layout decides how ops are lowered; pipeline depth, replicas and micro-batch do not."""

    tp: int
    sequence: bool
    zero: int
    recompute: str
    """none, light (element-wise ops run again), full (whole blocks run again)."""


class Expert:
    """Layouts of one graph; the same objects for the same style, so that lowering knows them again."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.atoms: Atoms = refine(fold(graph, unfoldable(graph)))
        self._computed: dict[tuple[int, bool], tuple[dict[str, OpSharding], dict[str, Layout], dict[str, Axes]]] = {}
        self._stored: dict[tuple[int, bool, int], dict[str, Storage]] = {}
        self._again: dict[str, frozenset[str]] = {}

    def choices(self, style: Style) -> Choices:
        key = (style.tp, style.sequence)
        if key not in self._computed:
            self._computed[key] = self._compute(*key)
        shardings, layouts, use = self._computed[key]
        if (*key, style.zero) not in self._stored:
            self._stored[*key, style.zero] = {t: self._storage(t, axes, style.zero) for t, axes in use.items()}
        storage = self._stored[*key, style.zero]
        return Choices(shardings, layouts, storage, self.recomputed(style.recompute))

    def recomputed(self, how: str) -> frozenset[str]:
        """Ops of repeated blocks that run again: none, the light ones, or all."""
        if how not in self._again:
            folded = self.atoms.folded
            names = set()
            for n, node in enumerate(self.atoms.nodes):
                op = self.graph.ops[node.index]
                kind = kind_of(op.kind)
                if how != "none" and folded.pieces[folded.piece[n]].run and (how == "full" or (kind and kind.light)):
                    names.add(op.name)
            self._again[how] = frozenset(names)
        return self._again[how]

    def tensor_degrees(self, most: int) -> list[int]:
        """Degrees up to `most` that cut a product evenly and every attention's heads, where these are most of the work."""
        found = [1]
        ops = [self.graph.ops[node.index] for node in self.atoms.nodes]
        cuttable = sum(op.flops for op in ops if op.kind in PRODUCTS or "attention" in op.kind)
        if 2 * cuttable < sum(op.flops for op in ops):
            return found
        for tp in range(2, most + 1):
            heads = [node for node in self.atoms.nodes if "attention" in self.graph.ops[node.index].kind]
            products = [n for n in self.atoms.nodes if self.graph.ops[n.index].kind in PRODUCTS]
            fits = all(_divides(node, self.graph, ("heads", "group"), tp) for node in heads)
            if fits and any(self._column(n, tp) is not None for n in products):
                found.append(tp)
        return found

    # ---- compute

    def _compute(self, tp: int, sequence: bool) -> tuple[dict[str, OpSharding], dict[str, Layout], dict[str, Axes]]:
        atoms, graph = self.atoms, self.graph
        rest: dict[str, Axes] = {}
        use: dict[str, Axes] = {}
        shardings: dict[str, OpSharding] = {}
        layouts: dict[str, Layout] = {}
        for t, samples in atoms.samples.items():
            if t not in atoms.producer:
                rest[t] = tuple((DP,) if s else () for s in samples)
        for node in atoms.nodes:
            op = graph.ops[node.index]
            cuts: list[tuple[str, ...]] = [(DP,) if s else () for s in node.samples]
            constant = all(u in atoms.const for u in node.inputs)
            if constant:
                cuts = [()] * len(node.size)
            elif tp > 1:
                for a in self._pick(node, tp, rest):
                    cuts[a] = (*cuts[a], TP)
            axes = tuple(cuts)
            if not constant:
                by_factor: dict[str, tuple[Cut, ...]] = {}
                for a, f in enumerate(node.factor):
                    name = op.rule.factors[f].name
                    if axes[a]:
                        by_factor[name] = by_factor.get(name, ()) + tuple(Cut(x) for x in axes[a])
                if by_factor:
                    shardings[op.name] = OpSharding(by_factor)
            for t, m in zip(node.inputs, node.operands, strict=True):
                if atoms.role[t] == "param" and t not in use:  # rests as its first op computes with it
                    use[t] = rest[t] = on(m, axes)
            partial = {x for a in node.summed for x in axes[a]}
            for t, m in zip(node.outputs, node.results, strict=True):
                here = on(m, axes)
                rest[t] = here
                if TP in partial and sequence:
                    k = self._longest(node, t, m, tp)
                    if k is not None:
                        rest[t] = tuple((*x, TP) if j == k else x for j, x in enumerate(here))
                        layouts[t] = plan_layout(atoms, t, rest[t])
        for read, b in atoms.folded.carries:
            entry = atoms.folded.name(read)
            if b in layouts and entry not in layouts and atoms.role.get(entry) == "activation":
                layouts[entry] = plan_layout(atoms, entry, rest[b])
        return shardings, layouts, use

    def _pick(self, node: Node, tp: int, rest: dict[str, Axes]) -> list[int]:
        """The atom of an op that "tp" cuts, if any."""
        atoms, op = self.atoms, self.graph.ops[node.index]

        def legal(a: int) -> bool:
            return a != FIXED and node.kind[a] in ("free", "stat") and node.size[a] >= tp

        if op.kind in PRODUCTS and atoms.role[node.inputs[-1]] == "param":
            held = {a for a, x in zip(node.operands[0], rest[node.inputs[0]], strict=True) if TP in x}
            row = [a for a in held if a in node.summed]
            if row:
                return row[:1]
            column = self._column(node, tp)
            return [] if column is None else [column]
        if op.kind == "embedding":
            rows = [a for a in node.summed if node.size[a] >= tp]
            return rows[:1] if node.inputs[1] not in atoms.const else []
        order = sorted(
            range(len(node.inputs)), key=lambda k: -prod(node.size[a] for a in node.operands[k] if a != FIXED)
        )
        for k in order:
            for a, x in zip(node.operands[k], rest[node.inputs[k]], strict=True):
                if TP in x and legal(a):
                    return [a]
        return []

    def _column(self, node: Node, tp: int) -> int | None:
        """The output-feature atom of a product with a parameter that `tp` divides."""
        other = {a for a in node.operands[0] if a != FIXED}
        mine = [a for a in node.results[0] if a != FIXED and a not in other]
        fit = [a for a in mine if node.kind[a] == "free" and node.size[a] % tp == 0]
        return fit[0] if fit else None

    def _longest(self, node: Node, t: str, mapping: tuple[int, ...], tp: int) -> int | None:
        """Position, among the atoms of a result, of the longest that is neither samples nor features."""
        features = set(node.results[0][-self.atoms.dims[t][-1] :]) if self.atoms.dims[t] else set()
        free = [
            k
            for k, a in enumerate(mapping)
            if a != FIXED and not node.samples[a] and a not in features and node.size[a] % tp == 0
        ]
        return max(free, key=lambda k: node.size[mapping[k]]) if free else None

    # ---- storage

    def _storage(self, t: str, use: Axes, zero: int) -> Storage:
        if zero == 0:
            return Storage()
        sizes = self.atoms.size[t]
        if not sizes:
            return Storage()
        k = max(range(len(sizes)), key=lambda j: sizes[j] / (2.0 if use[j] else 1.0))
        cut = plan_layout(self.atoms, t, tuple((*x, DP) if j == k else x for j, x in enumerate(use)))
        return Storage(cut if zero >= 3 else None, cut if zero >= 2 else None, cut)


def _divides(node: Node, graph: Graph, names: tuple[str, ...], tp: int) -> bool:
    """Whether `tp` cuts the heads of an attention evenly, key-value heads first, then the groups that share one."""
    sizes = [node.size[a] for a, f in enumerate(node.factor) if graph.ops[node.index].rule.factors[f].name in names]
    return any(s % tp == 0 for s in sizes) if sizes else True
