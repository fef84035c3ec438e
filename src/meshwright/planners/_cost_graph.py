"""(graph, mesh, cost model) -> cost graph: how every op is cut, where values rest, how parameters are stored.

    variable   an op: what each mesh axis cuts (`OpSpace`), where its results rest, how parameters that it alone reads do
    variable   a graph input with several readers, a parameter with several: where it rests
    variable   a value with several readers in one block: which conversions of it are made, since equal ones are made once
    edge       from what makes a value to what reads it: its conversion forward and, the dual, backward

The price of a choice is the sum over the program that its plan lowers to (`simulate.additive`): every part comes from
lowering's own functions. Memory = parameters, gradients, optimizer state and what one micro-batch keeps.

Blocks of a run have equal tables, built once. `Intra.graph` has variables for every block; `Intra.uniform` one for all
blocks of a run, their edges added, what flows from block to block resting alike: its best choice is the best plan that
treats all blocks alike, and any choice of it is one of the whole graph (`Intra.spread`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

import numpy as np

from ..cluster.model import Mesh
from ..errors import Unsupported
from ..graph.ir import Floats, Graph, Ints
from ..lower.assign import cuts_along, plan_layout
from ..lower.atoms import Atoms
from ..plan.lookup import span_entry
from ..plan.model import Layout, OpSharding, Plan, Schedule, Stage, Storage
from ..plan.problem import Problem
from ..solvers.cost_graph import CostGraph
from ._cost_nodes import Node, NodeTables, OwnTensor, Rest, distinct
from ._cost_options import Style
from ._cost_sets import ReadSets, read_sets


@dataclass(frozen=True, slots=True)
class Variable:
    """What a variable of the cost graph decides, and which tables it shares with others."""

    like: Hashable
    """Variables of one kind have equal options: the node of an op, the readers of a value, the tensor."""
    block: int = 0
    op: str = ""
    """Its own op, where it decides one."""
    tensor: str = ""
    """Its own tensor, where it decides where that rests."""


@dataclass(frozen=True, eq=False)
class Intra:
    """A cost graph of one stage, and what its choices mean."""

    problem: Problem
    mesh: Mesh
    micro_batches: int
    variables: tuple[Variable, ...]
    graph: CostGraph
    uniform: CostGraph
    """One variable for all `variables` of equal `like`."""
    same: Ints
    """Per variable of `graph`: its variable in `uniform`."""
    nodes: Mapping[Hashable, Node] = field(repr=False)
    tensors: Mapping[Hashable, OwnTensor] = field(repr=False)

    def spread(self, choice: Sequence[int]) -> tuple[int, ...]:
        """A choice of `uniform` as one of `graph`."""
        return tuple(choice[k] for k in self.same)

    def plan(self, choice: Sequence[int]) -> Plan:
        """The plan of a choice of `graph`: one stage on the mesh. Blocks that are treated alike are said once."""
        return self._plan(zip(self.variables, choice, strict=True))

    def uniform_plan(self, choice: Sequence[int]) -> Plan:
        """The plan of a choice of `uniform`."""
        return self._plan(zip(self._kinds, choice, strict=True))

    @cached_property
    def _kinds(self) -> tuple[Variable, ...]:
        """Per variable of `uniform` the first that it stands for."""
        first: dict[Hashable, Variable] = {}
        for variable in self.variables:
            first.setdefault(variable.like, variable)
        return tuple(first.values())

    def _plan(self, chosen: Iterable[tuple[Variable, int]]) -> Plan:
        problem, graph = self.problem, self.problem.graph
        stage = Stage(_entries(graph), self.mesh)
        shardings: dict[str, OpSharding] = {}
        layouts: dict[str, Layout] = {}
        storage: dict[str, Storage] = {}
        first: dict[Hashable, int] = {}
        for variable, c in chosen:
            if variable.tensor:
                tensor = self.tensors[variable.like]
                atoms = self._atoms
                layout = plan_layout(atoms, atoms.folded.name(variable.tensor), tensor.rests[c].axes)
                if graph.tensor[variable.tensor].role == "param":
                    storage[variable.tensor] = replace(tensor.stored[c] or Storage(), param=layout)
                else:
                    layouts[variable.tensor] = layout
            if not variable.op or (variable.block and first[variable.like] == c):
                continue
            first.setdefault(variable.like, c)
            node, op = self.nodes[variable.like], graph.ops[graph.position[variable.op]]
            option = node.options[c]
            by_factor: dict[str, list[str]] = {}
            for a, f in enumerate(node.space.node.factor):
                by_factor.setdefault(node.space.op.rule.factors[f].name, []).extend(option.cuts[a])
            order = list(self.mesh.axes)
            cuts = {f: cuts_along(tuple(sorted(x, key=order.index))) for f, x in by_factor.items() if x}
            shardings[op.name] = OpSharding(cuts)
            for k, t in enumerate(op.outputs):
                if node.space.raw(option.cuts, k)[1] or variable.block:
                    layouts[t] = plan_layout(self._atoms, node.space.node.outputs[k], option.rest[k])
            for k, stored in node.stored[c].items():
                storage[op.inputs[k]] = stored
        stage = replace(stage, shardings=shardings, layouts=layouts, storage=storage)
        schedule = Schedule("1f1b", self.micro_batches)
        return Plan(graph.digest, problem.recipe.samples, (stage,), schedule)

    @property
    def _atoms(self) -> Atoms:
        return next(iter(self.nodes.values())).space.atoms


def build(
    problem: Problem,
    mesh: Mesh,
    micro_batches: int = 1,
    *,
    styles: Sequence[Style] = ("used", "state"),
    tradeoff: bool = False,
    uneven: bool = False,
) -> Intra:
    """The cost graph of all of a captured model on one mesh.

    Args:
        mesh: any number of axes; each cuts one thing of an op.
        micro_batches: of a step; each has samples / micro_batches samples over the whole mesh.
        styles: how parameters may rest where members compute copies with them.
        tradeoff: keep every style of an option, for memory against time; else its fastest one only.
        uneven: offer cuts into unequal parts (no empty ones), which cannot all be executed.

    Raises:
        Unsupported: backward ops are written out, or micro-batches are not alike.
    """
    if problem.graph.training == "explicit":
        raise Unsupported("cost graphs are built from forward graphs, whose backward follows by duality")
    if problem.recipe.samples % micro_batches:
        raise Unsupported(f"{micro_batches} micro-batches do not divide the batch of {problem.recipe.samples}")
    tables = NodeTables(problem, mesh, micro_batches, tuple(styles), tradeoff, uneven)
    return _Assembly(tables).intra(problem, mesh, micro_batches)


class _Assembly:
    """Variables and edges of the whole graph from the tables of its nodes."""

    def __init__(self, tables: NodeTables) -> None:
        self.tables = tables
        self.graph, self.atoms = tables.graph, tables.atoms
        self.variables: list[Variable] = []
        self.unary: list[Floats] = []
        self.memory: list[Floats] = []
        self.edges: list[tuple[int, int]] = []
        self.prices: list[Floats] = []
        self.same: list[Hashable] = []
        self._of: dict[tuple[Hashable, int], int] = {}
        self._kept: dict[Hashable, Floats | None] = {}
        self._sets: dict[Hashable, ReadSets] = {}

    def intra(self, problem: Problem, mesh: Mesh, micro_batches: int) -> Intra:
        for i in range(len(self.graph.ops)):
            self._op(i)
        for t, uses in self._readings().items():
            self._value(t, uses)
        numbers: dict[Hashable, int] = {}
        same = np.array([numbers.setdefault(v.like, len(numbers)) for v in self.variables], np.int64)
        whole = CostGraph(tuple(self.unary), tuple(self.edges), tuple(self.prices), tuple(self.memory))
        return Intra(
            problem, mesh, micro_batches, tuple(self.variables), whole, self._uniform(whole, same), same,
            self.tables.nodes, self.tables.tensors,
        )  # fmt: skip

    # ---- variables

    def _add(self, variable: Variable, unary: Floats, memory: Floats) -> int:
        self.variables.append(variable)
        self.unary.append(unary)
        self.memory.append(memory)
        self._of[variable.like, variable.block] = len(self.variables) - 1
        return len(self.variables) - 1

    def _op(self, i: int) -> None:
        """Constants are computed once for all micro-batches; inside of runs they count as any op."""
        n, block = self.tables.place(i)
        node = self.atoms.nodes[n]
        inside = any(r.first <= i < r.first + r.length * r.count for r in self.graph.runs)
        if all(t in self.atoms.const for t in node.outputs) and not inside:
            return
        if n not in self.tables.nodes:
            self.tables.nodes[n] = self.tables.node(n)
        found = self.tables.nodes[n]
        self._add(Variable(n, block, op=self.graph.ops[i].name), found.unary, found.memory)

    def _readings(self) -> dict[str, dict[tuple[int, int], list[tuple[int, int]]]]:
        """Value -> (piece, block) -> (node, operand) of its readers there; without what costs nothing wherever it rests."""
        found: dict[str, dict[tuple[int, int], list[tuple[int, int]]]] = {}
        tables = self.tables
        for i, op in enumerate(self.graph.ops):
            n, block = tables.place(i)
            if (n, block) not in self._of:
                continue
            own = tables.own_params(n)
            for k, t in enumerate(op.inputs):
                folded = self.atoms.nodes[n].inputs[k]
                if k not in own and self.atoms.role[folded] != "buffer" and folded not in self.atoms.const:
                    found.setdefault(t, {}).setdefault((tables.folded.piece[n], block), []).append((n, k))
        return found

    # ---- edges

    def _edge(self, u: int, v: int, table: Floats | None) -> None:
        if table is not None:
            self.edges.append((u, v))
            self.prices.append(table)

    def _value(self, t: str, uses: dict[tuple[int, int], list[tuple[int, int]]]) -> None:
        """All ways from what makes a value to what reads it."""
        like: Hashable
        made = self.graph.producer.get(t)
        several = sum(map(len, uses.values())) > 1
        if made is None:
            if not several:
                return  # an input rests as its only reader reads it
            folded = t
            source, like = self._own(t, uses), ("tensor", t)
            rests, index = self.tables.tensors[like].rests, None
        else:
            n, block = self.tables.place(made)
            source, j = self._of[n, block], self.graph.ops[made].outputs.index(t)
            folded, like = self.atoms.nodes[n].outputs[j], ("result", n, j)
            rests, index = self.tables.nodes[n].rests[j]
        for (_, block), readers in uses.items():
            self._readers(folded, source, like, rests, index, block, tuple(readers), len(uses) == 1)

    def _own(self, t: str, uses: dict[tuple[int, int], list[tuple[int, int]]]) -> int:
        """The variable of a tensor that no op makes."""
        like = ("tensor", t)
        reads = [r for readers in uses.values() for n, k in readers for r in self.tables.nodes[n].reads[k][0]]
        found = self.tables.tensors[like] = self.tables.tensor(t, list(dict.fromkeys(reads)))
        return self._add(Variable(like, tensor=t), found.unary, found.memory)

    def _readers(
        self,
        t: str,
        source: int,
        like: Hashable,
        rests: Sequence[Rest],
        index: Ints | None,
        block: int,
        readers: tuple[tuple[int, int], ...],
        exact: bool,
    ) -> None:
        nodes = self.tables.nodes
        key: Hashable
        for n, k in readers:
            key = ("lands", like, n, k)
            if key not in self._kept:
                self._kept[key] = self._lands(rests, index, n, k)
            self._edge(source, self._of[n, block], self._kept[key])
        if len(readers) == 1:
            (n, k) = readers[0]
            key = (like, n, k, exact)
            if key not in self._kept:
                reads, of = nodes[n].reads[k]
                small = self.tables.conversions(t, rests, [(r,) for r in reads], exact)
                self._kept[key] = _spread(small, index, of)
            self._edge(source, self._of[n, block], self._kept[key])
            return
        group = ("readers", readers)
        if group not in self._sets:
            self._sets[group] = read_sets([nodes[n].reads[k][0] for n, k in readers])
        found = self._sets[group]
        key = (like, group, exact)
        if key not in self._kept:
            self._kept[key] = _spread(self.tables.conversions(t, rests, found.sets, exact), index, None)
        middle = self._of.get((group, block))
        if middle is None:
            nothing = np.zeros(len(found.sets))
            middle = self._add(Variable(group, block), nothing, nothing)
        self._edge(source, middle, self._kept[key])
        for n, k in readers:
            served = ("served", group, n, k)
            if served not in self._kept:
                reads, of = nodes[n].reads[k]
                self._kept[served] = np.where(found.serve(reads), 0.0, inf)[:, of]
            self._edge(middle, self._of[n, block], self._kept[served])

    def _lands(self, rests: Sequence[Rest], index: Ints | None, n: int, k: int) -> Floats | None:
        """[source options, reader options] inf where lowering would cut the reader on another atom; None if it never would."""
        node = self.tables.nodes[n]
        if not node.space.constrained(k):
            return None
        cuts, of = distinct(o.cuts for o in node.options)
        places, at = distinct(r.axes for r in rests)
        lands = node.space.lands(cuts, k, places)
        return None if lands.all() else _spread(np.where(lands, 0.0, inf)[at], index, of)

    # ---- one variable for all blocks

    def _uniform(self, whole: CostGraph, same: Ints) -> CostGraph:
        first = {int(k): v for v, k in reversed(list(enumerate(same)))}
        counts = np.bincount(same)
        unary = tuple(counts[k] * whole.unary[first[k]] for k in range(len(first)))
        memory = tuple(counts[k] * whole.memory[first[k]] for k in range(len(first)))
        tables: dict[tuple[int, int, int], tuple[int, Floats]] = {}
        for (u, v), table in zip(whole.edges, whole.tables, strict=True):
            key = int(same[u]), int(same[v]), id(table)
            tables[key] = tables.get(key, (0, table))[0] + 1, table
        edges = [(u, v) for u, v, _ in tables]
        prices = [n * table for n, table in tables.values()]
        for a, b in self.tables.folded.carries:
            ends = [self._rests_of(x) for x in (a, b)]
            if all(end is not None for end in ends):
                (u, rests), (v, others) = ends  # type: ignore[misc]
                alike = np.array([[r.axes == o.axes for o in others] for r in rests])
                edges.append((int(same[u]), int(same[v])))
                prices.append(np.where(alike, 0.0, inf))
        return CostGraph(unary, tuple(edges), tuple(prices), memory)

    def _rests_of(self, t: str) -> tuple[int, list[Rest]] | None:
        """The variable that decides where a value rests, and the rest of each of its options."""
        made = self.graph.producer.get(t)
        if made is None:
            own = self._of.get((("tensor", t), 0))
            return None if own is None else (own, self.tables.tensors["tensor", t].rests)
        n, block = self.tables.place(made)
        if (n, block) not in self._of:
            return None
        rests, index = self.tables.nodes[n].rests[self.graph.ops[made].outputs.index(t)]
        return self._of[n, block], [rests[i] for i in index]


def _spread(table: Floats, rows: Ints | None, columns: Ints | None) -> Floats:
    """Rows and columns of distinct entries for all options."""
    found = table if rows is None else table[rows]
    return np.ascontiguousarray(found if columns is None else found[:, columns])


def _entries(graph: Graph) -> tuple[str, ...]:
    """All ops of a graph in program order, blocks of runs by their span."""
    found: list[str] = []
    at = 0
    for run in sorted(graph.runs, key=lambda r: r.first):
        found += [op.name for op in graph.ops[at : run.first]]
        found.append(span_entry(run, 0, run.count))
        at = run.first + run.length * run.count
    return (*found, *(op.name for op in graph.ops[at:]))
