"""What every interval of layers costs on every submesh and logical shape: the stage prices of Alpa's inter-operator programme.

The cost graph of the whole model is built once for each logical mesh (`_cost_graph`). An interval of layers is the part of it
between the interval's ops: what crosses its ends is free, as in the paper. Blocks that are alike are sharded alike, so that
they are one block whose prices count as often as it stands in the interval; intervals that are alike are solved once.

A configuration of a submesh is a logical shape together with a weight of memory. Weight 0 is the fastest choice. A larger one
trades time for bytes, which parameters, gradients and optimizer state that rest cut over devices that would keep copies give:
what the paper's rewrite of all-reduces as reduce-scatters and all-gathers does after the fact (section 4.2).

What a choice minimises is all seconds, or, as in the paper, communication alone (section 4.2: work is divided evenly by any
strategy, so products use every axis and what is light does not count). A stage costs its seconds either way: the paper profiles
what its programme chose.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Literal

import numpy as np

from ..cluster.model import Mesh
from ..graph.ir import Floats, Ints
from ..lower.assign import plan_layout
from ..lower.convert import axes_of
from ..plan.lookup import layout_of, stage_ops
from ..plan.model import Layout, OpSharding, Stage, Storage
from ..plan.problem import Problem
from ..solvers.certified import certified
from ..solvers.cost_graph import CostGraph
from ..solvers.mixed_integer import Bools
from ..solvers.stage_programme import StageChoice, covering
from ._captured import shapes_of
from ._cost_graph import Intra, build
from ._cost_nodes import Node
from ._cost_options import Option
from ._layers import Layers, is_heavy
from .types import Run

WEIGHTS = (0.0, 0.05, 0.2, 1.0, 10.0)
"""Of memory: a choice that halves all bytes may cost half of this weight more of all time."""

TIE = 1e-6
"""Of seconds of work, where communication alone counts: of equal communication the less work."""

Minimised = Literal["time", "communication"]

LONG = 60.0
"""Seconds after which the best known sharding of an interval is taken without its proof."""


@dataclass(frozen=True, slots=True)
class Config:
    """A logical mesh of a submesh, and how much memory counts."""

    shape: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class Piece:
    """The best sharding of an interval."""

    seconds: float
    """Of a step, all micro-batches."""
    rest: float
    """Bytes of parameters, gradients and optimizer state of a device."""
    kept: float
    """Bytes of one micro-batch in flight."""
    options: dict[Hashable, int]
    """Option of each kind of variable."""
    proved: bool


NOTHING = Piece(inf, inf, inf, {}, True)


class Intervals:
    """Prices of intervals of layers of one problem, with one number of micro-batches."""

    def __init__(
        self,
        problem: Problem,
        layers: Layers,
        submeshes: Sequence[tuple[int, int]],
        micro_batches: int,
        imbalance: float,
        run: Run,
        minimised: Minimised = "time",
    ) -> None:
        self.problem, self.layers, self.submeshes, self.b, self.run = problem, layers, submeshes, micro_batches, run
        self.minimised = minimised
        self.configs = [[Config(s, w) for s in shapes_of(m, m[0] == 1) for w in WEIGHTS] for m in submeshes]
        self.imbalance = imbalance
        self.parts: dict[tuple[int, ...], _Part] = {}
        self.pieces: dict[tuple[int, int, int, int], Piece] = {}

    def tables(self, count: int) -> tuple[Floats, Floats, Floats]:
        """(seconds of a micro-batch, bytes at rest, bytes of a micro-batch in flight) [layers, layers, submeshes, configs]."""
        n, most = len(self.layers), max(map(len, self.configs))
        shape = (n, n, len(self.submeshes), most)
        seconds, rest, kept = (np.full(shape, inf) for _ in range(3))
        flops = np.array(self.layers.flops)
        share = flops / max(flops.sum(), 1e-300)
        todo = [
            (i, k, m)
            for m, submesh in enumerate(self.submeshes)
            for i in range(n)
            for k in range(i, n)
            if self._balanced(share[i : k + 1].sum(), prod(submesh) / count, i == 0 and k == n - 1)
        ]
        for done, (i, k, m) in enumerate(todo):
            for c in range(len(self.configs[m])):
                piece = self.piece(i, k, m, c)
                seconds[i, k, m, c], rest[i, k, m, c], kept[i, k, m, c] = piece.seconds / self.b, piece.rest, piece.kept
            self.run.tick(1, f"stages, {self.b} micro-batches", done + 1, len(todo))
        return seconds, rest, kept

    def piece(self, i: int, k: int, m: int, c: int) -> Piece:
        """Layers i … k on submesh m in configuration c."""
        if (i, k, m, c) not in self.pieces:
            config = self.configs[m][c]
            self.pieces[i, k, m, c] = self.part(config.shape).piece(i, k, config.weight, self.run)
        return self.pieces[i, k, m, c]

    def part(self, shape: tuple[int, ...]) -> _Part:
        if shape not in self.parts:
            mesh = Mesh(range(prod(shape)), ("x", "y")[: len(shape)], shape)
            intra = build(self.problem, mesh, self.b, styles=("used", "state", "param"), tradeoff=True)
            self.parts[shape] = _Part(intra, self.layers, self.minimised)
        return self.parts[shape]

    def stages(self, chosen: Sequence[StageChoice]) -> tuple[Stage, ...]:
        """The stages of a plan, on submeshes that cover the cluster."""
        shapes = [self.submeshes[c.mesh] for c in chosen]
        found = []
        for choice, devices in zip(chosen, covering(shapes), strict=True):
            config = self.configs[choice.mesh][choice.config]
            piece = self.pieces[choice.first, choice.stop - 1, choice.mesh, choice.config]
            found.append(self.part(config.shape).stage(piece, choice.first, choice.stop, devices))
        return tuple(found)

    def _balanced(self, work: float, devices: float, whole: bool) -> bool:
        """Shares of FLOPs and of devices that differ by a larger factor are no stage of a good plan (the authors' pruning)."""
        limit = 1.0 + self.imbalance
        return whole or (work <= limit * devices and devices <= limit * work)


class _Part:
    """The cost graph of the model on one logical mesh, and its intervals."""

    def __init__(self, intra: Intra, layers: Layers, minimised: Minimised) -> None:
        self.intra, self.graph = intra, layers.graph
        graph, variables = intra.graph, intra.variables
        self.layers = layers
        self.member = self._members(layers)
        self.same = np.asarray(intra.same)
        self.likes = [v.like for v in variables]
        self.like_of = {self.graph.position[v.op]: v.like for v in variables if v.op}
        """Op -> its kind."""
        self.kinds = len(intra.uniform.unary)
        self.first = np.full(self.kinds, -1)
        for v in range(len(variables) - 1, -1, -1):
            self.first[self.same[v]] = v
        numbers: dict[int, int] = {}
        self.tables: list[Floats] = []
        of_edge = []
        for table in graph.tables:
            if id(table) not in numbers:
                numbers[id(table)] = len(self.tables)
                self.tables.append(table)
            of_edge.append(numbers[id(table)])
        ends = np.array(graph.edges, np.int64).reshape(-1, 2)
        self.u, self.v, self.table = ends[:, 0], ends[:, 1], np.array(of_edge, np.int64)
        self.own = {k: graph.unary[self.first[k]] for k in range(self.kinds)}
        self.unseen = {k: self._unseen(int(self.first[k]), minimised) for k in range(self.kinds)}
        """Per kind and option: of `own`, what the choice does not see; −inf where it may not be chosen."""
        self.memory = {k: graph.memory[self.first[k]] for k in range(self.kinds)}
        self.kept = {k: self._kept(int(self.first[k])) for k in range(self.kinds)}
        # What flows from block to block rests alike: the edges of the uniform graph that no edge of the whole one makes.
        made = len({(int(self.same[u]), int(self.same[v]), int(t)) for u, v, t in zip(self.u, self.v, self.table)})
        self.alike = list(zip(intra.uniform.edges, intra.uniform.tables, strict=True))[made:]
        self.done: dict[Hashable, Piece] = {}
        self.scale = self._scale()

    def piece(self, i: int, k: int, weight: float, run: Run) -> Piece:
        """The best sharding of layers i … k."""
        inside: Bools = np.logical_or.reduce(self.member[i : k + 1], axis=0)
        count = np.bincount(self.same[inside], minlength=self.kinds)
        both = inside[self.u] & inside[self.v]
        keys = np.stack([self.same[self.u[both]], self.same[self.v[both]], self.table[both]])
        edges, times = np.unique(keys, axis=1, return_counts=True)
        key = (count.tobytes(), edges.tobytes(), times.tobytes(), weight)
        if key not in self.done:
            self.done[key] = self._solved(count, edges, times, weight, run)
        return self.done[key]

    def _solved(self, count: Ints, edges: Ints, times: Ints, weight: float, run: Run) -> Piece:
        kinds: list[int] = np.flatnonzero(count).tolist()
        place = {k: p for p, k in enumerate(kinds)}
        price = weight * self.scale
        unary = tuple(
            count[k] * (self.own[k] - self.unseen[k] + (price * self.memory[k] if price else 0.0)) for k in kinds
        )
        pairs = [(place[int(u)], place[int(v)]) for u, v, _ in edges.T]
        tables = [self.tables[t] if n == 1 else n * self.tables[t] for t, n in zip(edges[2], times, strict=True)]
        for (u, v), table in self.alike:
            if u in place and v in place:
                pairs.append((place[u], place[v]))
                tables.append(table)
        found = certified(
            CostGraph(unary, tuple(pairs), tuple(tables)),
            seconds=LONG,
            progress=lambda *told: run.tick(0, "intra-operator"),
        )
        if not found.choice:
            return NOTHING
        chosen = dict(zip(kinds, found.choice, strict=True))
        held = sum(count[k] * float(self.memory[k][c]) for k, c in chosen.items())
        kept = sum(count[k] * float(self.kept[k][c]) for k, c in chosen.items())
        unseen = sum(count[k] * float(self.unseen[k][c]) for k, c in chosen.items())
        options = {self.likes[self.first[k]]: c for k, c in chosen.items()}
        return Piece(found.value - price * held + unseen, held - kept, kept, options, found.gap == 0.0)

    def stage(self, piece: Piece, first: int, stop: int, devices: range) -> Stage:
        """The stage of layers first … stop − 1 by a piece: what the plan of the whole model would say of these ops, and of
        values that arrive."""
        intra, graph = self.intra, self.graph
        whole = intra.plan(tuple(piece.options.get(like, 0) for like in self.likes)).stages[0]
        ops = {v.op for v in intra.variables if v.op and v.like in piece.options}
        made = {t for name in ops for t in graph.ops[graph.position[name]].outputs}
        read = {t for name in ops for t in graph.ops[graph.position[name]].inputs}
        shardings: dict[str, OpSharding] = {n: s for n, s in whole.shardings.items() if n in ops}
        layouts: dict[str, Layout] = {t: x for t, x in whole.layouts.items() if t in made or t in read}
        storage: dict[str, Storage] = {t: x for t, x in whole.storage.items() if t in read}
        mesh = Mesh(devices, intra.mesh.axes, intra.mesh.shape)
        stage = Stage(self.layers.entries(first, stop), mesh, shardings, layouts, storage)
        arriving = self._arriving(piece, stage)
        return replace(stage, layouts={**layouts, **arriving}) if arriving else stage

    def _arriving(self, piece: Piece, stage: Stage) -> dict[str, Layout]:
        """Layouts of values of earlier stages that decide which atom of a factor their readers cut (`OpSpace.lands`).

        Inside an interval the edges from what makes such a value see to that; it is laid anew where it arrives anyhow, so it
        arrives as a reader needs it, the first one with which all of them do as chosen. Of values of the first block of a run
        nothing can be said alone: their names speak for all blocks.
        """
        graph = self.graph
        spoken = {i for run in graph.runs for i in range(run.first, run.first + run.length)}
        ops = stage_ops(graph, stage)
        readers: dict[str, list[tuple[Node, int, Option]]] = {}
        for i in ops:
            like = self.like_of.get(i)
            if like is None:
                continue
            node = self.intra.nodes[like]
            for k, t in enumerate(graph.ops[i].inputs):
                made = graph.producer.get(t, ops[0])
                if made < ops[0] and made not in spoken and node.space.constrained(k):
                    readers.setdefault(t, []).append((node, k, node.options[piece.options[like]]))
        return {t: self._fitting(found) for t, found in readers.items() if not layout_of(graph, stage, t)}

    @staticmethod
    def _fitting(readers: Sequence[tuple[Node, int, Option]]) -> Layout:
        """As the first reader needs it with which all cut the atoms that they chose; as the first one, if there is none."""
        needs = [node.space.use(option, k).need for node, k, option in readers]
        fine = np.logical_and.reduce([node.space.lands((o.cuts,), k, needs)[:, 0] for node, k, o in readers])
        node, k, _ = readers[0]
        return plan_layout(node.space.atoms, node.space.node.inputs[k], needs[int(np.argmax(fine))])

    def _members(self, layers: Layers) -> Bools:
        """[layers, variables]: is the variable part of the layer? One that stands between ops goes with its readers."""
        graph, intra = layers.graph, self.intra
        found = np.zeros((len(layers), len(intra.variables)), bool)
        ends = np.array(layers.ends)
        for v, variable in enumerate(intra.variables):
            if variable.op:
                found[np.searchsorted(ends, graph.position[variable.op], side="right"), v] = True
        for u, v in intra.graph.edges:
            if not intra.variables[u].op:
                found[:, u] |= found[:, v]
        for u, v in intra.graph.edges:  # a tensor that is read through a set of conversions
            if not intra.variables[u].op:
                found[:, u] |= found[:, v]
        return found

    def _kept(self, v: int) -> Floats:
        """Bytes of a micro-batch that an option keeps for its backward."""
        variable = self.intra.variables[v]
        if not variable.op:
            return np.zeros(len(self.intra.graph.unary[v]))
        return self.intra.nodes[variable.like].kept

    def _unseen(self, v: int, minimised: Minimised) -> Floats:
        """Seconds of an op's work per option; −inf for a product that leaves an axis out, where another option does not."""
        variable = self.intra.variables[v]
        if minimised == "time" or not variable.op:
            return np.zeros(len(self.intra.graph.unary[v]))
        node = self.intra.nodes[variable.like]
        work = (1.0 - TIE) * node.compute
        if is_heavy(node.space.op):
            axes = {a for a, n in zip(self.intra.mesh.axes, self.intra.mesh.shape, strict=True) if n > 1}
            idle = np.array([len(axes_of(option.cuts)) < len(axes) for option in node.options])
            if not idle.all():
                work = np.where(idle, -inf, work)
        return work

    def _scale(self) -> float:
        """Seconds a byte: all seconds over all bytes, each option at its least."""
        times = np.bincount(self.same, minlength=self.kinds)
        seconds = sum(n * float(np.min(self.own[k])) for k, n in enumerate(times))
        held = sum(n * float(np.min(self.memory[k])) for k, n in enumerate(times))
        return seconds / held if held > 0 and np.isfinite(seconds) else 0.0
