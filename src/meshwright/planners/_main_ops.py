"""The ops that a method decides on, of a captured graph: products and convolutions with weights, and joins of their results.

Everything else is contracted: it reads the results of one of these (or of none) and follows it. An op that reads several of
them (an addition, an attention) is a join, with a decision of its own, so that a residual stream stays a sparse graph.

    roles of what an op can be cut on      in x     in W     in the result
    batch   rows: samples first, positions  yes      –        yes
    inner   what is summed over             yes      yes      –
    outer   features of the result          –        yes      yes
    space   rows and columns of an image    yes      –        yes

`follow` turns decisions into a plan's shardings: contracted ops are cut as what they read is, those in front of all decisions
as their readers ask, and samples where nothing says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..errors import Unsupported
from ..graph.ir import Graph
from ..lower.assign import on
from ..lower.atoms import FIXED, PRODUCTS, Atoms, Node, refine
from ..lower.convert import Axes
from ..lower.fold import fold
from ..lower.memo import memo
from ..plan.lookup import span_entry
from ..plan.model import Cut, OpSharding

NONE = -1
"""Of a decision: nothing is cut."""


def entries(graph: Graph) -> tuple[str, ...]:
    """`Stage.ops` of all ops: runs of equal blocks by number."""
    found: list[str] = []
    runs = {run.first: run for run in graph.runs}
    at = 0
    while at < len(graph.ops):
        run = runs.get(at)
        found.append(span_entry(run, 0, run.count) if run else graph.ops[at].name)
        at += run.length * run.count if run else 1
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Main:
    """One op with a decision. Roles are atoms of its node, those to be cut first in front."""

    node: int
    join: bool
    conv: bool
    batch: tuple[int, ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    space: tuple[int, ...] = ()
    x: int = 0
    """Operand that is no weight."""
    weight: int = NONE
    """Operand that is one."""


@dataclass(frozen=True)
class MainOps:
    """Decisions in program order, and which reads the result of which, through whatever is contracted."""

    atoms: Atoms
    ops: tuple[Main, ...]
    edges: tuple[tuple[int, int], ...]
    source: tuple[int, ...]
    """Per node: the decision that it follows, NONE in front of all."""

    def name(self, v: int) -> str:
        return self.atoms.folded.graph.ops[self.atoms.nodes[self.ops[v].node].index].name

    def sizes(self, v: int, samples: int) -> list[int]:
        """Sizes of the atoms of an op at `samples` samples."""
        node, graph = self.atoms.nodes[self.ops[v].node], self.atoms.folded.graph
        return [n * samples // graph.samples if s else n for n, s in zip(node.size, node.samples, strict=True)]

    def elements(self, v: int, samples: int) -> tuple[float, float, float]:
        """Elements of what an op reads, of its result and of its weight (0 of a join)."""
        main = self.ops[v]
        node, size = self.atoms.nodes[main.node], self.sizes(v, samples)

        def count(mapping: tuple[int, ...]) -> float:
            return float(prod(size[a] for a in mapping if a != FIXED))

        graph = self.atoms.folded.graph
        weight = float(prod(graph.tensor[node.inputs[main.weight]].shape)) if main.weight != NONE else 0.0
        return count(node.operands[main.x]), count(node.results[0]), weight

    def follow(
        self, decided: Sequence[Sequence[int]], axes: Sequence[str], cuts: Sequence[Sequence[Cut]] = ()
    ) -> dict[str, OpSharding]:
        """Shardings of all ops.

        Args:
            decided: per op with a decision, per axis: the atom that is cut, or NONE.
            cuts: per op with a decision, per axis: the cut itself, where parts are unequal.
        """
        return _Following(self, decided, axes, cuts).shardings()


def main_ops(graph: Graph, planner: str, also: frozenset[str] = frozenset()) -> MainOps:
    """The same for the same graph. `also`: kinds that decide for themselves, though they read one result only.

    Raises:
        Unsupported: ops of a profile, whose shapes are not known, or none that multiplies by weights; names the planner.
    """
    if not any(op.call for op in graph.ops):
        raise Unsupported(
            f"{planner} cuts ops by their shapes, which an imported profile does not have: give it a captured model"
        )
    found: MainOps = memo(graph, ("main ops", also), lambda: _found(graph, also))
    if all(op.join for op in found.ops):
        raise Unsupported(f"{planner} cuts products and convolutions with weights: this graph has none")
    return found


def _found(graph: Graph, also: frozenset[str]) -> MainOps:
    atoms = refine(fold(graph, frozenset(run.name for run in graph.runs)))
    ops: list[Main] = []
    edges: list[tuple[int, int]] = []
    source: list[int] = []
    of: dict[str, int] = {}
    marks: dict[str, tuple[str, ...]] = {}
    for n, node in enumerate(atoms.nodes):
        reads = sorted({of[t] for t in node.inputs if of.get(t, NONE) != NONE})
        main = _product(atoms, n)
        alone = graph.ops[node.index].kind in also if reads else _looks_up(atoms, node)
        if main is None and (len(reads) > 1 or alone):
            main = _join(atoms, n, marks)
        if main is not None:
            own = {of.get(t, NONE) for k, t in enumerate(node.inputs) if main.join or k == main.x} - {NONE}
            edges += [(u, len(ops)) for u in sorted(own)]
            source.append(len(ops))
            ops.append(main)
            of_space = {a: f"space{k}" for k, a in enumerate(main.space)}
            roles = dict.fromkeys(main.batch, "batch") | dict.fromkeys(main.outer, "outer") | of_space
        else:
            source.append(reads[0] if reads else NONE)
            roles = _carried(node, marks)
        for t, mapping in zip(node.outputs, node.results, strict=True):
            of[t] = NONE if t in atoms.from_params else source[-1]
            marks[t] = tuple(roles.get(a, "") for a in mapping)
    return MainOps(atoms, tuple(ops), tuple(edges), tuple(source))


def _product(atoms: Atoms, n: int) -> Main | None:
    node = atoms.nodes[n]
    op = atoms.folded.graph.ops[node.index]
    conv = op.kind.startswith("conv")
    if op.kind not in PRODUCTS and not conv:
        return None
    weights = [k for k, t in enumerate(node.inputs) if atoms.is_weight(t) and len(atoms.dims[t]) > 1]
    others = [k for k, t in enumerate(node.inputs) if t not in atoms.from_params]
    if not weights or not others:
        return None
    x, w = others[0], weights[-1]
    read, held, made = ({a for a in m if a != FIXED} for m in (node.operands[x], node.operands[w], node.results[0]))
    free = [a for a, kind in enumerate(node.kind) if kind == "free" and node.size[a] > 1]
    batch = [a for a in free if a in read and a in made and a not in held and (node.samples[a] or not conv)]
    batch.sort(key=lambda a: not node.samples[a])
    inner = [a for a in free if a in read and a in held and a not in made and a in node.summed]
    outer = [a for a in free if a in held and a in made and a not in read]
    outer.sort(key=lambda a: a in node.awkward)
    space = [a for a in node.results[0] if a != FIXED and a in read and a not in held and a not in batch]
    return Main(n, False, conv, tuple(batch), tuple(inner), tuple(outer), tuple(space), x, w)


def _looks_up(atoms: Atoms, node: Node) -> bool:
    """An embedding: the first thing that is done to data with a weight."""
    op = atoms.folded.graph.ops[node.index]
    return op.kind == "embedding" and any(t not in atoms.from_params for t in node.inputs)


def _join(atoms: Atoms, n: int, marks: Mapping[str, tuple[str, ...]]) -> Main:
    node = atoms.nodes[n]
    made = [a for a in node.results[0] if a != FIXED and node.kind[a] in ("free", "stat") and node.size[a] > 1]
    roles = _carried(node, marks)
    if not roles:  # an embedding: what data brings are rows
        looked = {a for t, m in zip(node.inputs, node.operands) if t not in atoms.from_params for a in m}
        roles = {a: "batch" if a in looked else "outer" for a in made}
    batch = sorted((a for a in made if roles.get(a) == "batch"), key=lambda a: not node.samples[a])
    outer = sorted((a for a in made if roles.get(a) == "outer"), key=lambda a: a in node.awkward)
    space = [a for k in (0, 1) for a in made if roles.get(a) == f"space{k}"]
    return Main(n, True, False, tuple(batch), (), tuple(outer), tuple(space))


def _carried(node: Node, marks: Mapping[str, tuple[str, ...]]) -> dict[int, str]:
    """Atom -> the role that it has in what is read, the first operand's word counting."""
    found: dict[int, str] = {}
    for t, mapping in zip(node.inputs, node.operands, strict=True):
        for a, role in zip(mapping, marks.get(t, ()), strict=False):
            if a != FIXED and role:
                found.setdefault(a, role)
    return found


class _Following:
    """One plan: axes per atom of every tensor, in program order."""

    def __init__(
        self, main: MainOps, decided: Sequence[Sequence[int]], axes: Sequence[str], cuts: Sequence[Sequence[Cut]]
    ) -> None:
        self.main, self.atoms, self.axes = main, main.atoms, axes
        self.decided = {op.node: v for v, op in enumerate(main.ops)}
        self.choice = decided
        self.cuts = cuts
        self.rest: dict[str, Axes] = {}
        self.order = {axis: k for k, axis in enumerate(axes)}

    def shardings(self) -> dict[str, OpSharding]:
        wanted, graph = self._wanted(), self.atoms.folded.graph
        found: dict[str, OpSharding] = {}
        for n, node in enumerate(self.atoms.nodes):
            if all(t in self.atoms.from_params for t in node.outputs):
                continue  # weights are made as they are read
            own: Axes = wanted[n] if n in wanted else self._cuts(n, node)
            for t, mapping in zip(node.outputs, node.results, strict=True):
                self.rest[t] = on(mapping, own)
            sharding = self._said(n, node, own)
            if sharding is not None:
                found[graph.ops[node.index].name] = sharding
        return self._once(found)

    def _once(self, found: dict[str, OpSharding]) -> dict[str, OpSharding]:
        """Blocks that are all cut alike said once; else an op that is not cut says so where its copy in block 0 is."""
        graph = self.atoms.folded.graph
        for run in graph.runs:
            blocks = [
                graph.ops[run.first + b * run.length : run.first + (b + 1) * run.length] for b in range(run.count)
            ]
            said = [[found.get(op.name) for op in block] for block in blocks]
            alike = all(own == said[0] for own in said)
            for block, own in zip(blocks[1:], said[1:]):
                for op, sharding, first in zip(block, own, said[0]):
                    if alike:
                        found.pop(op.name, None)
                    elif sharding is None and first is not None:
                        found[op.name] = OpSharding()
        return found

    def _cuts(self, n: int, node: Node) -> Axes:
        found: list[tuple[str, ...]] = [()] * len(node.size)
        for k, axis in enumerate(self.axes):
            a = self.choice[self.decided[n]][k] if n in self.decided else self._held(node, axis)
            if a == NONE and self.main.source[n] == NONE and n not in self.decided:
                a = next((b for b, s in enumerate(node.samples) if s and node.kind[b] in ("free", "stat")), NONE)
            if a != NONE:
                found[a] = (*found[a], axis)
        return tuple(found)

    def _held(self, node: Node, axis: str) -> int:
        """The atom on which an axis cuts what is read."""
        for t, mapping in zip(node.inputs, node.operands, strict=True):
            for a, axes in zip(mapping, self.rest.get(t, ()), strict=False):
                if a != FIXED and axis in axes and node.kind[a] in ("free", "stat"):
                    return a
        return NONE

    def _wanted(self) -> dict[int, Axes]:
        """How ops in front of all decisions are cut: as the first of their readers asks."""
        need: dict[str, Axes] = {}
        found: dict[int, Axes] = {}
        for n in reversed(range(len(self.atoms.nodes))):
            node = self.atoms.nodes[n]
            if n in self.decided:
                own = self._cuts(n, node)
            elif self.main.source[n] == NONE and any(t in need for t in node.outputs):
                own = self._asked(node, need)
                found[n] = own
            else:
                continue
            for t, mapping in zip(node.inputs, node.operands, strict=True):
                if t not in self.atoms.from_params:
                    need[t] = on(mapping, own)
        return found

    def _asked(self, node: Node, need: Mapping[str, Axes]) -> Axes:
        found: list[tuple[str, ...]] = [()] * len(node.size)
        have: set[str] = set()
        for t, mapping in zip(node.outputs, node.results, strict=True):
            for a, axes in zip(mapping, need.get(t, ()), strict=False):
                if a != FIXED and node.kind[a] in ("free", "stat"):
                    found[a] = (*found[a], *(x for x in axes if x not in have))
                    have.update(axes)
        return tuple(tuple(sorted(x, key=self.order.__getitem__)) for x in found)

    def _said(self, n: int, node: Node, own: Axes) -> OpSharding | None:
        op = self.atoms.folded.graph.ops[node.index]
        by_factor: dict[str, tuple[Cut, ...]] = {}
        v = self.main.source[n]
        for a, axes in enumerate(own):
            if axes:
                name = op.rule.factors[node.factor[a]].name
                cuts = tuple(self.cuts[v][self.order[x]] if self.cuts and v != NONE else Cut(x) for x in axes)
                by_factor[name] = by_factor.get(name, ()) + cuts
        if not by_factor:
            return None
        return OpSharding(
            {name: tuple(sorted(c, key=lambda cut: self.order[cut.axis])) for name, c in by_factor.items()}
        )
