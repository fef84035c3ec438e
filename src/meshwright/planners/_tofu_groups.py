"""Tofu's coarsening (§5.1): a training graph becomes groups of ops and groups of tensors, nearly a chain.

    x ──▶ [matmul: y = x W, grad W, grad x] ──▶ y ──▶ [relu and its gradient] ──▶ …
    (x, grad x)          W, grad W inside        (y, grad y)

* A forward op and the ops of its backward are one group; a tensor and its gradient are one group, with the sum of what
  several readers say about it.
* Consecutive element-wise ops share how they are cut with the tensors between them, the whole update of a parameter too: a
  `Unit` is a set of tensors that are split alike. Where a value has several readers a new unit begins.
* Unrolled time steps, calls of one cell with the same weights, share the strategies of their ops and the splits of their
  tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import prod

from ..cost.losses import CROSS_ENTROPIES
from ..graph.expand import GRAD, SUM, UPDATE
from ..graph.ir import ITEM_BYTES, Dims, Graph, Op
from ..solvers.regions import Affine
from ._optcnn_layers import CUTTABLE, constant_tensors, sizes_at
from ._tofu_tdl import extents_of, indices, is_elementwise, of_op


@dataclass(frozen=True, slots=True)
class Touch:
    """One operand or result of an op: which part of a unit a part of the op reads or makes."""

    unit: int
    write: bool
    item: int
    """Bytes of an element."""
    terms: tuple[tuple[tuple[int, int], ...], ...]
    """Per dim: (index variable of the op, elements that one step of it moves)."""
    first: tuple[int, ...]
    """Per dim: element that index 0 of all variables reads first; negative in the padding of a window."""
    beyond: tuple[int, ...]
    """Per dim: elements that are read besides: of a window, of a dim that is read whole."""
    partial: frozenset[int]
    """Of a result: variables that it lacks, so that cutting one leaves partial sums."""


@dataclass(frozen=True, slots=True)
class Node:
    """One op of the training graph."""

    name: str
    group: int
    sizes: tuple[int, ...]
    """Of its index variables."""
    names: tuple[str, ...]
    options: tuple[int, ...]
    """Variables that it can be cut along."""
    reduces: frozenset[int]
    """Of these, the ones that leave some result partial."""
    touches: tuple[Touch, ...]
    forward: bool
    times: tuple[str, ...] = ()
    """Ops at the same place of other time steps, which are cut alike."""


@dataclass(slots=True)
class Unit:
    """Tensors that are split alike."""

    shape: tuple[int, ...]
    tensors: list[str]
    nbytes: float
    forward: bool
    """Not of gradients of activations."""


@dataclass(slots=True)
class Coarse:
    """The coarsened training graph."""

    graph: Graph
    """Explicit."""
    nodes: list[Node]
    units: list[Unit]
    unit_of: dict[str, int]
    variables: list[tuple[int, ...]]
    """Groups of tensors: their units, forward ones first."""
    groups: list[list[int]] = field(default_factory=list)
    """Groups of ops: their nodes."""

    @property
    def variable_of(self) -> dict[int, int]:
        """Unit -> group of tensors."""
        return {u: v for v, units in enumerate(self.variables) for u in units}


class _Sets:
    """Union-find over names; the first of a set stands for it."""

    def __init__(self) -> None:
        self.above: dict[str, str] = {}

    def of(self, name: str) -> str:
        self.above.setdefault(name, name)
        while self.above[name] != name:
            self.above[name] = self.above[self.above[name]]
            name = self.above[name]
        return name

    def join(self, a: str, b: str) -> None:
        a, b = self.of(a), self.of(b)
        if a != b:
            self.above[b] = a


def coarsened(graph: Graph, samples: int, *, elements: bool = False) -> Coarse:
    """Groups of an explicit graph at a batch of `samples`; `elements`: every element counts as one byte."""
    constant = constant_tensors(graph)
    ops = [
        _at_batch(graph, _from_logits(graph, op), samples) for op in graph.ops
        if not (op.outputs and all(t in constant for t in op.outputs)) and any(_counts(graph, t, constant) for t in _all(op))
    ]  # fmt: skip
    steps = time_steps(graph)
    sets = _Sets()
    for op in ops:
        for a, b in _alike(graph, op):
            sets.join(a, b)
    for op in ops:  # the same place of other time steps
        first = steps.get(op.name)
        if first is not None and first != op.name:
            other = graph.ops[graph.position[first]]
            for a, b in zip(other.outputs, op.outputs, strict=True):
                sets.join(a, b)
                if GRAD + a in graph.tensor and GRAD + b in graph.tensor:
                    sets.join(GRAD + a, GRAD + b)
    units, unit_of = _units(graph, ops, constant, sets)
    variables = _variables(graph, units, unit_of)
    if elements:
        for unit in units:
            unit.nbytes = float(prod(unit.shape))
    coarse = Coarse(graph, [], units, unit_of, variables)
    numbers: dict[str, int] = {}
    known: dict[str, int] = {}
    for op in ops:
        if op.kind == UPDATE or (op.kind == SUM and op.phase == "backward" and op.name.startswith(GRAD)):
            continue  # element-wise over one unit: cut as it is split, they move nothing
        forward = op.of or op.name
        anchor = steps.get(forward, forward)
        group = numbers.setdefault(anchor, len(numbers))
        node = _node(graph, op, group, unit_of, elements)
        same = op.name.replace(forward, anchor, 1)
        if same in known and coarse.nodes[known[same]].sizes == node.sizes:
            before = coarse.nodes[known[same]]
            coarse.nodes[known[same]] = Node(
                before.name, group, node.sizes, node.names, node.options, node.reduces,
                (*before.touches, *node.touches), node.forward, (*before.times, op.name),
            )  # fmt: skip
            continue
        known[same] = len(coarse.nodes)
        coarse.nodes.append(node)
    coarse.groups = [[] for _ in numbers]
    for k, node in enumerate(coarse.nodes):
        coarse.groups[node.group].append(k)
    return coarse


def _all(op: Op) -> tuple[str, ...]:
    return (*op.inputs, *op.outputs)


def _counts(graph: Graph, tensor: str, constant: frozenset[str]) -> bool:
    """Single elements, a loss for one, cannot be split and are not counted; constants are everywhere."""
    return tensor not in constant and prod(graph.tensor[tensor].shape) > 1


def _alike(graph: Graph, op: Op) -> Iterator[tuple[str, str]]:
    """Pairs of tensors of an op that are split alike: element by element the same, and between this op and one other."""
    if op.kind == UPDATE:
        yield op.inputs[0], op.inputs[1]
        return
    if op.kind == SUM and op.name.startswith(GRAD):  # the sum of a gradient belongs to the gradient
        for t in op.inputs:
            yield op.outputs[0], t
        return
    if not op.outputs or not graph.tensor[op.outputs[0]].shape:
        return
    for j, made in enumerate(op.outputs):
        if "#" in made:  # one of several parts of a gradient
            continue
        description = of_op(op, j)
        for k, t in enumerate(op.inputs):
            own = graph.tensor[t]
            readers = [graph.ops[i] for i, _ in graph.consumers.get(t, ())]
            between = sum(r.phase == op.phase for r in readers) == 1 and own.role in ("activation", "grad")
            of_phase = (op.phase == "forward") == (own.role != "grad")
            if between and of_phase and own.shape == graph.tensor[made].shape and is_elementwise(description, k):
                yield t, made


def _units(graph: Graph, ops: Sequence[Op], constant: frozenset[str], sets: _Sets) -> tuple[list[Unit], dict[str, int]]:
    units: list[Unit] = []
    number: dict[tuple[str, tuple[int, ...]], int] = {}
    unit_of: dict[str, int] = {}
    for op in ops:
        sizes = {f.name: f.size for f in op.rule.factors}
        for t, dims in (*zip(op.inputs, op.rule.operands), *zip(op.outputs, op.rule.results)):
            if t in unit_of or not _counts(graph, t, constant):
                continue
            shape = tuple(prod(sizes[n] for n in names) for names in dims)
            key = (sets.of(t), shape)  # a first time step may start from a state of another shape
            if key not in number:
                number[key] = len(units)
                units.append(Unit(shape, [], prod(shape) * _item(graph, t), False))
            unit_of[t] = number[key]
            units[number[key]].tensors.append(t)
            units[number[key]].forward |= graph.tensor[t].role != "grad"
    return units, unit_of


def _variables(graph: Graph, units: Sequence[Unit], unit_of: dict[str, int]) -> list[tuple[int, ...]]:
    """Units joined to those of their gradients."""
    sets = _Sets()
    for t, u in unit_of.items():
        sets.join(str(u), str(u))
        gradient = unit_of.get(GRAD + t)
        if gradient is not None:
            sets.join(str(u), str(gradient))
    found: dict[str, list[int]] = {}
    for u in range(len(units)):
        found.setdefault(sets.of(str(u)), []).append(u)
    return [tuple(sorted(own, key=lambda u: (not units[u].forward, u))) for own in found.values()]


def _from_logits(graph: Graph, op: Op) -> Op:
    """The gradient of a loss reads as much as its logits: the log-probabilities that it kept, or, cut otherwise, the logits."""
    loss = graph.ops[graph.position[op.of]] if op.of in graph.position else None
    if loss is None or op.phase != "backward" or op.kind not in CROSS_ENTROPIES or loss.inputs[0] in op.inputs:
        return op
    rule = loss.rule
    used = {n for dims in (*op.rule.operands, *op.rule.results, rule.operands[0]) for names in dims for n in names}
    factors = tuple(f for f in rule.factors if f.name in used)
    operands = (*op.rule.operands, rule.operands[0])
    return replace(op, inputs=(*op.inputs, loss.inputs[0]), rule=replace(op.rule, factors=factors, operands=operands))


def _at_batch(graph: Graph, op: Op, samples: int) -> Op:
    sizes = sizes_at(graph, op, samples).tolist()
    factors = tuple(replace(f, size=n) for f, n in zip(op.rule.factors, sizes, strict=True))
    return replace(op, rule=replace(op.rule, factors=factors))


def _node(graph: Graph, op: Op, group: int, unit_of: dict[str, int], elements: bool) -> Node:
    factors = op.rule.factors
    sizes = tuple(f.size for f in factors)
    at = {f.name: k for k, f in enumerate(factors)}
    extents = extents_of(op)
    touches = []
    for k, (t, dims) in enumerate(zip(op.inputs, op.rule.operands, strict=True)):
        if t in unit_of:
            index, _ = indices(op, k, dims)
            touches.append(
                _touch(unit_of[t], False, 1 if elements else _item(graph, t), index, at, extents, frozenset())
            )
    for t, dims in zip(op.outputs, op.rule.results, strict=True):
        if t in unit_of:
            has = {n for names in dims for n in names}
            partial = frozenset(k for n, k in at.items() if n not in has)
            touches.append(
                _touch(
                    unit_of[t], True, 1 if elements else _item(graph, t), _held(dims, sizes, at), at, extents, partial
                )
            )
    options = tuple(k for k, f in enumerate(factors) if f.kind in CUTTABLE)
    # Of a loss alone nothing is counted: what it sums over is cut for nothing.
    made = frozenset[int]().union(*(x.partial for x in touches if x.write)) & frozenset(options)
    return Node(
        op.name, group, sizes, tuple(f.name for f in factors), options, made, tuple(touches), op.phase == "forward"
    )


def _held(dims: Dims, sizes: Sequence[int], at: dict[str, int]) -> tuple[Affine, ...]:
    """What a part of an op makes of a result, without windows."""
    found = []
    for names in dims:
        index, step = Affine(), 1
        for name in reversed(names):
            index = index + Affine(((name, Fraction(1)),)) * step
            step *= sizes[at[name]]
        found.append(index)
    return tuple(found)


def _touch(
    unit: int, write: bool, item: int, index: tuple[Affine, ...], at: dict[str, int], extents: dict[str, int],
    partial: frozenset[int],
) -> Touch:  # fmt: skip
    terms, first, beyond = [], [], []
    for own in index:
        terms.append(tuple((at[n], int(k)) for n, k in own.terms if n in at))
        first.append(int(own.constant))
        beyond.append(sum(int(k) * (extents[n] - 1) for n, k in own.terms if n not in at))
    return Touch(unit, write, item, tuple(terms), tuple(first), tuple(beyond), partial)


def _item(graph: Graph, tensor: str) -> int:
    return ITEM_BYTES.get(graph.tensor[tensor].dtype, 4)


def time_steps(graph: Graph) -> dict[str, str]:
    """Op of an unrolled step -> the op at its place in the first step; forward ops alone.

    Steps are found by the weights that they share: equal ops that read the same parameter, as far apart as the ones
    before, with equal ops around them.
    """
    forward = [op for op in graph.ops if op.phase == "forward"]
    found: dict[str, str] = {}
    for param in graph.params():
        places = [i for i, op in enumerate(forward) if param.name in op.inputs]
        if len(places) < 2 or any(forward[i].name in found for i in places):
            continue
        gaps = {b - a for a, b in pairwise(places)}
        if len(gaps) != 1 or any(not _equal(forward[places[0]], forward[i]) for i in places[1:]):
            continue
        (period,) = gaps
        low, high = 0, 1  # how far the equal ops reach around the places
        while high - low < period and all(_at(forward, i + high, places[0] + high) for i in places):
            high += 1
        while high - low < period and all(_at(forward, i + low - 1, places[0] + low - 1) for i in places):
            low -= 1
        for i in places[1:]:
            for k in range(low, high):
                if _equal(forward[i + k], forward[places[0] + k]):
                    found[forward[i + k].name] = forward[places[0] + k].name
    return found


def _at(ops: Sequence[Op], i: int, first: int) -> bool:
    return 0 <= first < len(ops) and 0 <= i < len(ops) and _equal(ops[i], ops[first])


def _equal(a: Op, b: Op) -> bool:
    return a.kind == b.kind and a.rule == b.rule
