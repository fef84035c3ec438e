"""Tofu (Wang, Huang, Li, EuroSys 2019): every tensor of the training graph split evenly over all workers, fewest bytes moved.

The training graph is written out (`expand_training`), coarsened (`_tofu_groups`) and cut in steps, one for each prime
factor of the number of workers (`_tofu_search`): per step each tensor is split along one dim, each op cut along one index of
its output or of a reduction, as its description says (`_tofu_tdl`). Nothing is stored twice: what a part of an op lacks is
fetched. The objective is the bytes that all workers fetch, counted directly (`_tofu_prices`). What nothing divides stays
whole, and `carry` names it.

The plan is one stage with an axis for each step. It says how forward ops are cut and where parameters and activations
rest; gradients run as the duals of that. The objective of a plan is over the best cuts of gradient ops for what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Literal

from ..cluster.model import Mesh
from ..cost.pase_flops import PaSEFlops
from ..cost.tables import Tables
from ..errors import InputError, Unsupported
from ..graph.expand import expand_training
from ..plan.lookup import layout_of, sharding_of, storage_of
from ..plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from ..plan.problem import Problem
from ._optcnn_layers import check_shapes
from ._tofu_groups import Coarse, coarsened
from ._tofu_prices import WHOLE, Way
from ._tofu_search import Decision, Space, by_rows, exact, greedy, is_small
from .base import Planner
from .registry import register
from .types import Info, Json, Run

Method = Literal["tofu", "exact", "icml18", "equalchop", "spartan", "allrow"]
METHODS = ("tofu", "exact", "icml18", "equalchop", "spartan", "allrow")


@register
class Tofu(Planner):
    """Partition-n-reduce.

    Args:
        method: "tofu", or a baseline of the paper: "icml18" (no partial results, OptCNN's space), "equalchop" (one dim for all
            workers), "spartan" (largest tensor first), "allrow" (all tensors along their first dim); "exact" looks at all
            steps at once, where there are few enough plans.
        look_ahead: of equal steps, take one with the best next step; False = any.
        count: "bytes", or "elements" of all tensors alike.
        prove: compare with the optimum over all steps at once, where there are few enough plans.
    """

    info = Info(
        name="tofu",
        title="Supporting Very Large Models using Automatic Dataflow Graph Partitioning",
        year=2019,
        reference="arXiv 1807.08887",
        decides=frozenset({"shards"}),
        handles=frozenset({"dag"}),
        goals=frozenset({"time"}),
        family="tensor",
        missing=(
            "gradient ops that are cut otherwise than the dual of their forward op are counted, but run as that dual",
        ),
    )

    def __init__(
        self,
        *,
        method: Method = "tofu",
        look_ahead: bool = True,
        count: Literal["bytes", "elements"] = "bytes",
        prove: bool = True,
    ) -> None:
        if method not in METHODS:
            raise InputError(f'tofu has no method "{method}": there are {", ".join(METHODS)}')
        if count not in ("bytes", "elements"):
            raise InputError(f'tofu cannot count "{count}": there are bytes and elements')
        self.method = method
        self.look_ahead = look_ahead
        self.count = count
        self.prove = prove
        self.unit = "B" if count == "bytes" else "element"  # type: ignore[misc]

    def search(self, problem: Problem, run: Run) -> Json:
        """One plan; proved where all plans are few."""
        coarse = self._coarse(problem)
        factors = self._factors(problem)
        space = Space(coarse, self.method != "icml18", tick=lambda: run.tick(0, "steps", 0, len(factors)))
        decision = self._decided(space, factors)
        plan = self._plan(problem, coarse, decision, factors)
        done = self._completed(space, factors, _forward(coarse, decision))
        value = space.total(done, factors)
        run.offer(value, lambda: plan)
        if len(factors) <= 1 and self.method in ("tofu", "exact", "icml18", "equalchop"):
            run.bound(value)
        elif self.prove and is_small(space, factors) and self.method in ("tofu", "exact", "icml18"):
            with suppress(Unsupported):  # too large for the elimination: no proof
                run.bound(space.total(exact(space, factors), factors))
        run.tick(1, "steps", len(factors), len(factors))
        return _facts(coarse, space, decision, done, factors)

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Bytes moved in a step, all workers together, gradient ops being cut as is best for the plan.

        Raises:
            Unsupported: more than one stage or micro-batch, recomputation, uneven cuts, or ops that are cut one by one in the
                coarsened graph cut differently.
        """
        coarse = self._coarse(problem)
        factors, forward = _read(problem, coarse, plan)
        space = Space(coarse, self.method != "icml18")
        return space.total(self._completed(space, factors, forward), factors)

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """The bound is over plans that store nothing twice and cut every op: by the factors of this method."""
        coarse = self._coarse(problem)
        factors, forward = _read(problem, coarse, plan)
        if factors != self._factors(problem):
            return False
        space = Space(coarse, self.method != "icml18")
        return all(way in space.of_unit(u, (), factors) for u, way in forward.units.items()) and all(
            way in space.of_node(n, (), factors) for n, way in forward.ops.items()
        )

    def _factors(self, problem: Problem) -> tuple[int, ...]:
        workers = problem.limits.devices or problem.cluster.count
        return (workers,) if self.method == "equalchop" and workers > 1 else prime_factors(workers)

    def _coarse(self, problem: Problem) -> Coarse:
        check_shapes(problem.graph, "tofu")
        if isinstance(problem.cost, (Tables, PaSEFlops)):
            raise Unsupported(
                "tofu writes out the training step of a model, and a recorded cost graph has none: plan a captured model"
            )
        return coarsened(expand_training(problem.graph), problem.recipe.samples, elements=self.count == "elements")

    def _decided(self, space: Space, factors: Sequence[int]) -> Decision:
        if self.method == "exact" and factors:
            return exact(space, factors)
        if self.method == "spartan":
            return greedy(space, factors)
        if self.method == "allrow":
            return replace(space, splits=by_rows(space.coarse, factors)).recursion(factors, look_ahead=False)
        return space.recursion(factors, look_ahead=self.look_ahead)

    def _completed(self, space: Space, factors: Sequence[int], forward: Decision) -> Decision:
        """The rest of a plan that says what its forward ops do."""
        given = replace(space, splits=forward.units, strategies=forward.ops)
        if self.method == "spartan":
            return greedy(given, factors)
        if self.method == "allrow":
            given.splits = {**by_rows(space.coarse, factors), **forward.units}
            return given.recursion(factors, look_ahead=False)
        return exact(given, factors) if is_small(given, factors) else given.recursion(factors)

    def _plan(self, problem: Problem, coarse: Coarse, decision: Decision, factors: Sequence[int]) -> Plan:
        graph = problem.graph
        axes = tuple(f"k{i}" for i in range(1, len(factors) + 1))
        shardings: dict[str, OpSharding] = {}
        for n, node in enumerate(coarse.nodes):
            if node.forward:
                cuts = {
                    node.names[v]: tuple(Cut(a) for a, own in zip(axes, decision.ops[n], strict=True) if own == v)
                    for v in dict.fromkeys(decision.ops[n])
                    if v != WHOLE
                }
                shardings.update((name, OpSharding(cuts)) for name in (node.name, *node.times))
        layouts: dict[str, Layout] = {}
        storage: dict[str, Storage] = {}
        for t in graph.tensors:
            u = coarse.unit_of.get(t.name)
            if u is None:
                continue
            split = decision.units[u]
            dims = tuple(
                ((0, tuple(Cut(a) for a, own in zip(axes, split, strict=True) if own == d)),)
                for d in range(len(t.shape))
            )
            if t.role == "param":
                storage[t.name] = Storage(param=Layout(dims))
            elif t.role in ("activation", "input"):
                layouts[t.name] = Layout(dims)
        mesh = Mesh(range(prod(factors)), axes, tuple(factors))
        stage = Stage(tuple(op.name for op in graph.ops), mesh, shardings, layouts, storage)
        return Plan(graph.digest, problem.recipe.samples, (stage,), Schedule("1f1b", 1))


def prime_factors(n: int) -> tuple[int, ...]:
    """Largest first; of 12: 3, 2, 2."""
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return tuple(reversed(found))


def _forward(coarse: Coarse, decision: Decision) -> Decision:
    """What a plan says of a decision."""
    return Decision(
        {n: way for n, way in decision.ops.items() if coarse.nodes[n].forward},
        {u: way for u, way in decision.units.items() if coarse.units[u].forward},
    )


def _facts(coarse: Coarse, space: Space, decision: Decision, done: Decision, factors: Sequence[int]) -> dict[str, Json]:
    totals = [
        space.total(
            Decision({n: w[:i] for n, w in decision.ops.items()}, {u: w[:i] for u, w in decision.units.items()}),
            factors[:i],
        )
        for i in range(len(factors) + 1)
    ]
    whole = [coarse.units[u].tensors[0] for u, way in done.units.items() if WHOLE in way]
    backward: dict[str, Json] = {
        node.name: [node.names[v] if v != WHOLE else "" for v in done.ops[n]]
        for n, node in enumerate(coarse.nodes)
        if not node.forward
    }
    return {
        "factors": list(factors),
        "steps": [b - a for a, b in pairwise(totals)],
        "looked_ahead": space.looked_ahead,
        "groups": len(coarse.groups),
        "ops": len(coarse.graph.ops),
        "whole": list(whole),
        "backward": backward,
    }


def _read(problem: Problem, coarse: Coarse, plan: Plan) -> tuple[tuple[int, ...], Decision]:
    """(factors, how forward ops and tensors are cut in each step) of a plan."""
    graph = problem.graph
    if len(plan.stages) != 1 or plan.schedule.micro_batches != 1:
        raise Unsupported("tofu prices plans of one stage and one micro-batch")
    stage = plan.stages[0]
    if stage.recompute or stage.deal:
        raise Unsupported("tofu prices plans without recomputation")
    axes = [(a, n) for a, n in zip(stage.mesh.axes, stage.mesh.shape, strict=True) if n > 1]
    names = [a for a, _ in axes]

    def sequence(cuts: Sequence[tuple[int, tuple[Cut, ...]]], what: str) -> Way:
        found = [WHOLE] * len(names)
        for place, own in cuts:
            order = [names.index(cut.axis) for cut in own if cut.axis in names]
            if any(cut.weights for cut in own) or order != sorted(order):
                raise Unsupported(
                    f'tofu prices equal cuts, nested in the order of the mesh\'s axes: "{what}" has others'
                )
            for i in order:
                found[i] = place
        return tuple(found)

    ops: dict[int, Way] = {}
    for n, node in enumerate(coarse.nodes):
        if node.forward:
            ways = set()
            for name in (node.name, *node.times):
                sharding = sharding_of(graph, stage, graph.position[name])
                cuts = sharding.cuts if sharding is not None else {}
                ways.add(sequence([(node.names.index(f), own) for f, own in cuts.items()], name))
            if len(ways) > 1:
                raise Unsupported(f'tofu cuts all time steps alike: "{node.name}" is cut in {len(ways)} ways')
            (ops[n],) = ways
    units: dict[int, Way] = {}
    for u, unit in enumerate(coarse.units):
        own = [t for t in unit.tensors if t in graph.tensor]
        if own:
            splits = {sequence(_rest(problem, stage, t), t) for t in own}
            if len(splits) > 1:
                raise Unsupported(f'tofu splits tensors between element-wise ops alike: "{own[0]}" and others are not')
            (units[u],) = splits
    return tuple(n for _, n in axes), Decision(ops, units)


def _rest(problem: Problem, stage: Stage, tensor: str) -> list[tuple[int, tuple[Cut, ...]]]:
    """(dim, its cuts) of a tensor at rest: as its layout says, else as it is made or first read, its sums completed."""
    graph = problem.graph
    if graph.tensor[tensor].role == "param":
        kept = storage_of(graph, stage, tensor)
        layout = kept.param if kept is not None else None
        if kept is not None and (kept.grad, kept.state) != (None, None):
            raise Unsupported(f'tofu stores a gradient as its parameter: "{tensor}" has storage of its own for them')
    else:
        layout = layout_of(graph, stage, tensor)
    if layout is not None:
        if any(
            cuts and size not in (0, graph.tensor[tensor].shape[d])
            for d, dim in enumerate(layout.dims)
            for size, cuts in dim
        ):
            raise Unsupported(f'tofu splits whole dims: "{tensor}" is split inside one')
        return [(d, tuple(cut for _, cuts in dim for cut in cuts)) for d, dim in enumerate(layout.dims)]
    made = graph.producer.get(tensor)
    if made is not None:
        op, dims = graph.ops[made], graph.ops[made].rule.results[graph.ops[made].outputs.index(tensor)]
    else:
        made, k = graph.consumers[tensor][0]
        op, dims = graph.ops[made], graph.ops[made].rule.operands[k]
    sharding = sharding_of(graph, stage, made)
    cuts = sharding.cuts if sharding is not None else {}
    found = []
    for d, names in enumerate(dims):
        cut = [name for name in names if cuts.get(name)]
        if cut and (len(cut) > 1 or cut[0] != names[0]):
            raise Unsupported(f'tofu splits whole dims: "{tensor}" is made split inside one by "{op.name}"')
        found += [(d, cuts[name]) for name in cut]
    return found
