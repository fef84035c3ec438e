"""Layouts of a whole captured model on a square or cubic grid: 2D, 2.5D and 3D, without names.

    2D    r × c        tokens over r, features over c; every product with a matrix is SUMMA            (arXiv 2104.05343)
    2.5D  d × r × c    the same in each of d layers, which share the tokens; matrices are copies over d  (arXiv 2105.14500)
    3D    i × j × l    tokens over i then j, features over l; a product gathers X over j and W over i, sums over l into the
                       tokens, and leaves tokens over i then l, features over j: products in a row alternate (arXiv 2105.14450)

products        W (K, N) rests 2D: K over r, N over c; 3D: K over l then i, N over j, or with j and l exchanged
embedding       vocabulary over r (3D: j), features over c (3D: l); sums go back to the tokens
classifier      of its own: as any product. Tied: the table rests as the embedding has it, and rows and columns of the
                grid change places
attention       whole sequences over the tokens' axes, heads over the features'
norms, losses   statistics over the features' axis
everything else follows its largest operand; a product too narrow for the grid is cut on what it sums alone
tables, read at constant positions, rest cut over what is left of the grid and are gathered

"dp" holds copies of the whole grid, which share the samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from ..cluster.model import Mesh
from ..graph.ir import Graph
from ..layouts.computing import Computing
from ..layouts.expert import Expert
from ..layouts.style import DP, Style
from ..lower import summa
from ..lower.assign import Choices, on, plan_layout
from ..lower.atoms import FIXED, PRODUCTS, Node
from ..lower.convert import Axes
from ..lower.memo import memo
from ..plan.model import Layout, OpSharding, Storage

DEPTH, ROWS, COLUMNS = "depth", "row", "column"
CUBE = ("i", "j", "l")
ROOMY = 16
"""A vocabulary, or a feature that the grid does not divide, is cut if each part has this many elements or more."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A grid of q × q (2D), d × q × q (2.5D) or q × q × q (3D) devices."""

    name: Literal["2d", "2.5d", "3d"]
    q: int
    depth: int = 1
    keeps: bool = True
    """3D: gathered operands stay until the backward, as in the paper; else they are gathered again."""

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        """Axes of the grid with their lengths; members along the last one are neighbours."""
        if self.name == "3d":
            return tuple((a, self.q) for a in CUBE)
        deep: tuple[tuple[str, int], ...] = ((DEPTH, self.depth),) if self.depth > 1 else ()
        return (*deep, (ROWS, self.q), (COLUMNS, self.q))

    @property
    def size(self) -> int:
        return prod(n for _, n in self.axes)

    @property
    def tokens(self) -> tuple[str, ...]:
        """What the samples are cut over, major first."""
        return (DP, *(a for a, _ in self.axes[:-1]))

    @property
    def turning(self) -> tuple[str, str]:
        """The two axes that may change places: the last one of the tokens, and that of the features."""
        return self.axes[-2][0], self.axes[-1][0]

    @property
    def parts(self) -> int:
        """Into which the grid cuts the samples."""
        return self.size // self.q

    def mesh(self, replicas: int) -> Mesh:
        axes = ((DP, replicas), *self.axes)
        return Mesh(range(replicas * self.size), tuple(a for a, _ in axes), tuple(n for _, n in axes))

    def words(self, replicas: int) -> str:
        grid = "×".join(str(n) for _, n in self.axes)
        return (f"dp{replicas} " if replicas > 1 else "") + f"{self.name} {grid}"


def choices_on(graph: Graph, expert: Expert, scheme: Scheme, recompute: str) -> Choices:
    """How every op of `graph` computes on the grid and every parameter rests; the same objects for the same question."""
    made: tuple[dict[str, OpSharding], dict[str, Layout], dict[str, Storage]] = memo(
        graph, ("products", id(expert), scheme), lambda: (_Products(expert, scheme).all(), expert)
    )[0]
    return Choices(*made, expert.recomputed(recompute))


class _Products(Computing):
    def __init__(self, expert: Expert, scheme: Scheme) -> None:
        super().__init__(expert, Style(1, False, 0, "none"))
        self.scheme = scheme
        self.size = dict(scheme.axes)
        self.data = scheme.tokens
        self.grids: dict[int, summa.Grid] = {}
        """By op: products that run as SUMMA."""
        self.back: dict[int, str] = {}
        """By op: the axis of partial sums that go to the tokens."""
        self.inner: dict[str, str] = {}
        """3D, by parameter: the axis of what its product sums over, behind which it rests cut over i."""

    def all(self) -> tuple[dict[str, OpSharding], dict[str, Layout], dict[str, Storage]]:
        shardings, layouts, use = self.result()
        for read, b in self.atoms.folded.carries:  # a block ends as it began
            entry = self.atoms.folded.name(read)
            if self.atoms.role.get(entry) == "activation" and self.rest[entry] != self.rest[b]:
                layouts[b] = plan_layout(self.atoms, b, self.rest[entry])
        stored = {t: self._stored(t, axes) for t, axes in use.items()}
        return shardings, layouts, {t: s for t, s in stored.items() if s is not None}

    def _stored(self, t: str, use: Axes) -> Storage | None:
        """A matrix rests cut over the whole grid; over a depth, and over replicas, it is copies."""
        sizes, q = self.atoms.size[t], self.scheme.q
        used = {x for axes in use for x in axes}
        free = [a for a, _ in self.scheme.axes if a not in used and a != DEPTH]
        if not free or sum(n > 1 for n in sizes) < 2:
            return None
        inner = [k for k, axes in enumerate(use) if self.inner.get(t) in axes]
        found = list(use)
        for axis in free:
            left = [n // prod(self.size[x] for x in axes if x in self.size) for n, axes in zip(sizes, found)]
            k = inner[0] if inner else max(range(len(left)), key=left.__getitem__)
            if left[k] >= q:
                found[k] = (*found[k], axis)
        return Storage(plan_layout(self.atoms, t, tuple(found))) if tuple(found) != use else None

    def _arrives(self, t: str) -> Axes:
        """Of data in numbers, each device loads its features alone."""
        found = list(super()._arrives(t))
        dims, number = self.atoms.dims[t], "float" in self.graph.tensor[t].dtype
        if number and 1 < len(dims) < 4 and self.atoms.size[t][-1] % self.scheme.q == 0 and not found[-1]:
            found[-1] = (self.scheme.turning[1],)
        return tuple(found)

    # ---- ops

    def _cuts(self, n: int, node: Node) -> Axes:
        cuts: list[tuple[str, ...]] = [()] * len(node.size)
        op = self.graph.ops[node.index]
        tokens, feature = self._state(node)
        sample = next((a for a, s in enumerate(node.samples) if s), None)
        if op.kind in PRODUCTS and self.expert.weighted(node) and sample is not None:
            self._product(node, cuts, sample, tokens, feature)
        elif op.kind == "embedding":
            self._lookup(node, cuts, sample, tokens, feature)
        else:
            if sample is not None:
                cuts[sample] = tokens
            for axis in (a for a in self.scheme.turning if sample is None or a not in tokens):
                for a in self._held(node, axis):
                    if self._left(node, a, cuts) >= self.scheme.q:
                        cuts[a] = (*cuts[a], axis)
                        break
        return tuple(cuts)

    def _state(self, node: Node) -> tuple[tuple[str, ...], str]:
        """Axes of the tokens of the largest operand that has some, and the axis that is left for features."""
        order = sorted(range(len(node.inputs)), key=lambda k: -prod(node.size[a] for a in node.operands[k] if a >= 0))
        tokens: tuple[str, ...] = self.scheme.tokens
        for k in order:
            pairs = zip(node.operands[k], self.rest[node.inputs[k]], strict=True)
            found = next((x for a, x in pairs if a != FIXED and node.samples[a] and x), None)
            if found is not None:
                tokens = tuple(found)
                break
        return tokens, next(a for a in reversed(self.scheme.turning) if a not in tokens)

    def _product(self, node: Node, cuts: list[tuple[str, ...]], sample: int, tokens: tuple[str, ...], f: str) -> None:
        q, op = self.scheme.q, self.graph.ops[node.index]
        rest = self.rest[node.inputs[0]]
        summed = [a for a in node.operands[0] if a in node.summed]
        resting = [a for a, axes in zip(node.operands[0], rest, strict=True) if a in node.summed and f in axes]
        even = [a for a in summed if node.size[a] % q == 0]
        inner = next(iter(resting or even or [a for a in summed if node.size[a] >= q]), None)
        column = self._column(node)
        if inner is None or column is None or len(node.operands[1]) < 2 or q == 1:
            cuts[sample] = tokens  # too narrow for the grid: sums over the features' axis, completed
            if inner is not None and resting:
                cuts[inner] = (f,)
            return
        r = tokens[-1]
        if self.scheme.name == "3d":
            cuts[sample], cuts[inner], cuts[column] = tokens[:-1], (f,), (r,)
            self.back[node.index] = f
            return
        table = node.inputs[1]
        if table in self.use and r in self.use[table][node.operands[1].index(column)]:
            tokens, r, f = (*tokens[:-1], f), f, r
        cuts[sample], cuts[column] = tokens, (f,)
        grid = summa.grid_of(op, node, tuple(cuts), rest, self.size)
        if grid is not None:
            self.grids[node.index] = grid

    def _column(self, node: Node) -> int | None:
        """The output feature of a product: one that the grid divides, else one of which every part is large."""
        rows, q = set(node.operands[0]), self.scheme.q
        free = [a for a in node.results[0] if a != FIXED and a not in rows and node.kind[a] == "free"]
        able = [a for a in free if a not in node.awkward]
        even = [a for a in able if node.size[a] % q == 0]
        return next(iter(even or [a for a in able if node.size[a] >= ROOMY * q]), None)

    def _lookup(
        self, node: Node, cuts: list[tuple[str, ...]], sample: int | None, tokens: tuple[str, ...], f: str
    ) -> None:
        q = self.scheme.q
        wide = [a for a in node.results[0] if a != FIXED and a not in node.operands[1] and node.kind[a] == "free"]
        feature = next((a for a in wide if node.size[a] % q == 0), next((a for a in wide if node.size[a] >= q), None))
        if feature is not None:
            cuts[feature] = (f,)
        rows = [a for a in node.summed if node.size[a] >= ROOMY * q]
        if sample is None:
            return
        cuts[sample] = tokens
        if rows and node.inputs[1] not in self.atoms.const and q > 1:
            cuts[sample], cuts[rows[0]] = tokens[:-1], (tokens[-1],)
            self.back[node.index] = tokens[-1]

    def _needs(self, node: Node, cuts: Axes) -> list[Axes]:
        need = super()._needs(node, cuts)
        grid = self.grids.get(node.index)
        return summa.blocks(node, grid, need) if grid is not None else need

    def _say(self, node: Node, cuts: Axes) -> None:
        super()._say(node, cuts)
        op = self.graph.ops[node.index]
        name = op.name
        if node.index in self.grids:
            self.shardings[name] = replace(self.shardings[name], variant=summa.SUMMA)
        elif self.scheme.keeps and node.index in self.back and op.kind in PRODUCTS:
            self.shardings[name] = replace(self.shardings[name], kept=tuple(dict.fromkeys(op.inputs)))

    def _read(self, node: Node, cuts: Axes) -> None:
        before = len(self.use)
        super()._read(node, cuts)
        if self.scheme.name == "3d" and node.index in self.back:
            inner = [x for a in node.summed for x in cuts[a]] if self.graph.ops[node.index].kind in PRODUCTS else []
            for t in list(self.use)[before:]:
                self.inner[t] = inner[0] if inner else self.scheme.turning[1]

    def _leave(self, node: Node, t: str, mapping: tuple[int, ...], cuts: Axes) -> None:
        """As produced, complete; sums over what a product or a lookup was cut on go to the tokens."""
        produced = on(mapping, cuts)
        self.rest[t] = produced
        axis = self.back.get(node.index)
        if axis is None:
            return
        here = list(produced)
        place = next(k for k, a in enumerate(mapping) if a != FIXED and node.samples[a])
        here[place] = (*here[place], axis)
        self.rest[t] = tuple(here)
        self.layouts[t] = plan_layout(self.atoms, t, self.rest[t])
