"""A problem in AccPar's terms: its network, its array of accelerators, and plans as a type for each layer and level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd

import numpy as np

from ..cluster.model import Cluster, Mesh
from ..cost.accpar_elements import COLUMNS, COPIES, ROWS, TYPE_I, TYPE_II, TYPE_III, AccParElements
from ..errors import Unsupported
from ..graph.ir import ITEM_BYTES, Graph
from ..plan.model import Cut, OpSharding, Plan, Schedule, Stage
from ..plan.problem import Problem
from ._accpar_net import AnyParts, Net, Sizes
from ._main_ops import NONE, MainOps, entries, main_ops

FACTORS = {"b": TYPE_I, "k": TYPE_II, "n": TYPE_III}
"""Factors of a layer of a description."""
SIMPLE = 1000
"""A share is written as weights that add up to at most this, if these say it exactly, ..."""
FINE = 10**9
"""... else as parts of this."""


@dataclass(frozen=True)
class LeftParts:
    """Of a captured model: what is left of each atom, and which atom was cut at each level so far."""

    main: MainOps
    left: tuple[tuple[int, ...], ...]
    chosen: tuple[tuple[int, ...], ...]

    def types(self, layer: int) -> tuple[int, ...]:
        join = self.main.ops[layer].join
        found = [t for t in ((ROWS, COLUMNS) if join else (TYPE_I, TYPE_II, TYPE_III)) if self.atom(layer, t) != NONE]
        if join:
            return (*found, COPIES)
        return tuple(found) or (COPIES,)

    def atom(self, layer: int, kind: int) -> int:
        """The atom that a type halves: the first of its role with two equal halves."""
        op = self.main.ops[layer]
        role = {TYPE_I: op.batch, ROWS: op.batch, TYPE_II: op.inner, TYPE_III: op.outer, COLUMNS: op.outer}.get(
            kind, ()
        )
        return next((a for a in role if self.left[layer][a] % 2 == 0), NONE)

    def halved(self, types: Sequence[int]) -> LeftParts:
        atoms = [self.atom(v, t) for v, t in enumerate(types)]
        left = tuple(tuple(n // 2 if a == cut else n for a, n in enumerate(own)) for own, cut in zip(self.left, atoms))
        return LeftParts(self.main, left, tuple((*c, a) for c, a in zip(self.chosen, atoms)))


def net_of(problem: Problem) -> Net:
    """The network: the layers of a description, or the main ops of a captured model at the samples of a step."""
    if isinstance(problem.cost, AccParElements):
        return _described(problem.graph)
    main = main_ops(problem.graph, "accpar")
    samples = problem.recipe.samples
    count = len(main.ops)
    rows = np.ones((6, count))
    left = []
    for v, op in enumerate(main.ops):
        size = main.sizes(v, samples)
        left.append(tuple(size))
        read, made, weight = main.elements(v, samples)
        b, k, n = (float(np.prod([size[a] for a in role])) for role in (op.batch, op.inner, op.outer))
        if op.join:
            rows[:, v] = b, n, n, made / (b * n), made / (b * n), 0.0
        else:
            rows[:, v] = b, k, n, read / (b * k), made / (b * n), weight / (k * n)
    parts = LeftParts(main, tuple(left), ((),) * count)
    names = tuple(main.name(v) for v in range(count))
    conv, join = tuple(op.conv for op in main.ops), tuple(op.join for op in main.ops)
    return Net(names, conv, join, Sizes(*rows), main.edges, parts)


def _described(graph: Graph) -> Net:
    def column(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.array([float(dict(op.kwargs).get(name, 1)) for op in graph.ops])  # type: ignore[arg-type]

    sizes = Sizes(
        np.full(len(graph.ops), float(graph.samples)), column("in_ch"), column("out_ch"),
        column("in_fmap_h") * column("in_fmap_w"), column("out_fmap_h") * column("out_fmap_w"), column("kernel") ** 2,
    )  # fmt: skip
    edges = tuple((graph.producer[t], i) for i, op in enumerate(graph.ops) for t in op.inputs if t in graph.producer)
    joins = (False,) * len(graph.ops)
    names = tuple(op.name for op in graph.ops)
    return Net(names, tuple(op.kind == "conv" for op in graph.ops), joins, sizes, edges, AnyParts(joins))


@dataclass(frozen=True, slots=True)
class Array:
    """2^levels accelerators; if they are of two kinds, the first level puts each in a half of its own."""

    devices: Sequence[int]
    levels: int
    kinds: tuple[tuple[float, float], ...]
    """(FLOP/s, bytes/s) of one accelerator of each kind; () = elements are counted."""
    element_bytes: float

    @property
    def mesh(self) -> Mesh:
        return Mesh(self.devices, tuple(f"h{k}" for k in range(self.levels)), (2,) * self.levels)

    def halves(self, level: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """Speeds of the two halves at a level, once for each pair that differs."""
        count = 2 ** (self.levels - level - 1)
        each = [(speed * count, wire * count) for speed, wire in self.kinds]
        if level == 0 and len(each) == 2:
            return [(each[0], each[1])]
        return [(one, one) for one in each]


def array_of(problem: Problem) -> Array:
    """The accelerators of a problem.

    A half receives over the wires of all its accelerators at once: then the exchanges of a tensor over all levels take what
    one ring all-reduce does.

    Raises:
        Unsupported: counts that do not halve down to single accelerators, or more than two kinds.
    """
    cluster, cost = problem.cluster, problem.cost
    count = problem.limits.devices or cluster.count
    if count & (count - 1):
        raise Unsupported(
            f"accpar halves the array down to single accelerators, which {count} do not allow: give it "
            f"{1 << (count.bit_length() - 1)}"
        )
    levels = count.bit_length() - 1
    of: dict[str, list[int]] = {}
    for d in range(1 if cluster.homogeneous else count):
        of.setdefault(cluster.type_of(d).name, []).append(d)
    described = isinstance(cost, AccParElements)
    width = cost.element_bytes if isinstance(cost, AccParElements) else float(ITEM_BYTES[problem.recipe.compute_dtype])
    if len(of) == 1:
        return Array(range(count), levels, _rates(problem, [0]) if described and cost.unit == "s" else (), width)
    if len(of) != 2 or len({len(d) for d in of.values()}) != 1:
        counts = ", ".join(f"{len(d)} {name}" for name, d in of.items())
        raise Unsupported(
            f"accpar puts the accelerators of each of two kinds into a half, equally many: {counts} are no such halves"
        )
    first, second = of.values()
    return Array((*first, *second), levels, _rates(problem, [first[0], second[0]]), width)


PROBE = 1e9
"""Bytes of the transfer by which a wire is rated: enough to hide its latency."""


def _rates(problem: Problem, devices: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """(FLOP/s, bytes/s to the farthest accelerator) of some accelerators."""
    cluster, cost = problem.cluster, problem.cost
    if isinstance(cost, AccParElements):
        return tuple(cost.rates[cluster.type_of(d).name] for d in devices)
    found = []
    for d in devices:
        kind = cluster.type_of(d)
        speed = kind.peak.get(problem.recipe.compute_dtype, 0.0)
        if not speed > 0:
            raise Unsupported(f"accpar needs FLOP/s in {problem.recipe.compute_dtype} of {kind.name}, which has none")
        found.append((speed, _wire(problem, cluster, d)))
    return tuple(found)


def _wire(problem: Problem, cluster: Cluster, device: int) -> float:
    other = cluster.count - 1 if device != cluster.count - 1 else 0
    if other == device:
        return float("inf")
    seconds = float(problem.cost.transfer(np.array([PROBE]), device, other, cluster)[0])
    return PROBE / seconds


def plan_of(problem: Problem, net: Net, array: Array, types: Sequence[Sequence[int]], shares: Sequence[float]) -> Plan:
    """The plan of a type per level and layer.

    Args:
        net: after all levels.
        shares: of the first half at the first level, per layer; () = equal.
    """
    graph, mesh = problem.graph, array.mesh
    first = [Cut("h0", weights_of(share)) for share in shares]
    cuts = [[first[v] if shares and k == 0 else Cut(axis) for k, axis in enumerate(mesh.axes)] for v in range(len(net))]
    shardings: dict[str, OpSharding]
    if isinstance(net.parts, LeftParts):
        shardings = net.parts.main.follow(net.parts.chosen, mesh.axes, cuts)
    else:
        letter = {t: name for name, t in FACTORS.items()}
        shardings = {}
        for v, name in enumerate(net.names):
            by_factor: dict[str, tuple[Cut, ...]] = {}
            for own, cut in zip(types, cuts[v]):
                by_factor[letter[own[v]]] = (*by_factor.get(letter[own[v]], ()), cut)
            shardings[name] = OpSharding(by_factor)
    stage = Stage(entries(graph), mesh, shardings)
    return Plan(graph.digest, problem.recipe.samples, (stage,), Schedule())


def weights_of(share: float) -> tuple[int, ...]:
    """Weights of the two halves: () = equal."""
    simple = Fraction(share).limit_denominator(SIMPLE)
    near = simple if abs(float(simple) - share) < 1e-12 else Fraction(round(share * FINE), FINE)
    if near == Fraction(1, 2):
        return ()
    a, b = near.numerator, near.denominator - near.numerator
    return a // gcd(a, b), b // gcd(a, b)


def decided(problem: Problem, net: Net, plan: Plan) -> tuple[list[tuple[int, ...]], list[float]]:
    """(types per level, share of the first half at the first level per layer) of any plan of one stage.

    Raises:
        Unsupported: other stages, axes that do not halve, or a layer that is not cut over an axis though it could be.
    """
    if len(plan.stages) != 1:
        raise Unsupported("accpar prices plans of one stage, whose layers are cut over all its devices")
    stage = plan.stages[0]
    count = problem.limits.devices or problem.cluster.count
    if len(stage.mesh.devices) != count or any(n & (n - 1) for n in stage.mesh.shape):
        raise Unsupported(f"accpar prices plans whose mesh axes halve all {count} devices")
    levels = [(axis, n.bit_length() - 1) for axis, n in zip(stage.mesh.axes, stage.mesh.shape)]
    each: list[list[int]] = []
    shares = [0.5] * len(net)
    graph = problem.graph
    for v, name in enumerate(net.names):
        sharding = stage.shardings.get(name) or stage.shardings.get(
            graph.ops[graph.representative[graph.position[name]]].name
        )
        on: dict[str, tuple[int, Cut]] = {}
        for factor, cuts in (sharding.cuts if sharding is not None else {}).items():
            on.update({cut.axis: (_type(net, v, factor), cut) for cut in cuts})
        each.append([on[axis][0] if axis in on else COPIES for axis, n in levels for _ in range(n)])
        first = on.get(levels[0][0]) if levels else None
        if first is not None and first[1].weights:
            shares[v] = first[1].weights[0] / sum(first[1].weights)
    return [tuple(types) for types in zip(*each)], shares


def _type(net: Net, layer: int, factor: str) -> int:
    if not isinstance(net.parts, LeftParts):
        if factor not in FACTORS:
            raise Unsupported(f"layer {net.names[layer]} has no factor {factor}: it has {', '.join(FACTORS)}")
        return FACTORS[factor]
    main = net.parts.main
    op = main.ops[layer]
    node = main.atoms.nodes[op.node]
    names = [main.atoms.folded.graph.ops[node.index].rule.factors[f].name for f in node.factor]
    roles = (
        ((op.batch, ROWS), (op.outer, COLUMNS))
        if op.join
        else ((op.batch, TYPE_I), (op.inner, TYPE_II), (op.outer, TYPE_III))
    )
    for atoms, kind in roles:
        if factor in {names[a] for a in atoms}:
            return kind
    raise Unsupported(f"op {net.names[layer]} is cut on {factor}, which no type of accpar's cuts")


def checked(net: Net, types: Sequence[int]) -> None:
    """Raises Unsupported where a layer computes copies though a type could cut it: AccPar has no such type."""
    for v, kind in enumerate(types):
        own = net.parts.types(v)
        if kind == COPIES and COPIES not in own:
            raise Unsupported(f"layer {net.names[v]} is not cut over some axis: accpar cuts every layer at every level")
