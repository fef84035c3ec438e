"""Data, tensor, sequence, context and expert parallelism without names: the expert layout of any captured graph.

samples             cut over "dp" (and "ep") everywhere
product x·W         row parallel over "tp" if x arrives cut on what is summed and is not narrow, else column parallel;
                    a router, and what makes a latent, stay whole, on the positions if these are cut
embedding table     cut over "tp" on the vocabulary when data indexes it
everything else     follows its largest operand that is cut
sequence parallel   results that are partial sums over "tp" rest cut along their longest dim that is neither samples
                    nor features, so the sum becomes a reduce-scatter (Korthikanti et al., arXiv 2205.05198, §4.2.2)
context             positions cut over "cp" wherever an op allows it; an attention, which must see all of them,
  ulysses           is cut on its heads instead, with all-to-alls around it (Jacobs et al., arXiv 2309.14509, §3)
  halo              without attention: rows of images, of which a convolution or pool exchanges borders with both
                    neighbours (Dryden et al., arXiv 1903.06681, §3)
  gather            has its own queries, and keys and values gathered (Dubey et al., arXiv 2407.21783, §3.3.2, but each
                    member has neighbouring queries: of causal attention the last member computes most, and sets the pace)
experts             products batched over experts, and what lies between them, are cut over "ep" on the expert; where
                    every expert sees every token these are gathered before and summed after, where they are dispatched
                    they go there and back by all-to-all (GShard, arXiv 2006.16668, §3); `whole_experts`: over "tp" too,
                    which else cuts the width of each
ZeRO 1, 2, 3        state; also gradients; also parameters rest cut over what holds copies of them, "dp", "ep" and "cp"
                    (Rajbhandari et al., arXiv 1910.02054, §5)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod

from ..graph.ir import Graph
from ..lower.assign import Choices, plan_layout
from ..lower.atoms import FIXED, PRODUCTS, Atoms, Node, refine
from ..lower.choices import unfoldable
from ..lower.convert import Axes
from ..lower.experts import expert_atoms
from ..lower.fold import fold
from ..lower.halo import why_whole
from ..lower.memo import memo
from ..plan.model import Layout, OpSharding, Storage
from .again import recomputed
from .computing import Computing
from .style import CONTEXTS, CP, Style


class Expert:
    """Layouts of one graph; the same objects for the same style, so that lowering knows them again."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.atoms: Atoms = refine(fold(graph, unfoldable(graph)))
        self._computed: dict[object, tuple[dict[str, OpSharding], dict[str, Layout], dict[str, Axes]]] = {}
        self._stored: dict[object, dict[str, Storage]] = {}
        self._again: dict[str, frozenset[str]] = {}
        self._whole: dict[tuple[int, int], bool] = {}

    def choices(self, style: Style) -> Choices:
        key = style.compute
        if key not in self._computed:
            self._computed[key] = Computing(self, style).result()
        shardings, layouts, use = self._computed[key]
        if (key, style.zero) not in self._stored:
            stored = {t: self._storage(t, axes, style.zero, style.stored) for t, axes in use.items()}
            self._stored[key, style.zero] = stored
        return Choices(shardings, layouts, self._stored[key, style.zero], self.recomputed(style.recompute))

    def uses(self, style: Style) -> Mapping[str, Axes]:
        """Parameter -> axes per atom under which its first op computes with it."""
        self.choices(style)
        return self._computed[style.compute][2]

    def recomputed(self, how: str) -> frozenset[str]:
        """Ops of repeated blocks that run again; see `again`."""
        if how not in self._again:
            self._again[how] = recomputed(self.atoms.folded, how)
        return self._again[how]

    # ---- degrees

    def tensor_degrees(self, most: int) -> list[int]:
        """Degrees up to `most` that cut a product evenly and every attention's heads, where these are most of the work."""
        found = [1]
        ops = [self.graph.ops[node.index] for node in self.atoms.nodes]
        cuttable = sum(op.flops for op in ops if op.kind in PRODUCTS or "attention" in op.kind)
        if 2 * cuttable < sum(op.flops for op in ops):
            return found
        products = [n for n in self.atoms.nodes if self.graph.ops[n.index].kind in PRODUCTS]
        for tp in range(2, most + 1):
            if self.cuts_heads(tp) and any(self.column(n, tp) is not None for n in products):
                found.append(tp)
        return found

    def contexts(self, cp: int) -> list[str]:
        """Kinds of context parallelism that cut every attention evenly, on its heads or on its queries."""
        if not self._attentions:
            windows = [n for n, node in enumerate(self.atoms.nodes) if "halo" in node.kind and any(self.positions[n])]
            return ["halo"] if any(self.row(n, cp) is not None for n in windows) else []
        if not any(any(flags) for flags in self.positions):
            return []
        fit = [self.cuts_heads(cp), all(any(n.size[a] % cp == 0 for a in self.queries(n)) for n in self._attentions)]
        return [kind for kind, able in zip(CONTEXTS, fit) if able]

    def expert_degrees(self, most: int) -> list[int]:
        """Degrees that cut the experts evenly; 1 where there are none."""
        sizes = {self.atoms.nodes[n].size[a] for n, a in self.experts.items()}
        return [ep for ep in range(1, most + 1) if ep == 1 or (sizes and all(s % ep == 0 for s in sizes))]

    @cached_property
    def _attentions(self) -> list[Node]:
        return [node for node in self.atoms.nodes if "attention" in self.graph.ops[node.index].kind]

    def cuts_heads(self, n: int) -> bool:
        """Whether `n` cuts key-value heads, or else the groups that share one, of every attention."""
        return not self.uncut_heads(n)

    def uncut_heads(self, n: int) -> str:
        """The first attention that `n` does not cut so, with its heads; "" if there is none."""
        for node in self._attentions:
            sizes = [node.size[a] for a in self.heads(node)]
            if sizes and not any(s % n == 0 for s in sizes):
                shared = f", nor the {sizes[1]} that share each," if len(sizes) > 1 else ""
                return f"the {sizes[0]} heads{shared} of {self.graph.ops[node.index].name}"
        return ""

    def heads(self, node: Node) -> list[int]:
        rule = self.graph.ops[node.index].rule
        return [a for a, f in enumerate(node.factor) if rule.factors[f].name in ("heads", "group")]

    def queries(self, node: Node) -> list[int]:
        """Atoms of an attention that its keys do not have, nor its heads."""
        keys = {*node.operands[1], *self.heads(node)}
        return [a for a in node.operands[0] if a != FIXED and a not in keys and node.kind[a] == "free"]

    # ---- what there is to cut

    @cached_property
    def positions(self) -> list[tuple[bool, ...]]:
        """Per node, per atom: a position in the sequence (dim 1 of what the data brings) or, without attention, a row of
        the images (dim 2 of what it brings in numbers).
        """
        atoms = self.atoms
        of: dict[str, tuple[bool, ...]] = {}
        for t, sizes in atoms.size.items():
            along = 1 if "int" in self.graph.tensor[t].dtype else 2
            if atoms.role[t] == "input" and len(atoms.dims[t]) > along and (along == 1 or not self._attentions):
                first = sum(atoms.dims[t][:along])
                of[t] = tuple(first <= k < first + atoms.dims[t][along] for k in range(len(sizes)))
        found = []
        for node in atoms.nodes:
            mine = [False] * len(node.size)
            for t, m in zip(node.inputs, node.operands, strict=True):
                for a, flag in zip(m, of.get(t, ()), strict=False):
                    if flag and a != FIXED:
                        mine[a] = True
            for t, m in zip(node.outputs, node.results, strict=True):
                of[t] = tuple(a != FIXED and mine[a] for a in m)
            found.append(tuple(mine))
        return found

    def row(self, n: int, cp: int) -> int | None:
        """The atom of a node whose parts are rows in a row, if `cp` members can each have some: the major one."""
        node = self.atoms.nodes[n]
        a = next((a for a, flag in enumerate(self.positions[n]) if flag and node.kind[a] != "fixed"), None)
        if a is None or node.size[a] < cp:
            return None
        op = self.graph.ops[node.index]
        if node.kind[a] == "halo":
            return None if why_whole(op, node, a, (CP,), {CP: cp}) else a
        return a if node.kind[a] in ("free", "stat") else None

    @cached_property
    def experts(self) -> dict[int, int]:
        """Node -> atom: products of activations with a parameter that has one matrix per expert."""
        found = {n: expert_atoms(self.atoms, node) for n, node in enumerate(self.atoms.nodes)}
        return {n: atoms[0] for n, atoms in found.items() if atoms}

    def weighted(self, node: Node) -> bool:
        """The last operand is a parameter, perhaps transposed."""
        t = node.inputs[-1]
        return self.atoms.is_weight(t)

    def column(self, node: Node, tp: int) -> int | None:
        """The output-feature atom of a product with a parameter that `tp` divides."""
        if not self.weighted(node):
            return None
        other = {a for a in node.operands[0] if a != FIXED}
        mine = [a for a in node.results[0] if a != FIXED and a not in other]
        fit = [a for a in mine if node.kind[a] == "free" and node.size[a] % tp == 0]
        return next((a for a in fit if a not in node.awkward and not self.whole_feature(node, a)), None)

    def whole_feature(self, node: Node, atom: int) -> bool:
        """Whether a product's feature is better left whole: a router's scores, of which the best are taken, or a latent
        that is normed and then multiplied again (DeepSeek-AI, arXiv 2405.04434, §2.1). Cut, both cost more in gathering
        than their narrow products save.
        """
        key = node.index, atom
        if key not in self._whole:
            self._whole[key] = self._read_whole(node, atom)
        return self._whole[key]

    def _read_whole(self, node: Node, atom: int) -> bool:
        normed = multiplied = False
        waiting = [(node.outputs[0], node.results[0].index(atom))]
        seen = set(waiting)
        while waiting:
            t, k = waiting.pop()
            for n, j in self.atoms.users.get(t, ()):
                reader = self.atoms.nodes[n]
                a, kind = reader.operands[j][k], self.graph.ops[reader.index].kind
                if kind == "topk":
                    return True
                if a == FIXED:
                    continue
                if kind in PRODUCTS and a in reader.summed:
                    multiplied = True
                elif n not in self.atoms.light:
                    return False
                elif a in reader.summed or reader.kind[a] == "stat":
                    normed = True
                else:
                    more = ((u, i) for u, m in zip(reader.outputs, reader.results) for i, b in enumerate(m) if b == a)
                    new = [x for x in more if x not in seen]
                    seen.update(new)
                    waiting += new
        return normed and multiplied

    # ---- storage

    def _storage(self, t: str, use: Axes, zero: int, data: tuple[str, ...]) -> Storage:
        sizes = self.atoms.size[t]
        if zero == 0 or prod(sizes) == 1:
            return Storage()
        more = tuple(a for a in data if not any(a in x for x in use))
        k = max(range(len(sizes)), key=lambda j: sizes[j] / (2.0 if use[j] else 1.0))
        cut = plan_layout(self.atoms, t, tuple((*x, *more) if j == k else x for j, x in enumerate(use)))
        return Storage(cut if zero >= 3 else None, cut if zero >= 2 else None, cut)


def expert_of(graph: Graph) -> Expert:
    """The same for the same graph, so that searches on several clusters share what they lower."""
    found: Expert = memo(graph, "expert", lambda: Expert(graph))
    return found
