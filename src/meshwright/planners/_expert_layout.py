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
from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..graph.ir import Graph
from ..graph.kinds import kind_of
from ..lower.assign import Choices, cuts_along, on, plan_layout
from ..lower.atoms import FIXED, PRODUCTS, Atoms, Node, refine
from ..lower.choices import unfoldable
from ..lower.convert import Axes
from ..lower.experts import expert_atoms
from ..lower.fold import fold
from ..lower.halo import why_whole
from ..lower.memo import memo
from ..plan.model import Cut, Layout, OpSharding, Storage

DP, CP, EP, TP = "dp", "cp", "ep", "tp"
CONTEXTS = ("ulysses", "gather", "halo")
NARROW = 4
"""A product that widens its input this many times or more has it gathered rather than its result summed: a low-rank factor."""


@dataclass(frozen=True, slots=True)
class Style:
    """What of a layout decides how ops are lowered; pipeline depth, replicas and micro-batch do not."""

    tp: int
    sequence: bool
    zero: int
    recompute: str
    """none, light (element-wise ops run again), full (whole blocks run again)."""
    cp: int = 1
    ep: int = 1
    context: str = "ulysses"
    """How attention sees all positions where cp > 1; one of `CONTEXTS`."""
    whole_experts: bool = False
    """ "tp" cuts experts as "ep" does, none inside."""

    @property
    def compute(self) -> tuple[int, bool, int, int, str, bool]:
        context = self.context if self.cp > 1 else ""
        return self.tp, self.sequence, self.cp, self.ep, context, self.whole_experts and self.tp > 1


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
            data = (DP, *((EP,) if style.ep > 1 else ()), *((CP,) if style.cp > 1 else ()))
            self._stored[key, style.zero] = {t: self._storage(t, axes, style.zero, data) for t, axes in use.items()}
        return Choices(shardings, layouts, self._stored[key, style.zero], self.recomputed(style.recompute))

    def uses(self, style: Style) -> Mapping[str, Axes]:
        """Parameter -> axes per atom under which its first op computes with it."""
        self.choices(style)
        return self._computed[style.compute][2]

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


class Computing:
    """How every op of one graph computes under one style."""

    def __init__(self, expert: Expert, style: Style) -> None:
        self.expert, self.atoms, self.graph = expert, expert.atoms, expert.graph
        self.style = style
        self.size = {CP: style.cp, EP: style.ep, TP: style.tp}
        self.data: tuple[str, ...] = (DP, EP) if style.ep > 1 else (DP,)
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
        data = self.data if expert is None else (DP,)
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
        if by_factor:
            self.shardings[op.name] = OpSharding(by_factor)

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
