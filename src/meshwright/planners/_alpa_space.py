"""Alpa's own space and prices: SPMD strategies of every op of a training step on a 1-D or 2-D mesh, communication only.

Every op of the written-out step (`graph.expand`) is a variable. A strategy gives each mesh axis of several devices one factor
of the op: that dim of its results and operands is cut along the axis. A product uses every axis (no replicated heavy work);
other ops may leave axes out. A factor that a result lacks leaves partial sums along its axis, which are all-reduced at once:
partial sums never travel. Between ops the tensor is converted: what lies whole is sliced for nothing, what is cut is gathered,
a cut that moves from one dim to another is an all-to-all (on one axis only), all else is forbidden.

Sources: Zheng et al., "Alpa" (OSDI 2022), section 4 and table 3; prices and constants from the public code (alpa-projects).
Light ops do not have to follow an operand here: they may, and the reductions of the solver then merge them, but a conversion
before them is allowed as well, so that the optimum is at most Alpa's. Results of an op that are equal sums of several products
(partial results that are added) pay one all-reduce.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from math import inf, prod

import numpy as np

from ..errors import InputError
from ..graph.expand import SUM, UPDATE, expand_training
from ..graph.ir import Dims, Factor, Floats, Graph, Op, Rule, Tensor
from ..solvers.cost_graph import CostGraph
from ._layers import is_heavy

Where = tuple[int, ...]
"""Per mesh axis: the dim of a tensor that is cut along it; −1 = copies."""
GATHER, REDUCE, SCATTER = 0.1, 0.01, 0.001
"""Added to an all-gather, an all-reduce, a reduce-scatter or all-to-all, so that ties end alike everywhere."""
STATES: Mapping[str, int] = {"adam": 2, "adamw": 2, "sgd": 0, "momentum": 1}
"""Tensors of optimizer state as large as the parameter."""


@dataclass(frozen=True)
class AlphaBeta:
    """A logical mesh: devices along each axis, seconds (or any unit) a message and a byte along it."""

    shape: tuple[int, ...]
    alpha: tuple[float, ...]
    beta: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.alpha) == len(self.beta) or not 1 <= len(self.shape) <= 2:
            raise InputError(
                f"a logical mesh of shape {self.shape} needs one alpha and one beta for each of one or two axes"
            )

    @cached_property
    def real(self) -> tuple[int, ...]:
        """Axes of several devices."""
        return tuple(a for a, n in enumerate(self.shape) if n > 1)

    def all_gather(self, nbytes: float, axis: int) -> float:
        """nbytes: of what each device has in the end."""
        return self._ring(nbytes, axis) + GATHER

    def all_reduce(self, nbytes: float, axis: int) -> float:
        n = self.shape[axis]
        return self.alpha[axis] + 2 * self.beta[axis] * (n - 1) / n * nbytes + REDUCE

    def all_to_all(self, nbytes: float, axis: int) -> float:
        """The factor n/2 is the authors' penalty."""
        n = self.shape[axis]
        return self.alpha[axis] + self.beta[axis] * (n - 1) / n**2 * nbytes * (n / 2) + SCATTER

    def _ring(self, nbytes: float, axis: int) -> float:
        n = self.shape[axis]
        return self.alpha[axis] + self.beta[axis] * (n - 1) / n * nbytes

    def penalty(self) -> float:
        """Of a tensor that every device has whole, so that of equal plans the one with less memory wins."""
        return float(round(sum(self.all_reduce(1.0, a) for a in self.real)))


@dataclass(frozen=True, slots=True)
class Strategy:
    """Per real axis the factor that is cut ("" = none), where operands and results lie, and the price of its sums."""

    factors: tuple[str, ...]
    operands: tuple[Where, ...]
    results: tuple[Where, ...]
    price: float
    partial: tuple[float, ...]
    """Of `price`, what the sums of each result cost."""


@dataclass(frozen=True, eq=False)
class Space:
    """The cost graph of a training step in this space. Variables: ops of `step`, then tensors that no op makes."""

    step: Graph
    mesh: AlphaBeta
    graph: CostGraph
    strategies: tuple[tuple[Strategy, ...], ...]
    """Per op."""
    sources: Mapping[str, int]
    """Tensor -> its variable."""
    places: Mapping[str, tuple[Where, ...]]
    """Tensor -> where its options put it."""

    def words(self, choice: Sequence[int]) -> dict[str, tuple[str, ...]]:
        """Op -> factor along each real axis."""
        return {op.name: self.strategies[i][choice[i]].factors for i, op in enumerate(self.step.ops)}

    def kept_whole(self, choice: Sequence[int]) -> frozenset[str]:
        """Parameters that every device has whole."""
        return frozenset(
            t for t, v in self.sources.items()
            if self.step.tensor[t].role == "param" and set(self.places[t][choice[v]]) == {-1}
        )  # fmt: skip


def alpa_space(
    graph: Graph, mesh: AlphaBeta, *, optimizer: str = "adam", mixed: bool = False, batch_first: bool = False
) -> Space:
    """The space of one training step.

    Args:
        graph: forward, with training derived.
        optimizer: whose state follows each parameter, so that a parameter kept whole is penalised with it.
        mixed: allow one factor along both axes of a 2-D mesh (the 1-D strategies of the same devices).
        batch_first: samples are cut along axis 0 wherever an op has them, and nothing else is.

    Raises:
        InputError: no loss, or the backward is written out already.
    """
    return _Builder(expand_training(split_biases(graph)), mesh, optimizer, mixed, batch_first).space()


def split_biases(graph: Graph) -> Graph:
    """Products that add a bias as a product and a sum, as compilers write them."""
    ops: list[Op] = []
    tensors = list(graph.tensors)
    for op in graph.ops:
        if not is_heavy(op) or len(op.inputs) != 3 or len(op.rule.operands[2]) != 1 or len(op.outputs) != 1:
            ops.append(op)
            continue
        made, whole = op.outputs[0], f"{op.outputs[0]}:product"
        tensors.append(replace(graph.tensor[made], name=whole))
        used = {f for dims in (*op.rule.operands[:2], *op.rule.results) for dim in dims for f in dim}
        rule = Rule(tuple(f for f in op.rule.factors if f.name in used), op.rule.operands[:2], op.rule.results)
        kept = tuple(t for t in op.saved if t in op.inputs[:2])
        ops.append(
            replace(op, inputs=op.inputs[:2], outputs=(whole,), rule=rule, saved=kept, args=(), kwargs=(), call="")
        )
        out = op.rule.results[0]
        of_result = {f for dim in out for f in dim}
        adds = Rule(tuple(f for f in op.rule.factors if f.name in of_result), (out, op.rule.operands[2]), (out,))
        ops.append(
            Op(f"{op.name}:bias", "add", (whole, op.inputs[2]), (made,), adds, module=op.module, source=op.source)
        )
    if len(ops) == len(graph.ops):
        return graph
    return replace(graph, ops=tuple(ops), tensors=tuple(tensors), runs=())


class _Builder:
    def __init__(self, step: Graph, mesh: AlphaBeta, optimizer: str, mixed: bool, batch_first: bool) -> None:
        if optimizer not in STATES:
            raise InputError(f'alpa knows no state of optimizer "{optimizer}": it knows {", ".join(STATES)}')
        self.step, self.mesh, self.mixed, self.batch_first = step, mesh, mixed, batch_first
        self.states = STATES[optimizer]
        self.flat = len(mesh.real) < 2
        self._strategies: dict[Hashable, tuple[Strategy, ...]] = {}
        self._unary: dict[int, Floats] = {}
        self._moves: dict[Hashable, Floats] = {}

    def space(self) -> Space:
        step = self.step
        strategies = tuple(self._of(op) for op in step.ops)
        unary = [self._prices(s) for s in strategies]
        edges: list[tuple[int, int]] = []
        tables: list[Floats] = []
        sources: dict[str, int] = {}
        places: dict[str, tuple[Where, ...]] = {}
        for v, op in enumerate(step.ops):
            for k, t in enumerate(op.inputs):
                need = tuple(s.operands[k] for s in strategies[v])
                made = step.producer.get(t)
                if made is not None:
                    r = step.ops[made].outputs.index(t)
                    u, have = made, tuple(s.results[r] for s in strategies[made])
                else:
                    if t not in sources:
                        places[t] = self._places(step.tensor[t])
                        sources[t] = len(step.ops) + len(sources)
                        unary.append(self._resting(step.tensor[t], places[t]))
                    u, have = sources[t], places[t]
                edges.append((u, v))
                # A parameter is replaced by what its update makes of it: both lie alike.
                tables.append(self._moved(step.tensor[t], have, need, alike=op.kind == UPDATE and k == 0))
            self._merge(v, op, strategies, edges, tables)
        return Space(step, self.mesh, CostGraph(tuple(unary), tuple(edges), tuple(tables)), strategies, sources, places)

    # ---- strategies

    def _of(self, op: Op) -> tuple[Strategy, ...]:
        sizes = tuple(self.step.tensor[t].nbytes for t in op.outputs)
        dims = tuple(len(self.step.tensor[t].shape) for t in (*op.inputs, *op.outputs))
        key = (op.rule, sizes, dims, is_heavy(op))
        if key not in self._strategies:
            self._strategies[key] = self._enumerated(op)
        return self._strategies[key]

    def _prices(self, strategies: tuple[Strategy, ...]) -> Floats:
        if id(strategies) not in self._unary:
            self._unary[id(strategies)] = np.array([s.price for s in strategies])
        return self._unary[id(strategies)]

    def _enumerated(self, op: Op) -> tuple[Strategy, ...]:
        heavy = is_heavy(op)
        cuttable = [f for f in op.rule.factors if f.kind in ("free", "stat") and f.size > 1]
        batched = {f.name for f in cuttable if _everywhere(f, op.rule)}
        found: list[Strategy] = []
        whole: Strategy | None = None
        for factors in product(("", *(f.name for f in cuttable)), repeat=len(self.mesh.real)):
            strategy = self._strategy(op, factors)
            if strategy is None:
                continue
            if not any(factors):
                whole = strategy
            if heavy:
                twice = len(factors) == 2 and factors[0] == factors[1]
                if not all(factors) or (twice and not self.mixed):
                    continue
                if len(factors) == 2 and len(op.inputs) == 2 and batched and not batched & set(factors):
                    continue  # of batched products on a 2-D mesh those that cut a batch
                if len(set(factors) & op.rule.summed()) > 1:
                    continue
            found.append(strategy)
        if not found:
            assert whole is not None
            found.append(whole)
        return tuple(found)

    def _strategy(self, op: Op, factors: tuple[str, ...]) -> Strategy | None:
        """None: a dim does not divide, or a cut is no cut of a dim of every tensor that has the factor."""
        rule, mesh = op.rule, self.mesh
        by_name = {f.name: f for f in rule.factors}
        for name in set(factors) - {""}:
            parts = prod(mesh.shape[a] for a, f in zip(mesh.real, factors, strict=True) if f == name)
            if by_name[name].size % parts:
                return None
        if self.batch_first and not self._batch_on_first(rule, factors):
            return None
        operands = [self._where(dims, by_name, factors) for dims in rule.operands]
        results = [self._where(dims, by_name, factors) for dims in rule.results]
        if any(w is None for w in (*operands, *results)):
            return None
        price, partial = 0.0, []
        for r, (t, dims) in enumerate(zip(op.outputs, rule.results, strict=True)):
            where = results[r]
            assert where is not None
            local = self.step.tensor[t].nbytes / prod(
                mesh.shape[a] for a, d in zip(mesh.real, where, strict=True) if d >= 0
            )
            inside = {f for dim in dims for f in dim}
            own = sum(
                mesh.all_reduce(local, a)
                for a, f in zip(mesh.real, factors, strict=True)
                if f and f not in inside and by_name[f].kind != "stat"
            )
            partial.append(own)
            price += own
            for a, f in zip(mesh.real, factors, strict=True):
                if f and by_name[f].kind == "stat" and r == 0:
                    size = local * (mesh.shape[a] if f in inside else 1) / (by_name[f].size if f in inside else 1)
                    price += sum(by_name[f].sums) * mesh.all_reduce(size, a)
        return Strategy(
            factors, tuple(w for w in operands if w is not None), tuple(w for w in results if w is not None), price,
            tuple(partial),
        )  # fmt: skip

    def _batch_on_first(self, rule: Rule, factors: tuple[str, ...]) -> bool:
        samples = {f.name for f in rule.factors if f.samples and f.size > 1}
        first = factors[self.mesh.real.index(0)] if 0 in self.mesh.real else ""
        if 0 not in self.mesh.real or not samples:
            return first in {"", *samples}
        return first in samples and not samples & set(factors[1:])

    @staticmethod
    def _where(dims: Dims, by_name: Mapping[str, Factor], factors: tuple[str, ...]) -> Where | None:
        """The dim that each axis cuts; None if a factor is there, but not the major one of its dim."""
        found = []
        for name in factors:
            at = -1
            for d, names in enumerate(dims):
                if name in names:
                    if any(by_name[n].size > 1 for n in names[: names.index(name)]):
                        return None
                    at = d
            found.append(at)
        return tuple(found)

    # ---- tensors at rest

    def _places(self, tensor: Tensor) -> tuple[Where, ...]:
        """Whole, or cut along any axes in dims that they divide."""
        found = []
        for where in product(range(-1, len(tensor.shape)), repeat=len(self.mesh.real)):
            fits = True
            for d in set(where) - {-1}:
                parts = prod(self.mesh.shape[a] for a, w in zip(self.mesh.real, where, strict=True) if w == d)
                fits = fits and tensor.shape[d] % parts == 0
            if fits:
                found.append(where)
        return tuple(found)

    def _resting(self, tensor: Tensor, places: tuple[Where, ...]) -> Floats:
        """A parameter that every device has whole is penalised, and so is the optimizer's state, which lies like it."""
        if tensor.role != "param":
            return np.zeros(len(places))
        each = self.mesh.penalty() * (1 + (0 if tensor.frozen else self.states))
        return np.array([each if set(where) == {-1} else 0.0 for where in places])

    # ---- between ops

    def _moved(self, tensor: Tensor, have: tuple[Where, ...], need: tuple[Where, ...], *, alike: bool) -> Floats:
        key = (tensor.nbytes, have, need, alike)
        if key not in self._moves:
            prices = {
                (a, b): (0.0 if a == b else inf) if alike else self.moving(tensor.nbytes, a, b)
                for a in set(have)
                for b in set(need)
            }
            self._moves[key] = np.array([[prices[a, b] for b in need] for a in have])
        return self._moves[key]

    def moving(self, nbytes: float, have: Where, need: Where) -> float:
        """Price of a whole tensor's way from one place to another."""
        mesh = self.mesh
        left = {a: d for a, d in zip(mesh.real, have, strict=True) if d >= 0}
        price = 0.0
        for a, (old, new) in zip(mesh.real, zip(have, need, strict=True), strict=True):
            if old == new or old < 0:
                continue
            if new >= 0:
                # A cut that moves: only where the mesh has one axis.
                if not self.flat:
                    return inf
                price += mesh.all_to_all(nbytes, a)
                continue
            del left[a]
            price += mesh.all_gather(nbytes / prod(mesh.shape[b] for b in left), a)
        return price

    def _merge(
        self,
        v: int,
        op: Op,
        strategies: Sequence[tuple[Strategy, ...]],
        edges: list[tuple[int, int]],
        tables: list[Floats],
    ) -> None:
        """Products that are added need one sum over devices after the addition, not one each."""
        if op.kind not in ("add", SUM):
            return
        makers = [self.step.producer.get(t, -1) for t in op.inputs]
        heavy = [
            (u, self.step.ops[u].outputs.index(t))
            for u, t in zip(makers, op.inputs, strict=True)
            if u >= 0 and is_heavy(self.step.ops[u]) and len(self.step.consumers[t]) == 1
        ]
        for (u, i), (w, j) in pairwise(heavy):
            key = ("merged", strategies[u], i, strategies[w], j)
            if key not in self._moves:
                self._moves[key] = np.array(
                    [
                        [-min(a.partial[i], b.partial[j]) if _same_sums(a, i, b, j) else 0.0 for b in strategies[w]]
                        for a in strategies[u]
                    ]
                )
            edges.append((u, w))
            tables.append(self._moves[key])


def _same_sums(a: Strategy, i: int, b: Strategy, j: int) -> bool:
    """Do both results lie alike and lack their sums along the same axes?"""
    if a.results[i] != b.results[j] or not a.partial[i] or not b.partial[j]:
        return False
    return [bool(f) and w < 0 for f, w in zip(a.factors, a.results[i], strict=True)] == [
        bool(f) and w < 0 for f, w in zip(b.factors, b.results[j], strict=True)
    ]


def _everywhere(factor: Factor, rule: Rule) -> bool:
    """Is it in all operands and results: a batch?"""
    return all(any(factor.name in dim for dim in dims) for dims in (*rule.operands, *rule.results))
