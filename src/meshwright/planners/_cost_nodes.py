"""Options and prices of the nodes of a cost graph: one op of the folded graph at a time, equal for all blocks of a run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import inf
from typing import TypeVar

import numpy as np

from ..cluster.model import Mesh
from ..graph.ir import Floats, Ints
from ..lower.assign import plan_layout
from ..lower.choices import unfoldable
from ..lower.convert import Axes, axes_of
from ..lower.fold import fold
from ..lower.fusion import uncut
from ..lower.many_steps import Mask, where_of
from ..lower.pieces import atoms_of
from ..plan.model import Storage
from ..plan.problem import Problem
from ..simulate.additive import Tariff
from ._cost_options import NOWHERE, OpSpace, Option, Style, Use, further
from ._cost_tables import Conversions, Ledger

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Rest:
    """How readers find a value."""

    axes: Axes
    deferred: frozenset[str] = NOWHERE
    """Axes over which its gradient stays unsummed (`Option.deferred`)."""
    made: frozenset[str] | None = None
    """Of a value made of parameters alone, whose gradient may stay unsummed: axes that cut the op that makes it."""


@dataclass(frozen=True, slots=True)
class Read:
    """By which conversion a reader gets a value."""

    use: Use
    grad: bool
    """A gradient comes back."""
    again: bool
    """Its backward reads it, so what was gathered for it is gathered again."""
    view: bool = False
    """For a view: it takes the value as it rests, or a slice of it; its readers convert what they need."""


@dataclass(eq=False)
class Node:
    """Options of one op of the folded graph."""

    space: OpSpace
    options: list[Option]
    stored: list[dict[int, Storage]]
    """Per option: operand -> storage of the parameter there."""
    rests: list[tuple[list[Rest], Ints]]
    """Per result: distinct rests, and the one of each option."""
    reads: list[tuple[list[Read], Ints]]
    """Per operand."""
    unary: Floats
    compute: Floats
    """Of `unary`, the op's own work; the rest is communication."""
    memory: Floats
    kept: Floats
    """Of `memory`, what one micro-batch keeps for its backward."""


@dataclass(eq=False)
class OwnTensor:
    """Where a graph input or a parameter with several readers may rest."""

    rests: list[Rest]
    stored: list[Storage | None]
    unary: Floats
    memory: Floats


class NodeTables:
    """Nodes, tensors with variables of their own, and conversions between them, of one problem on one mesh."""

    def __init__(
        self, problem: Problem, mesh: Mesh, micro_batches: int, styles: tuple[Style, ...], tradeoff: bool, uneven: bool
    ) -> None:
        graph = problem.graph
        self.problem, self.graph, self.mesh, self.m = problem, graph, mesh, micro_batches
        self.styles, self.tradeoff, self.uneven = styles, tradeoff, uneven
        self.folded = fold(graph, unfoldable(graph))
        self.atoms = atoms_of(graph, self.folded)
        self.sizes = dict(zip(mesh.axes, mesh.shape, strict=True))
        self.micro = problem.recipe.samples // micro_batches
        recipe = replace(problem.recipe, routing_skew=1.0)
        self.tariff = Tariff(graph, problem.cluster, problem.cost, recipe, mesh, self.micro)
        self.ledger = Ledger(self.tariff)
        self.convert = Conversions(self.atoms, self.tariff, self.ledger, self.sizes)
        self.kept = uncut(graph, recipe).kept
        self.node_of = {i: n for n, i in enumerate(self.folded.ops)}
        self.nodes: dict[Hashable, Node] = {}
        self.tensors: dict[Hashable, OwnTensor] = {}
        self._again = self._read_again()
        self._tables: dict[Hashable, tuple[Ints, Floats]] = {}

    # ---- who is who

    def place(self, op: int) -> tuple[int, int]:
        """(node, block) of an op of the whole graph."""
        for p in self.folded.pieces:
            if p.run and p.first <= op < p.first + p.length * p.count:
                block, k = divmod(op - p.first, p.length)
                return self.node_of[p.first + k], block
        return self.node_of[op], 0

    def _read_again(self) -> set[tuple[int, int]]:
        """(node, operand) whose value a backward of the same piece reads, itself or through views."""
        found: set[tuple[int, int]] = set()
        for n in range(len(self.atoms.nodes) - 1, -1, -1):
            node = self.atoms.nodes[n]
            op = self.graph.ops[node.index]
            learns = any(t in self.atoms.grad for t in node.outputs)
            seen = any(
                (m, j) in found
                for t in node.outputs
                for m, j in self.atoms.users.get(t, ())
                if self.folded.piece[m] == self.folded.piece[n]
            )
            for k, t in enumerate(op.inputs):
                if (learns and t in op.saved and op.inputs.index(t) == k) or (
                    n in self.atoms.alias and seen and k == 0
                ):
                    found.add((n, k))
        return found

    def own_params(self, n: int) -> list[int]:
        """Operands of a node that are parameters which nothing else reads, in any block."""
        op = self.graph.ops[self.atoms.nodes[n].index]
        return [
            k
            for k, t in enumerate(op.inputs)
            if self.atoms.role.get(t) == "param" and len(self.graph.consumers[t]) == 1
        ]

    # ---- nodes

    def node(self, n: int) -> Node:
        atoms, node = self.atoms, self.atoms.nodes[n]
        space = OpSpace(atoms, node, self.sizes, self.micro, uneven=self.uneven)
        options = space.options()
        own = self.own_params(n)
        learns = n in atoms.differentiable
        wanted = [t for t in node.inputs if t in atoms.grad]
        sizes = [self.convert.sizes(n, o.cuts) for o in options]
        rows = self.tariff.rows(space.op, [s for s, _ in sizes], [over for _, over in sizes])
        seconds = self.tariff.compute(space.op, rows, "forward")
        if learns:
            seconds = seconds + self.tariff.compute(space.op, rows, "backward", wanted)
        each: list[list[int]] = []
        for o in options:
            stats = self.convert.stats(n, o.cuts, learns)
            mine = [self.ledger.entry(stats)] if stats else []
            for k, t in enumerate(node.outputs):
                mine.append(self.convert.completion(t, *space.raw(o.cuts, k), o.rest[k]))
            each.append(mine)
        kept = np.array(
            [
                sum(self.convert.held(t, o.rest[k]) for k, t in enumerate(node.outputs) if t in self.kept)
                for o in options
            ]
        ).reshape(len(options))
        styled = [self._styled(n, space, o, own) for o in options]
        final: list[tuple[Option, dict[int, Storage], float, float]] = []
        work: list[float] = []
        for i, o in enumerate(options):
            base = self.m * (float(seconds[i]) + self._sum(each[i]))
            ways = []
            for style, stored, micro, once, nbytes in styled[i]:
                total = base + self.m * self._sum(micro) + self._sum(once)
                ways.append((replace(o, style=style), stored, total, float(kept[i]) + nbytes))
            final += _undominated(ways) if self.tradeoff else [min(ways, key=lambda w: w[2])]
            work += [self.m * float(seconds[i])] * (len(final) - len(work))
        held = {o.rest: float(x) for o, x in zip(options, kept, strict=True)}
        options = [o for o, *_ in final]
        made = [axes_of(o.cuts) if space.weight else None for o in options]
        rests = [
            distinct([Rest(o.rest[k], o.deferred, x) for o, x in zip(options, made, strict=True)])
            for k in range(len(node.outputs))
        ]
        reads = [distinct([self._read(n, k, space, o) for o in options]) for k in range(len(node.inputs))]
        return Node(
            space, options, [s for _, s, _, _ in final], rests, reads,
            np.array([u for _, _, u, _ in final]), np.array(work), np.array([b for *_, b in final]),
            np.array([held[o.rest] for o in options]),
        )  # fmt: skip

    def _sum(self, entries: Sequence[int]) -> float:
        return float(self.ledger.seconds(np.array(entries, np.int64)).sum())

    def _read(self, n: int, k: int, space: OpSpace, option: Option) -> Read:
        t = self.atoms.nodes[n].inputs[k]
        grad = t in self.atoms.grad and n in self.atoms.differentiable
        view = n in self.atoms.alias and k == 0
        return Read(space.use(option, k), grad, (n, k) in self._again or view, view)

    def _styled(
        self, n: int, space: OpSpace, option: Option, own: Sequence[int]
    ) -> list[tuple[Style, dict[int, Storage], list[int], list[int], float]]:
        """Per style: (style, storages, entries a micro-batch, entries a step, bytes)."""
        found = []
        seen: set[object] = set()
        for style in self.styles if own else ("used",):
            stored: dict[int, Storage] = {}
            micro: list[int] = []
            once: list[int] = []
            nbytes = 0.0
            for k in own:
                t = self.atoms.nodes[n].inputs[k]
                read = self._read(n, k, space, option)
                rest, later = read.use.need, read.use.unsummed if read.grad else NOWHERE
                if style == "param":
                    rest = further(self.atoms.size[t], rest, later or self._copies(rest), self.sizes)
                    later = later - axes_of(rest)
                    if rest != read.use.need:
                        stored[k] = Storage(param=plan_layout(self.atoms, t, rest))
                        micro.append(self.convert.conversion(t, rest, later, read.use, read.grad, read.again))
                entry, resting, more = self.convert.storage(t, rest, later, style)
                if more is not None:
                    stored[k] = more
                once.append(entry)
                nbytes += resting
            key = tuple(stored.items())
            if key not in seen:
                seen.add(key)
                found.append((style, stored, micro, once, nbytes))
        return found

    def _copies(self, rest: Axes) -> frozenset[str]:
        return frozenset(x for x, n in self.sizes.items() if n > 1) - axes_of(rest)

    # ---- tensors that have variables of their own

    def tensor(self, t: str, reads: Sequence[Read]) -> OwnTensor:
        """`t`: folded name; `reads`: of all its readers."""
        param = self.atoms.role[t] == "param"
        sizes = self.atoms.size[t]
        layouts = dict.fromkeys([((),) * len(sizes), *(r.use.need for r in reads)])
        rests: list[Rest] = []
        stored: list[Storage | None] = []
        entries: list[int] = []
        memory: list[float] = []
        styles = self.styles if param else ("used",)
        for axes, style in product(layouts, styles):
            if style == "param":
                axes = further(sizes, axes, self._copies(axes), self.sizes)
            learns = param and t in self.atoms.grad
            for later in _sums(reads, axes) if learns else [NOWHERE]:
                if not param:
                    entry, nbytes, more = self.ledger.entry(()), 0.0, None
                else:
                    entry, nbytes, more = self.convert.storage(t, axes, later, style)
                if (Rest(axes, later), more) in zip(rests, stored, strict=True):
                    continue
                rests.append(Rest(axes, later))
                stored.append(more)
                entries.append(entry)
                memory.append(nbytes)
        return OwnTensor(rests, stored, self.ledger.seconds(np.array(entries, np.int64)), np.array(memory))

    # ---- tables

    def conversions(self, t: str, rests: Sequence[Rest], sets: Sequence[Sequence[Read]], exact: bool) -> Floats:
        """Seconds [rests, sets] a step of making all conversions of a set; inf where lowering would do otherwise.

        `exact`: nothing but these reads the value, so that what its gradient stays unsummed over follows from them.
        """
        every, where = distinct(r for reads in sets for r in reads)
        prices = np.full((len(rests), len(every)), inf)
        i, j = np.nonzero(self._agree(rests, every))
        if len(i):
            axes = tuple(self.sizes)
            src, dst = where_of([r.axes for r in rests], axes), where_of([r.use.need for r in every], axes)
            grad, again = (np.array([getattr(r, name) for r in every])[j] for name in ("grad", "again"))
            later = masks([r.deferred for r in rests], axes)[i] & grad[:, None]
            summed = masks([r.use.unsummed for r in every], axes)[j] & grad[:, None] & ~later
            may_pad = (dst[j] >= 0) & (src[i] < 0) & later
            prices[i, j] = self.m * self.convert.seconds(t, src[i], dst[j], summed, may_pad, grad, again)
        starts = np.cumsum([0, *(len(reads) for reads in sets)])[:-1]
        table: Floats = np.add.reduceat(prices[:, where], starts, axis=1)
        if exact and any(rest.made is not None for rest in rests):
            for r, c in np.argwhere(table < inf):
                if not _implied(rests[r], sets[c]):
                    table[r, c] = inf
        return table

    def _agree(self, rests: Sequence[Rest], reads: Sequence[Read]) -> Mask:
        """[rests, reads] whether such a reader may find the value so.

        What the gradient stays unsummed over must be so for every reader (`lower.assign.defer`). A view that had its operand
        gathered would be made again in the backward, with all conversions behind it: what these cost then depends on more
        than one edge, and such plans are left out.
        """
        axes = tuple(self.sizes)
        resting = masks([axes_of(r.axes) for r in rests], axes)[:, None]
        deferred = masks([r.deferred for r in rests], axes)[:, None]
        needed = masks([axes_of(r.use.need) for r in reads], axes)
        unsummed = masks([r.use.unsummed for r in reads], axes) | needed & ~resting
        agree = ~(deferred & ~unsummed).any(axis=-1) | ~np.array([r.grad for r in reads])
        for j, read in enumerate(reads):
            if read.view:
                agree[:, j] &= [_sliced(r.axes, read.use.need) for r in rests]
        return agree


def _implied(rest: Rest, reads: Sequence[Read]) -> bool:
    """Whether a value made of parameters alone that only these read is left unsummed over just what `rest` says."""
    sums = [_unsummed(rest, r) for r in reads if r.grad]
    common = frozenset.intersection(*sums) - axes_of(rest.axes) - (rest.made or NOWHERE) if sums else NOWHERE
    return rest.deferred == common


def _unsummed(rest: Rest, read: Read) -> frozenset[str]:
    return read.use.unsummed | (axes_of(read.use.need) - axes_of(rest.axes))


def _sliced(rest: Axes, need: Axes) -> bool:
    """Whether `need` is a part of what every member holds under `rest`."""
    return all(want[: len(have)] == have for have, want in zip(rest, need, strict=True))


def masks(sets: Sequence[frozenset[str]], axes: Sequence[str]) -> Mask:
    """[sets, axes] which axes are in each."""
    return np.array([[x in s for x in axes] for s in sets], bool).reshape(len(sets), len(axes))


def _sums(reads: Sequence[Read], rest: Axes) -> list[frozenset[str]]:
    """Sets of axes over which the gradient of a parameter with several readers may wait for the end of the step."""
    every = frozenset(x for r in reads for x in (*r.use.unsummed, *axes_of(r.use.need))) - axes_of(rest)
    return [frozenset(c) for r in range(len(every) + 1) for c in combinations(sorted(every), r)]


def distinct(values: Iterable[T]) -> tuple[list[T], Ints]:
    """Distinct values in order, and the position of each."""
    where: dict[T, int] = {}
    index = np.array([where.setdefault(v, len(where)) for v in values], np.int64)
    return list(where), index


def _undominated(
    ways: list[tuple[Option, dict[int, Storage], float, float]],
) -> list[tuple[Option, dict[int, Storage], float, float]]:
    """Without those that another beats in seconds and bytes."""
    found: list[tuple[Option, dict[int, Storage], float, float]] = []
    for way in sorted(ways, key=lambda w: (w[3], w[2])):
        if not found or way[2] < found[-1][2]:
            found.append(way)
    return found
