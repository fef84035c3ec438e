"""OptCNN (Jia, Lin, Qi, Aiken, ICML 2018): for every layer how many ways its output is cut along each dim, exactly.

    t_o = Σ over layers (tc + ts) + Σ over edges tx

A configuration is one degree for each dim of the output (sample, channel, height, width, …); a layer may use fewer devices
than there are. Node and edge elimination shrink the graph of layers, leaves go too, and the rest is enumerated, or given to
the common elimination (`rest="elimination"`); `carry` says how many layers the paper's two eliminations leave. How the terms
are priced is in `_optcnn_prices`. No memory limit is known to the search.

The plan has one stage for each shape of mesh: conv layers cut (2, 2, 1, 1) and (1, 1, 2, 2) share one, layers on two devices
another; stages hand values over as the overlap of tiles says. The whole batch is one micro-batch. A recorded cost graph is
planned with its own configurations and prices.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from ..cluster.model import Mesh
from ..cost.pase_flops import PaSEFlops
from ..cost.tables import Tables
from ..errors import Infeasible, InputError, Unsupported
from ..plan.lookup import sharding_of, stage_ops
from ..plan.model import Cut, OpSharding, Plan, Schedule, Stage
from ..plan.problem import Problem
from ..solvers.cost_graph import CostGraph, Found
from ..solvers.elimination import eliminate
from ..solvers.node_edge import enumerate_rest, node_edge
from ._optcnn_layers import Layer, check_shapes, layers_of
from ._optcnn_prices import Prices, Sync, cost_graph
from ._options import Options, options_of
from .base import Planner
from .registry import register
from .types import Info, Json, Run

MOST = 64
"""Devices; of a convolution these have 210 configurations."""


@register
class OptCNN(Planner):
    """Layer-wise parallelism.

    Args:
        sync: how replicas of a parameter are summed: "all_reduce", or through a "server" as in the paper.
        degrees: "divisors" = layers on numbers of devices that divide all; "any" number.
        rest: what solves the layers that eliminations leave: "enumerate" all their choices, or "elimination".
    """

    info = Info(
        name="optcnn",
        title="Exploring Hidden Dimensions in Parallelizing Convolutional Neural Networks",
        year=2018,
        reference="arXiv 1802.04924",
        decides=frozenset({"shards", "placement"}),
        handles=frozenset({"dag"}),
        goals=frozenset({"time"}),
        family="tensor",
    )

    def __init__(
        self,
        *,
        sync: Sync = "all_reduce",
        degrees: Literal["divisors", "any"] = "divisors",
        rest: Literal["enumerate", "elimination"] = "enumerate",
    ) -> None:
        for name, value, known in (
            ("sync", sync, ("all_reduce", "server")),
            ("degrees", degrees, ("divisors", "any")),
            ("rest", rest, ("enumerate", "elimination")),
        ):
            if value not in known:
                raise InputError(f'optcnn has no {name} "{value}": there are {" and ".join(known)}')
        self.sync = sync
        self.degrees = degrees
        self.rest = rest

    def search(self, problem: Problem, run: Run) -> Json:
        """One plan, proved.

        Raises:
            Unsupported: eliminations leave more choices than can be enumerated.
        """
        recorded = _recorded(problem)
        if recorded is not None:
            graph, plan = recorded.graph, recorded.plan
        else:
            layers, prices = self._seen(problem)
            graph = cost_graph(layers, prices, lambda done, total: run.tick(0, "tables", done, total))
            plan = partial(self._plan, problem, layers)
        found, facts = self._solved(graph)
        if not found.choice:
            raise Infeasible("every choice of configurations has a forbidden pair of layers")
        run.bound(found.bound)
        run.offer(found.value, lambda: plan(found.choice))
        run.tick(1, "eliminated", 1, 1)
        return facts

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Σ (tc + ts) + Σ tx, in seconds.

        Raises:
            Unsupported: more than one micro-batch, layouts or storage of their own, or layers that are not cut into equal
                tiles of their output, one for each of the devices 0 … n − 1.
        """
        recorded = _recorded(problem)
        if recorded is not None:
            return recorded.graph.cost(recorded.choice(plan))
        layers, prices = self._seen(problem)
        _check_plain(plan)
        stage_of = {i: stage for stage in plan.stages for i in stage_ops(problem.graph, stage)}
        choice = [_configuration(problem, stage_of[layer.index], layer) for layer in layers]
        return cost_graph(layers, prices, lambda done, total: None).cost(choice)

    def _seen(self, problem: Problem) -> tuple[list[Layer], Prices]:
        if isinstance(problem.cost, Tables):
            raise Unsupported(
                "optcnn chooses configurations itself: a recorded cost graph has its own, plan it with pase"
            )
        check_shapes(problem.graph, "optcnn")
        devices = problem.limits.devices or problem.cluster.count
        if devices > MOST:
            raise Unsupported(
                f"planner optcnn looks at every pair of devices under every pair of configurations: {devices:,} are too many, plan "
                f"on at most {MOST} (set a limit of devices)"
            )
        layers = layers_of(problem.graph, problem.recipe.samples, devices, every=self.degrees == "any")
        return layers, Prices(problem, devices, self.sync)

    def _solved(self, graph: CostGraph) -> tuple[Found, dict[str, Json]]:
        how = {"enumerate": enumerate_rest, "elimination": eliminate}[self.rest]
        try:
            found, reduced = node_edge(graph, how)
        except ValueError as error:
            raise Unsupported(
                f"optcnn is left with {error}, too many to enumerate: set rest=elimination to have them solved by the common "
                "elimination"
            ) from error
        facts: dict[str, Json] = {
            "layers": len(graph.unary),
            "edges": len(graph.edges),
            "eliminated": sum(step.kind == "node" for step in reduced.steps),
            "merged": sum(step.kind == "edge" for step in reduced.steps),
            "leaves": sum(step.kind == "leaf" for step in reduced.steps),
            "kernel": reduced.kernel,
            "left": len(reduced.left),
            "configurations": max((len(table) for table in graph.unary), default=0),
        }
        if len(reduced.left) > 2:
            facts["rest"] = f"residual graph of {len(reduced.left)} nodes solved by {self.rest}"
        return found, facts

    def _plan(self, problem: Problem, layers: list[Layer], choice: tuple[int, ...]) -> Plan:
        graph = problem.graph
        place: dict[int, tuple[int, ...]] = {}
        shardings: dict[tuple[int, ...], dict[str, OpSharding]] = {}
        for layer, c in zip(layers, choice, strict=True):
            cut = layer.cut_factors(c)
            shape = tuple(cut.values())
            place[layer.index] = shape
            cuts = {name: (Cut(_axis(k)),) for k, name in enumerate(cut)}
            shardings.setdefault(shape, {})[layer.op.name] = OpSharding(cuts)
        for i in reversed(range(len(graph.ops))):  # constants are made where they are read first
            if i not in place:
                readers = [u for t in graph.ops[i].outputs for u, _ in graph.consumers.get(t, ())]
                place[i] = place[min(readers)] if readers else ()
        stages = []
        for shape in sorted(set(place.values()), key=lambda s: min(i for i, x in place.items() if x == s)):
            ops = tuple(op.name for i, op in enumerate(graph.ops) if place[i] == shape)
            mesh = Mesh(range(int(np.prod(shape, initial=1))), tuple(_axis(k) for k in range(len(shape))), shape)
            stages.append(Stage(ops, mesh, shardings.get(shape, {})))
        return Plan(graph.digest, problem.recipe.samples, tuple(stages), Schedule("dataflow", 1))


def _axis(k: int) -> str:
    return f"tile{k}"


def _recorded(problem: Problem) -> Options | None:
    """The configurations and prices that a recorded cost graph, or a graph of PaSE's format, brings."""
    return options_of(problem) if isinstance(problem.cost, (Tables, PaSEFlops)) else None


def _check_plain(plan: Plan) -> None:
    if plan.schedule.micro_batches != 1:
        raise Unsupported("optcnn prices plans of one micro-batch")
    if any(s.layouts or s.storage or s.recompute or s.deal or s.pipe for s in plan.stages):
        raise Unsupported("optcnn prices plans whose tensors rest as they are computed, without recomputation")


def _configuration(problem: Problem, stage: Stage, layer: Layer) -> int:
    """Which configuration a stage gives a layer."""
    sharding = sharding_of(problem.graph, stage, layer.index)
    cuts = {} if sharding is None else {name: cut for name, cut in sharding.cuts.items() if cut}
    names = [layer.op.rule.factors[f].name for f in layer.dims]
    order = [cut.axis for name in names for cut in cuts.get(name, ()) if stage.mesh.size(cut.axis) > 1]
    long = [axis for axis, n in zip(stage.mesh.axes, stage.mesh.shape, strict=True) if n > 1]
    plain = all(not cut.weights for own in cuts.values() for cut in own)
    degrees = [int(np.prod([stage.mesh.size(cut.axis) for cut in cuts.get(name, ())], initial=1)) for name in names]
    known = np.flatnonzero((layer.degrees == degrees).all(axis=1)) if names else np.arange(1)
    in_order = list(stage.mesh.devices) == list(range(len(stage.mesh.devices)))
    if order != long or not plain or not set(cuts) <= set(names) or not len(known) or not in_order:
        raise Unsupported(
            f'optcnn prices layers cut into equal tiles of their output, dealt row by row to devices 0, 1, …: "{layer.op.name}" '
            "is not"
        )
    return int(known[0])
