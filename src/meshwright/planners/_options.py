"""Planners that choose one option per op: the cost graph of a problem, and how choices are written as plans and read back.

cost.tables        the recorded graph; an option is a variant of its op
cost.pase_flops    an option cuts the dims of an op's iteration space; ops that are cut alike share a stage, whose mesh has
                   an axis for each dim that is cut
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, prod

import numpy as np

from .._words import size
from ..cluster.model import Mesh
from ..cost.pase_flops import PaSEFlops, configurations, tensor_cuts
from ..cost.tables import Tables
from ..errors import Unsupported
from ..graph.ir import Floats, Op
from ..plan.lookup import stage_ops
from ..plan.model import Cut, OpSharding, Plan, Stage
from ..plan.problem import Problem
from ..solvers.cost_graph import CostGraph


class Options(abc.ABC):
    """The options of every op of one problem. Variables are the ops, in their order in the graph."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @property
    @abc.abstractmethod
    def graph(self) -> CostGraph:
        """Prices in the unit of the problem's cost model, and bytes."""

    @abc.abstractmethod
    def plan(self, choice: Sequence[int]) -> Plan:
        """One option for each op as a plan."""

    @abc.abstractmethod
    def choice(self, plan: Plan) -> tuple[int, ...]:
        """The options that a plan takes.

        Raises:
            Unsupported: names an op that is computed in a way that is no option.
        """

    @abc.abstractmethod
    def words(self, variable: int, option: int) -> str:
        """An option as people write it."""


def options_of(problem: Problem) -> Options:
    """The options of a problem.

    Raises:
        Unsupported: a cost model that has none.
    """
    if isinstance(problem.cost, Tables):
        return TableOptions(problem, problem.cost)
    if isinstance(problem.cost, PaSEFlops):
        return PaSEOptions(problem, problem.cost)
    raise Unsupported(
        f"no options are known for cost model {problem.cost.name}: plan a recorded cost graph, or a graph of PaSE's format"
    )


def is_recorded(problem: Problem) -> bool:
    """Do its prices come with options of their own? Else they are made for the shards of a captured model."""
    return isinstance(problem.cost, Tables | PaSEFlops)


def resized(problem: Problem, devices: int) -> Problem:
    """The same problem on fewer or more devices of its kind.

    Raises:
        Unsupported: prices that were recorded for one number of devices.
    """
    if not isinstance(problem.cost, PaSEFlops):
        raise Unsupported(
            f"prices of cost model {problem.cost.name} are for {problem.cluster.count} devices: other numbers cannot be planned"
        )
    levels = tuple(replace(level, size=devices) for level in problem.cluster.levels)
    return replace(problem, cluster=replace(problem.cluster, count=devices, levels=levels))


def memory_cap(problem: Problem) -> float:
    """Memory that a device may hold, in what the cost model counts; inf = no limit."""
    memory = min(problem.limits.memory, *(t.memory for t in problem.cluster.types))
    return problem.limits.usable(memory) if memory < inf else inf


def no_choice(problem: Problem, graph: CostGraph, cap: float) -> str:
    """Why no choice of options is legal, of a graph where that is so."""
    least = sum(float(m.min()) for m in graph.memory)
    native = problem.cost.unit != "s" or isinstance(
        problem.cost, Tables
    )  # counts elements, or whatever it was recorded in
    said = "{:.6g}".format if native else size
    if least > cap:
        return f"the least memory of any plan on {problem.cluster.count} devices is {said(least)}, above the limit of {said(cap)}"
    within = f" within the memory limit of {said(cap)}" if cap < inf else ""
    return f"every choice of configurations{within} has a forbidden price"


class TableOptions(Options):
    """A recorded cost graph."""

    def __init__(self, problem: Problem, cost: Tables) -> None:
        super().__init__(problem)
        self.cost = cost

    @cached_property
    def graph(self) -> CostGraph:
        ops, place = self.problem.graph.ops, self.problem.graph.position
        return CostGraph(
            tuple(self.cost.options[op.name].price for op in ops),
            tuple((place[u], place[v]) for u, v, _ in self.cost.pairs),
            tuple(table for _, _, table in self.cost.pairs),
            tuple(self.cost.options[op.name].memory for op in ops),
        )

    def plan(self, choice: Sequence[int]) -> Plan:
        ops, count = self.problem.graph.ops, self.problem.cluster.count
        shardings = {
            op.name: OpSharding(variant=self.words(v, c)) for v, (op, c) in enumerate(zip(ops, choice, strict=True))
        }
        mesh = Mesh(range(count), ("all",), (count,))
        stage = Stage(tuple(op.name for op in ops), mesh, shardings)
        return Plan(self.problem.graph.digest, self.problem.recipe.samples, (stage,))

    def choice(self, plan: Plan) -> tuple[int, ...]:
        chosen = _shardings(self.problem, plan)
        found = []
        for op, (sharding, _) in zip(self.problem.graph.ops, chosen, strict=True):
            names = self.cost.options[op.name].names
            if sharding.variant not in names:
                raise Unsupported(f'op {op.name} has no option "{sharding.variant}": it has {", ".join(names[:8])}')
            found.append(names.index(sharding.variant))
        return tuple(found)

    def words(self, variable: int, option: int) -> str:
        return self.cost.options[self.problem.graph.ops[variable].name].names[option]


class PaSEOptions(Options):
    """Cuts of iteration spaces, priced as PaSE's prototype does. Ops that are alike share their arrays."""

    def __init__(self, problem: Problem, cost: PaSEFlops) -> None:
        super().__init__(problem)
        self.cost = cost
        ops = problem.graph.ops
        kinds: dict[object, int] = {}
        self.kind = [kinds.setdefault((op.kind, op.rule, op.kwargs), len(kinds)) for op in ops]
        self.of_kind: list[Op] = [ops[self.kind.index(k)] for k in range(len(kinds))]
        self.cuts = [configurations(op, problem.cluster.count) for op in self.of_kind]
        self.arrays: list[Floats] = [np.array(own, float) for own in self.cuts]

    @cached_property
    def graph(self) -> CostGraph:
        graph = self.problem.graph
        unary = [self.cost.inside(op, cuts) for op, cuts in zip(self.of_kind, self.arrays, strict=True)]
        memory = [self._memory(op, cuts) for op, cuts in zip(self.of_kind, self.arrays, strict=True)]
        made: dict[object, Floats] = {}
        edges, tables = [], []
        for v, op in enumerate(graph.ops):
            for k, name in enumerate(op.inputs):
                u = graph.producer.get(name)
                if u is None:
                    continue
                shape, r = graph.tensor[name].shape, graph.ops[u].outputs.index(name)
                key = (shape, self.kind[u], r, self.kind[v], k)
                if key not in made:
                    made[key] = self.cost.between(shape, self._tensor(u, "results", r), self._tensor(v, "operands", k))
                edges.append((u, v))
                tables.append(made[key])
        return CostGraph(
            tuple(unary[k] for k in self.kind), tuple(edges), tuple(tables), tuple(memory[k] for k in self.kind)
        )

    def _tensor(self, v: int, side: str, position: int) -> Floats:
        op = self.of_kind[self.kind[v]]
        return tensor_cuts(op, getattr(op.rule, side)[position], self.arrays[self.kind[v]])

    def _memory(self, op: Op, cuts: Floats) -> Floats:
        held = self.cost.memory(op, np.array([f.size for f in op.rule.factors]) / cuts)  # type: ignore[arg-type]
        return held.static + held.kept

    def plan(self, choice: Sequence[int]) -> Plan:
        graph = self.problem.graph
        stages: dict[tuple[int, ...], list[int]] = {}
        for v, option in enumerate(choice):
            stages.setdefault(tuple(c for c in self._cut(v, option) if c > 1), []).append(v)
        made = []
        for degrees, members in stages.items():
            axes = tuple(f"x{i}" for i in range(len(degrees))) or ("x0",)
            shardings = {}
            for v in members:
                cut = [
                    (f.name, c)
                    for f, c in zip(graph.ops[v].rule.factors, self._cut(v, choice[v]), strict=True)
                    if c > 1
                ]
                shardings[graph.ops[v].name] = OpSharding({name: (Cut(axis),) for (name, _), axis in zip(cut, axes)})
            mesh = Mesh(range(prod(degrees)), axes, degrees or (1,))
            made.append(Stage(tuple(graph.ops[v].name for v in members), mesh, shardings))
        return Plan(graph.digest, self.problem.recipe.samples, tuple(made))

    def choice(self, plan: Plan) -> tuple[int, ...]:
        found = []
        for v, (op, (sharding, mesh)) in enumerate(
            zip(self.problem.graph.ops, _shardings(self.problem, plan), strict=True)
        ):
            cuts = tuple(prod(mesh.size(cut.axis) for cut in sharding.cuts.get(f.name, ())) for f in op.rule.factors)
            found.append(self.option(v, cuts))
        return tuple(found)

    def option(self, variable: int, cuts: tuple[int, ...]) -> int:
        """The number of the option that cuts the op's dims so.

        Raises:
            Unsupported: it is not in the space.
        """
        op, own = self.problem.graph.ops[variable], self.cuts[self.kind[variable]]
        if cuts not in own:
            raise Unsupported(
                f"op {op.name} ({op.kind}) cut {cuts} ways is no configuration: each cut divides its dim, leaves "
                f"{dict(op.kwargs)['cutoff']} elements, and at most {self.problem.cluster.count} devices work"
            )
        return own.index(cuts)

    def _cut(self, variable: int, option: int) -> tuple[int, ...]:
        return self.cuts[self.kind[variable]][option]

    def words(self, variable: int, option: int) -> str:
        return ",".join(map(str, self._cut(variable, option)))


def _shardings(problem: Problem, plan: Plan) -> list[tuple[OpSharding, Mesh]]:
    """Per op how the plan computes it, and on which mesh."""
    found: list[tuple[OpSharding, Mesh] | None] = [None] * len(problem.graph.ops)
    for stage in plan.stages:
        for i in stage_ops(problem.graph, stage):
            found[i] = (stage.shardings.get(problem.graph.ops[i].name, OpSharding()), stage.mesh)
    if None in found:
        raise Unsupported(f"op {problem.graph.ops[found.index(None)].name} is in no stage of the plan")
    return found  # type: ignore[return-value]
