"""Tofu (Wang, Huang, Li, EuroSys 2019): every tensor of the training graph split evenly over all workers, fewest bytes moved.

The training graph is written out (`expand_training`), coarsened (`_tofu_groups`) and cut in steps, one for each prime
factor of the number of workers (`_tofu_search`): per step each tensor is split along one dim, each op cut along one index of
its output or of a reduction, as its description says (`_tofu_tdl`). Nothing is stored twice: what a part of an op lacks is
fetched. The objective is the bytes that all workers fetch, counted directly (`_tofu_prices`). What nothing divides stays
whole, and `carry` names it.

The plan is one stage with an axis for each step. It says how ops are cut and how their gradients are computed
(`OpSharding.backward`), where parameters and activations rest and where the gradients of activations do (`Stage.gradients`).
Gradients of a weight that ops have made, transposed say, are cut and rest as that does.
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
from ..graph.expand import GRAD, expand_training
from ..plan.lookup import representative_tensor
from ..plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from ..plan.problem import Problem
from ._optcnn_layers import check_shapes
from ._tofu_groups import Coarse, coarsened
from ._tofu_plan import cuts_of, gradients, held, read
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
        space = Space(coarse, self.method != "icml18")
        proves = self.prove and self.method in ("tofu", "exact", "icml18")
        few = proves and len(factors) > 1 and is_small(space, factors)
        chosen, total = 0, (1 + few) * len(factors)

        def tick(steps: int) -> None:
            nonlocal chosen
            chosen += steps
            run.tick(0, "steps", chosen, total)

        space.tick = tick
        best = self._decided(space, factors)
        own = held(problem.graph, coarse, best)
        if own.ops.items() <= best.ops.items() and own.units.items() <= best.units.items():
            done = best
        else:  # the other gradients are decided anew
            total += len(factors)
            ops = {n: way for n, way in best.ops.items() if coarse.nodes[n].forward}
            units = {u: way for u, way in best.units.items() if coarse.units[u].forward}
            done = self._cheapest(space, factors, Decision({**ops, **own.ops}, {**units, **own.units}))
        plan = self._plan(problem, coarse, done, factors)
        value = space.total(done, factors)
        run.offer(value, lambda: plan)
        if len(factors) <= 1 and self.method in ("tofu", "exact", "icml18", "equalchop"):
            run.bound(space.total(best, factors))
        elif few:
            with suppress(Unsupported):  # too large for the elimination: no proof
                run.bound(space.total(exact(space, factors), factors))
        run.tick(1, "steps", total, total)
        return _facts(coarse, space, done, factors)

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Bytes moved in a step, all workers together.

        Raises:
            Unsupported: more than one stage or micro-batch, recomputation, uneven cuts, or ops that are cut one by one in the
                coarsened graph cut differently.
        """
        coarse = self._coarse(problem)
        factors, said = read(problem, coarse, plan)
        space = Space(coarse, self.method != "icml18")
        return space.total(self._cheapest(space, factors, said), factors)

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """The bound is over plans that store nothing twice and cut every op: by the factors of this method."""
        coarse = self._coarse(problem)
        factors, said = read(problem, coarse, plan)
        if factors != self._factors(problem):
            return False
        space = Space(coarse, self.method != "icml18")
        return all(way in space.of_unit(u, (), factors) for u, way in said.units.items()) and all(
            way in space.of_node(n, (), factors) for n, way in said.ops.items()
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

    def _cheapest(self, space: Space, factors: Sequence[int], said: Decision) -> Decision:
        """What `said` leaves open, as cheap as can be."""
        given = replace(space, splits=said.units, strategies=said.ops)
        if self.method == "spartan":
            return greedy(given, factors)
        if self.method == "allrow":
            given.splits = {**by_rows(space.coarse, factors), **said.units}
            return given.recursion(factors, look_ahead=False)
        return exact(given, factors) if is_small(given, factors) else given.recursion(factors)

    def _plan(self, problem: Problem, coarse: Coarse, decision: Decision, factors: Sequence[int]) -> Plan:
        graph = problem.graph
        axes = tuple(f"k{i}" for i in range(1, len(factors) + 1))
        fixed = held(graph, coarse, decision)
        shardings: dict[str, OpSharding] = {}
        for n, node in enumerate(coarse.nodes):
            if node.forward:
                cuts = cuts_of(node, decision.ops[n], axes)
                shardings.update((name, OpSharding(cuts)) for name in (node.name, *node.times))
        for n, node in enumerate(coarse.nodes):
            cuts = cuts_of(node, decision.ops[n], axes)
            for op, operands in gradients(graph, coarse, node):
                own = shardings.get(op.name, OpSharding())
                if own.cuts != cuts and n not in fixed.ops:
                    shardings[op.name] = replace(own, backward={**own.backward, **dict.fromkeys(operands, cuts)})
        layouts: dict[str, Layout] = {}
        storage: dict[str, Storage] = {}
        apart: dict[str, Layout] = {}
        for t in graph.tensors:
            u, g = coarse.unit_of.get(t.name), coarse.unit_of.get(GRAD + t.name)
            if u is None:
                continue
            rest = _layout(decision.units[u], len(t.shape), axes)
            if t.role == "param":
                storage[t.name] = Storage(param=rest)
            elif t.role in ("activation", "input"):
                layouts[t.name] = rest
                # Where the first block's rests apart, silence would say the same of another block's.
                spoken = g is not None and (
                    decision.units[g] != decision.units[u] or representative_tensor(graph, t.name) in apart
                )
                if g is not None and spoken and g not in fixed.units:
                    apart[t.name] = _layout(decision.units[g], len(t.shape), axes)
        mesh = Mesh(range(prod(factors)), axes, tuple(factors))
        names = tuple(op.name for op in graph.ops)
        stage = Stage(names, mesh, shardings, layouts, storage, gradients=apart)
        return Plan(graph.digest, problem.recipe.samples, (stage,), Schedule("1f1b", 1))


def _layout(way: Way, rank: int, axes: Sequence[str]) -> Layout:
    """Of a tensor of `rank` dims."""
    return Layout(
        tuple(((0, tuple(Cut(a) for a, own in zip(axes, way, strict=True) if own == d)),) for d in range(rank))
    )


def prime_factors(n: int) -> tuple[int, ...]:
    """Largest first; of 12: 3, 2, 2."""
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return tuple(reversed(found))


def _facts(coarse: Coarse, space: Space, done: Decision, factors: Sequence[int]) -> dict[str, Json]:
    totals = [
        space.total(
            Decision({n: w[:i] for n, w in done.ops.items()}, {u: w[:i] for u, w in done.units.items()}), factors[:i]
        )
        for i in range(len(factors) + 1)
    ]
    whole = [coarse.units[u].tensors[0] for u, way in done.units.items() if WHOLE in way]
    cut = {node.name: [node.names[v] if v != WHOLE else "" for v in done.ops[n]] for n, node in enumerate(coarse.nodes)}
    backward: dict[str, Json] = {node.name: list(cut[node.name]) for node in coarse.nodes if not node.forward}
    other = [name for name in backward if cut[name] != cut.get(_forward_of(coarse, name), cut[name])]
    at = coarse.unit_of
    elsewhere = [t for t in at if GRAD + t in at and done.units[at[t]] != done.units[at[GRAD + t]]]
    return {
        "factors": list(factors),
        "steps": [b - a for a, b in pairwise(totals)],
        "looked_ahead": space.looked_ahead,
        "groups": len(coarse.groups),
        "ops": len(coarse.graph.ops),
        "whole": list(whole),
        "backward": backward,
        "other_than_dual": list(other),
        "gradients_elsewhere": list(elsewhere),
    }


def _forward_of(coarse: Coarse, gradient: str) -> str:
    """The op of a gradient op, as the first of its time steps is called."""
    return coarse.graph.ops[coarse.graph.position[gradient]].of
