"""Atoms: the finest sub-dimensions of every tensor on which all ops agree, found once per graph, whatever the plan.

A reshape [B·S, H·D] -> [B, S, H, D] puts a border inside both dims; borders flow through the factors of all ops until
nothing moves. A layout is then one string of mesh axes per atom, and a conversion a comparison, atom by atom.

Borders of one dim must nest (each divides the next). One that does not nest is left out, and the op that wanted it sees
that dim as fixed: it is never cut there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import prod

from ..graph.ir import FactorKind
from ..graph.kinds import kind_of
from ..graph.saved import is_alias
from .fold import Folded

FIXED = -1
"""In `Node.operands` / `results`: an atom that this op cannot see cut."""


@dataclass(slots=True)
class Node:
    """One op at atom grain. Atom numbers index `size`, `kind`, `samples`, `factor`."""

    index: int
    """In `Graph.ops`."""
    inputs: tuple[str, ...]
    """Folded names."""
    outputs: tuple[str, ...]
    size: list[int]
    kind: list[FactorKind]
    factor: list[int]
    """Per atom: the factor of the rule it is a part of."""
    samples: list[bool]
    operands: list[tuple[int, ...]]
    """Per operand, per atom of that tensor: the op's atom, or FIXED."""
    results: list[tuple[int, ...]]
    summed: frozenset[int]
    """Atoms of factors in no result (not stat): cut = partial sums."""
    awkward: frozenset[int] = frozenset()
    """Atoms of results that some reader cannot see cut (the 3 of a fused QKV, the width of a head): cut others first."""


@dataclass(slots=True)
class Atoms:
    folded: Folded
    nodes: list[Node]
    size: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensor -> atoms, flat over its dims; every dim has at least one."""
    dims: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensor -> number of atoms per dim."""
    samples: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    grad: set[str] = field(default_factory=set)
    """Parameters that learn, and tensors through which a gradient flows from the loss to one."""
    from_params: set[str] = field(default_factory=set)
    """Derived from parameters and constants alone."""
    const: set[str] = field(default_factory=set)
    """Derived from nothing that trains or arrives: computed whole everywhere, sliced where used."""
    users: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Tensor -> (node, operand)."""
    producer: dict[str, int] = field(default_factory=dict)
    """Tensor -> node."""
    role: dict[str, str] = field(default_factory=dict)
    differentiable: frozenset[int] = frozenset()
    """Nodes with a backward: a gradient of some result arrives."""
    light: frozenset[int] = frozenset()
    """Nodes that a fused kernel takes in."""
    alias: frozenset[int] = frozenset()
    """Nodes whose result shares the storage of operand 0."""

    def is_weight(self, t: str) -> bool:
        """A parameter, learning or frozen, or made of parameters alone."""
        return t in self.from_params and t not in self.const


class _Marks:
    """Borders inside one dim or factor, as strides; only ever a chain in which each divides the next."""

    __slots__ = ("size", "strides")

    def __init__(self, size: int) -> None:
        self.size = size
        self.strides: set[int] = set()

    def add(self, stride: int) -> bool:
        if stride <= 1 or stride >= self.size or self.size % stride or stride in self.strides:
            return False
        if any(stride % s and s % stride for s in self.strides):
            return False
        self.strides.add(stride)
        return True

    def parts(self) -> list[int]:
        """Sizes, major first."""
        edges = [1, *sorted(self.strides), self.size]
        return [b // a for a, b in itertools.pairwise(edges)][::-1] if self.size > 1 else [1]


def strides(sizes: Sequence[int]) -> list[int]:
    out, step = [], 1
    for s in reversed(sizes):
        out.append(step)
        step *= s
    return out[::-1]


def refine(folded: Folded) -> Atoms:
    """Atoms of all tensors and factors of the folded graph; see the module's docstring."""
    graph = folded.graph
    ops = [graph.ops[i] for i in folded.ops]
    names = [tuple(folded.name(t) for t in op.inputs) for op in ops]
    marks: dict[str, list[_Marks]] = {}
    for op, ins in zip(ops, names):
        for t in (*ins, *op.outputs):
            if t not in marks:
                marks[t] = [_Marks(n) for n in graph.tensor[t].shape]
    factor = [{f.name: (k, _Marks(f.size)) for k, f in enumerate(op.rule.factors)} for op in ops]

    pending = list(range(len(ops)))  # a heap: ops in program order
    waiting = set(pending)
    readers: dict[str, set[int]] = {}
    for n, (op, ins) in enumerate(zip(ops, names)):
        for t in (*ins, *op.outputs):
            readers.setdefault(t, set()).add(n)
    twins: dict[str, list[str]] = {}
    for a, b in folded.carries:
        twins.setdefault(folded.name(a), []).append(b)
        twins.setdefault(b, []).append(folded.name(a))
    while pending:
        n = heappop(pending)
        waiting.discard(n)
        op, own = ops[n], factor[n]
        touched: set[str] = set()
        moved = False
        for t, dims in zip((*names[n], *op.outputs), (*op.rule.operands, *op.rule.results)):
            for fs, mark in zip(dims, marks[t]):
                for name, step in zip(fs, strides([own[f][1].size for f in fs])):
                    inner = own[name][1]
                    if step > 1 and mark.add(step):
                        touched.add(t)
                    for s in tuple(inner.strides):
                        if mark.add(s * step):
                            touched.add(t)
                    for s in tuple(mark.strides):
                        if step < s < step * inner.size and s % step == 0 and inner.add(s // step):
                            moved = True
        for t in tuple(touched):
            for u in twins.get(t, ()):
                for here, there in zip(marks[t], marks[u]):
                    for s in sorted(here.strides):
                        if there.add(s):
                            touched.add(u)
        again = {reader for t in touched for reader in readers.get(t, ())} | ({n} if moved else set())
        for reader in again - waiting:
            heappush(pending, reader)
        waiting |= again

    atoms = Atoms(folded, [])
    for t, of_dims in marks.items():
        parts = [m.parts() for m in of_dims]
        atoms.size[t] = tuple(s for p in parts for s in p)
        atoms.dims[t] = tuple(len(p) for p in parts)
        tensor = graph.tensor[t]
        atoms.role[t] = tensor.role
        if tensor.role == "param":
            if not tensor.frozen:
                atoms.grad.add(t)
            atoms.from_params.add(t)
        elif tensor.role == "buffer":
            atoms.from_params.add(t)
            atoms.const.add(t)
        if tensor.role == "input":
            first = atoms.dims[t][0] if atoms.dims[t] else 0
            atoms.samples[t] = tuple(k == 0 and first > 0 for k in range(len(atoms.size[t])))
        elif t not in atoms.samples and graph.producer.get(t) is None:
            atoms.samples[t] = (False,) * len(atoms.size[t])
    for n, op in enumerate(ops):
        atoms.nodes.append(_node(atoms, n, folded.ops[n], names[n], factor[n]))
        _derive(atoms, n, op.outputs)
    _hand_on(atoms)
    _keep_what_reaches_the_loss(atoms)
    _mark_awkward(atoms)
    kinds = [kind_of(op.kind) for op in ops]
    atoms.light = frozenset(n for n, kind in enumerate(kinds) if kind is not None and kind.light)
    atoms.alias = frozenset(n for n, op in enumerate(ops) if op.inputs and is_alias(op, graph))
    return atoms


def _node(atoms: Atoms, n: int, index: int, inputs: tuple[str, ...], factor: dict[str, tuple[int, _Marks]]) -> Node:
    op = atoms.folded.graph.ops[index]
    first: dict[str, int] = {}
    size: list[int] = []
    of: list[int] = []
    kind: list[FactorKind] = []
    for f in op.rule.factors:
        k, m = factor[f.name]
        parts = m.parts()
        first[f.name] = len(size)
        size += parts
        of += [k] * len(parts)
        kind += [f.kind] * len(parts)
    unseen: set[int] = set()
    single = {f.name for f in op.rule.factors if f.samples and f.size == 1}  # grows, though the graph has one sample

    def mapped(t: str, dims: tuple[tuple[str, ...], ...]) -> tuple[int, ...]:
        found: list[int] = []
        have, counts, at = atoms.size[t], atoms.dims[t], 0
        for fs, count in zip(dims, counts, strict=True):
            if len(fs) == 1 and fs[0] in single:
                found.append(first[fs[0]])
                at += count
                continue
            mine = [first[f] + j for f in fs for j in range(len(factor[f][1].parts())) if size[first[f] + j] > 1]
            if [size[a] for a in mine] == [s for s in have[at : at + count] if s > 1]:
                it = iter(mine)
                found += [next(it) if s > 1 else FIXED for s in have[at : at + count]]
            else:  # borders that do not nest: this op takes the dim whole
                unseen.update(mine)
                found += [FIXED] * count
            at += count
        return tuple(found)

    operands = [mapped(t, d) for t, d in zip(inputs, op.rule.operands, strict=True)]
    results = [mapped(t, d) for t, d in zip(op.outputs, op.rule.results, strict=True)]
    for a in unseen:
        kind[a] = "fixed"
    samples = [False] * len(size)
    if op.kind == PROFILED:  # no input of the graph carries the mark to it
        samples = [f.samples for f in op.rule.factors for _ in factor[f.name][1].parts()]
    for t, at in zip(inputs, operands):
        for a, s in zip(at, atoms.samples[t]):
            if a != FIXED and s:
                samples[a] = True
    for t, at in zip(op.outputs, results):
        atoms.samples[t] = tuple(a != FIXED and samples[a] for a in at)
    for k, t in enumerate(inputs):
        atoms.users.setdefault(t, []).append((n, k))
    for t in op.outputs:
        atoms.producer[t] = n
    summed = {op.rule.factors.index(f) for f in op.rule.factors if f.name in op.rule.summed()}
    return Node(
        index, inputs, op.outputs, size, kind, of, samples, operands, results,
        frozenset(a for a, k in enumerate(of) if k in summed),
    )  # fmt: skip


PRODUCTS = frozenset({"linear", "mm", "matmul", "bmm", "addmm"})


def _mark_awkward(atoms: Atoms) -> None:
    """Backwards from the ops that see an atom as fixed: what they read there, and what that is made of."""
    bad: dict[str, set[int]] = {}
    for node in reversed(atoms.nodes):
        mine: set[int] = set()
        for t, mapping in zip(node.outputs, node.results):
            mine.update(a for k, a in enumerate(mapping) if k in bad.get(t, ()) and a != FIXED)
        node.awkward = frozenset(mine)
        fixed = {a for a, kind in enumerate(node.kind) if kind in ("fixed", "opaque")}
        fixed |= {
            a for a, kind in enumerate(node.kind) if kind == "halo" and a and node.factor[a - 1] == node.factor[a]
        }
        for t, mapping in zip(node.inputs, node.operands):
            bad.setdefault(t, set()).update(
                k for k, a in enumerate(mapping) if (a == FIXED and atoms.size[t][k] > 1) or a in fixed or a in mine
            )


PROFILED = "profiled"
"""Kind of the ops of a profile: the backward of each was timed, whether parameters of it are known or not."""
_RESULT_BY_OPERAND = frozenset({"broadcast_tensors", "meshgrid"})
"""Kinds whose k-th result has the gradient of the k-th operand alone."""


def _derive(atoms: Atoms, n: int, outputs: tuple[str, ...]) -> None:
    node, graph = atoms.nodes[n], atoms.folded.graph
    each, profiled = (kind := graph.ops[node.index].kind) in _RESULT_BY_OPERAND, kind == PROFILED
    for k, t in enumerate(outputs):
        sources = node.inputs[k : k + 1] if each else node.inputs
        if (profiled or any(u in atoms.grad for u in sources)) and "float" in graph.tensor[t].dtype:
            atoms.grad.add(t)
        if profiled:
            continue
        if all(u in atoms.from_params for u in node.inputs):
            atoms.from_params.add(t)
        if all(u in atoms.const for u in node.inputs):
            atoms.const.add(t)


def _hand_on(atoms: Atoms) -> None:
    """A block stands for all of its run: what it reads of the block before has a gradient if that does in any of them.

    The first of a run whose input comes from nothing that learns (a frozen embedding) so has one too many.
    """
    folded = atoms.folded
    while True:
        late = {folded.name(a) for a, b in folded.carries if b in atoms.grad} - atoms.grad
        if not late:
            return
        atoms.grad |= late
        for n, node in enumerate(atoms.nodes):
            _derive(atoms, n, node.outputs)


def _keep_what_reaches_the_loss(atoms: Atoms) -> None:
    """Values that only make integers, masks, or nothing (the scores behind a choice of groups) get no gradient."""
    folded = atoms.folded
    if folded.graph.loss:
        reaches = {folded.name(folded.graph.loss)}
        handed: dict[str, list[str]] = {}  # what a block reads of the block before -> the results in its place
        for a, b in folded.carries:
            handed.setdefault(folded.name(a), []).append(b)
        known = 0
        while known != len(reaches):  # again where a block hands on what only reaches the loss through the next
            known = len(reaches)
            for node in reversed(atoms.nodes):
                if any(t in reaches and t in atoms.grad for t in node.outputs):
                    for t in node.inputs:
                        reaches.add(t)
                        reaches.update(handed.get(t, ()))
        atoms.grad = {t for t in atoms.grad if t in reaches or atoms.role[t] == "param"}
    atoms.differentiable = frozenset(
        n
        for n, node in enumerate(atoms.nodes)
        if any(t in atoms.grad for t in node.outputs)
        and (any(t in atoms.grad for t in node.inputs) or atoms.folded.graph.ops[node.index].kind == PROFILED)
    )


def item_bytes(atoms: Atoms, tensor: str) -> float:
    """Bytes of one element."""
    t = atoms.folded.graph.tensor[tensor]
    return t.nbytes / max(prod(t.shape), 1)
