"""Alpa on recorded inputs, each of one of its parts: intra-operator instances, prices of all stages, graphs to cluster.

option tables     one option per op, least price, limits of bytes alive at a time          (intra-operator programme)
stage tables      layers into stages, devices into submeshes                               (inter-operator programme)
untimed graphs    ops into layers, one per device                                          (clustering)
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from math import inf, isfinite, prod

from ..cluster.model import Mesh
from ..cost.stage_tables import StageTables
from ..cost.tables import Tables
from ..cost.untimed import Untimed
from ..errors import Infeasible, Unsupported
from ..graph.ir import Graph
from ..plan.lookup import stage_ops
from ..plan.model import OpSharding, Plan, Schedule, Stage
from ..plan.problem import Problem
from ..solvers.certified import certified
from ..solvers.choice_programme import Room
from ..solvers.clustering import cluster
from ..solvers.stage_programme import best_stages, covering
from ._options import Options, options_of
from .types import Json, Run


class Recorded(abc.ABC):
    """One part of the method on one problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abc.abstractmethod
    def search(self, run: Run) -> Json:
        """Offers the best plan with its bound."""

    @abc.abstractmethod
    def objective(self, plan: Plan) -> float:
        """Of any plan of the space."""

    def loads(self, plan: Plan) -> tuple[float, ...]:
        return ()


def recorded(problem: Problem, tolerance: float, inference: bool) -> Recorded | None:
    """The part that a problem is for; None for captured models."""
    cost = problem.cost
    if isinstance(cost, StageTables):
        return RecordedStages(problem, cost, inference)
    if isinstance(cost, Untimed) and not all(op.call for op in problem.graph.ops):
        return RecordedOps(problem, tolerance)
    if isinstance(cost, Tables) or not all(op.call for op in problem.graph.ops):
        return RecordedOptions(problem)
    return None


class RecordedOptions(Recorded):
    """One option for each op. Proved, or as close to a proof as the budget allows."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.options: Options = options_of(problem)

    def search(self, run: Run) -> Json:
        """Raises:
        Infeasible: prices or limits allow no choice.
        """
        graph = self.options.graph

        def told(phase: str, steps: int, value: float, bound: float) -> None:
            if isfinite(bound):
                run.bound(bound)
            run.tick(1, phase, steps, 0)

        def better(choice: tuple[int, ...]) -> None:
            run.offer(graph.cost(choice), lambda: self.options.plan(choice))

        found = certified(graph, self._rooms(), seconds=run.left(), progress=told, better=better)
        if not found.choice:
            if found.bound < inf:
                run.tick(0)
                raise Infeasible("no choice was found that keeps all limits, and none was proved not to exist")
            raise Infeasible(
                "every choice has a forbidden price"
                if not isfinite(certified(graph).value)
                else f"no choice holds at most {self.problem.limits.memory:g} bytes at every time"
            )
        run.bound(found.bound)
        better(found.choice)
        run.tick(0)
        return {"variables": len(graph.unary), "options": sum(map(len, graph.unary)), "edges": len(graph.edges)}

    def objective(self, plan: Plan) -> float:
        return self.options.graph.cost(self.options.choice(plan))

    def _rooms(self) -> tuple[Room, ...]:
        limit = self.problem.limits.memory
        if not isfinite(limit):
            return ()
        place, held = self.problem.graph.position, self.options.graph.memory
        live = self.problem.cost.live if isinstance(self.problem.cost, Tables) else ()
        times = [tuple(place[name] for name in at) for at in live] or [tuple(range(len(held)))]
        return tuple(Room(at, tuple(held[v] for v in at), limit) for at in times if at)


class RecordedStages(Recorded):
    """Stages of layers on submeshes; the configuration of a stage is the variant of its ops."""

    def __init__(self, problem: Problem, cost: StageTables, inference: bool) -> None:
        super().__init__(problem)
        self.cost, self.inference = cost, inference
        self.micro_batches = problem.recipe.samples
        self.sizes = [prod(shape) for shape in cost.submeshes]

    def search(self, run: Run) -> Json:
        """Raises:
        Infeasible: no stages use all devices and fit.
        """
        count = self.problem.cluster.count
        found = best_stages(
            self.cost.seconds, self.cost.following, self.sizes, count, self.micro_batches, inference=self.inference,
            progress=lambda tried, best: run.tick(1, "slowest stage", tried, 0),
        )  # fmt: skip
        if not found.stages:
            sizes = ", ".join(map(str, sorted(set(self.sizes))))
            raise Infeasible(
                f"no stages of {self.cost.seconds.shape[0]} layers on submeshes of {sizes} devices use all {count} devices and "
                "have room for what is in flight"
            )
        shapes = [self.cost.submeshes[stage.mesh] for stage in found.stages]
        stages = []
        for choice, (hosts, per_host), devices in zip(found.stages, shapes, covering(shapes), strict=True):
            names = tuple(op.name for op in self.problem.graph.ops[choice.first : choice.stop])
            mesh = Mesh(devices, ("host", "device"), (hosts, per_host))
            stages.append(Stage(names, mesh, {name: OpSharding(variant=str(choice.config)) for name in names}))
        schedule = Schedule("1f1b", self.micro_batches) if not self.inference else Schedule()
        plan = Plan(self.problem.graph.digest, self.problem.recipe.samples, tuple(stages), schedule)
        run.bound(found.cost)
        run.offer(self.objective(plan), lambda: plan)
        return {"stages": [[[s.first, s.stop], s.mesh, s.config] for s in found.stages], "values_tried": found.tried}

    def loads(self, plan: Plan) -> tuple[float, ...]:
        return tuple(self._seconds(stage, len(plan.stages) - 1 - s) for s, stage in enumerate(plan.stages))

    def objective(self, plan: Plan) -> float:
        """Σ of stages + (B − 1) · slowest; for inference stages · slowest. inf: a stage does not fit, or devices are idle.

        Raises:
            Unsupported: a stage that the tables do not have.
        """
        loads = self.loads(plan)
        if max(loads) == inf or sum(len(stage.mesh.devices) for stage in plan.stages) != self.problem.cluster.count:
            return inf
        if self.inference:
            return len(loads) * max(loads)
        return sum(loads) + (self.micro_batches - 1) * max(loads)

    def _seconds(self, stage: Stage, after: int) -> float:
        layers = sorted(stage_ops(self.problem.graph, stage))
        variants = {stage.shardings[op].variant for op in stage.ops if op in stage.shardings}
        shape = stage.mesh.shape
        if (
            layers != list(range(layers[0], layers[-1] + 1))
            or len(variants) != 1
            or shape not in self.cost.submeshes
            or not (config := next(iter(variants))).isdigit()
            or int(config) >= self.cost.seconds.shape[3]
        ):
            raise Unsupported("a stage is one interval of layers on one of the recorded submeshes in one configuration")
        key = layers[0], layers[-1], self.cost.submeshes.index(shape), int(config)
        fits = self.cost.following[key] >= (0 if self.inference else after)
        return float(self.cost.seconds[key]) if fits else inf


class RecordedOps(Recorded):
    """Layers of ops, a device each; the objective is the largest number of bytes that crosses into a layer."""

    def __init__(self, problem: Problem, tolerance: float) -> None:
        super().__init__(problem)
        self.tolerance = tolerance

    def search(self, run: Run) -> Json:
        """Raises:
        Infeasible: no cut has layers of like work.
        """
        graph, layers = self.problem.graph, self.problem.cluster.count
        found = cluster(
            *clustering_input(graph, lambda i: graph.ops[i].kind == "heavy"), layers, tolerance=self.tolerance
        )
        if not found.ends:
            raise Infeasible(
                f"no cut of {len(graph.ops)} ops into {layers} layers keeps each within {1 + self.tolerance:g} times the mean "
                "work: ask for fewer layers or a larger tolerance"
            )
        slices = list(zip((0, *found.ends), found.ends))
        plan = Plan(
            graph.digest,
            self.problem.recipe.samples,
            tuple(Stage(tuple(op.name for op in graph.ops[a:b]), Mesh((d,))) for d, (a, b) in enumerate(slices)),
            Schedule("1f1b", 1),
        )
        # The rule's preference among near ties means that the largest boundary is the least only within 1e-4.
        run.offer(self.objective(plan), lambda: plan)
        run.tick(1, "clustering", 1, 1)
        return {"slices": [list(ends) for ends in slices]}

    def loads(self, plan: Plan) -> tuple[float, ...]:
        """Bytes that enter each layer."""
        graph = self.problem.graph
        found = []
        for stage in plan.stages:
            inside = set(stage_ops(graph, stage))
            entering = {
                t for i in inside for t in graph.ops[i].inputs if graph.producer.get(t, -1) not in {-1, *inside}
            }
            found.append(float(sum(graph.tensor[t].nbytes for t in entering)))
        return tuple(found)

    def objective(self, plan: Plan) -> float:
        return max(self.loads(plan))


def clustering_input(
    graph: Graph, heavy: Callable[[int], bool]
) -> tuple[Sequence[bool], Sequence[float], Sequence[float], Sequence[Sequence[int]]]:
    """What `cluster` takes of a graph: heavy, FLOPs, bytes made, ops read; parameters and inputs cross no boundary."""
    return (
        [heavy(i) for i in range(len(graph.ops))],
        [op.flops for op in graph.ops],
        [sum(graph.tensor[t].nbytes for t in op.outputs) for op in graph.ops],
        [sorted({graph.producer[t] for t in op.inputs if t in graph.producer}) for op in graph.ops],
    )
