"""Repeated blocks: stretches of ops that say the same again and again, found once so that depth costs nothing.

    ops      h h | a b c d | a b c d | a b c d | t t        period 4, three blocks, first op 2
                   ▲___________│ block 1 reads block 0 in the same place as block 2 reads block 1; block 0 reads the head

1. Each op becomes a token: kind, arguments, rule, shapes, what it keeps, the last part of its parameters' names.
2. A period is the distance between two equal tokens that follow each other; the stretches where every token equals the
   one a period later are candidates, largest cover first.
3. Wiring decides: which blocks of a candidate read each other, the rest of the graph and their own parameters alike.
4. Of all rotations of a block, the one whose ops share the longest module path is taken: "model.layers.0", not the second
   half of one layer with the first half of the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .ir import Graph, Ints, Op, Run

_PERIODS = 64
"""Candidate periods tried in one stretch, most frequent first; a true period is as frequent as its blocks are many."""
_MULTIPLES = 8
"""Blocks of one kind may alternate in wiring only (every sixth layer sees everything): so many layers to a block."""

_RESULTS = 1 << 16
"""More results than one op has; numbers (op, result) as one integer."""


def with_runs(graph: Graph) -> Graph:
    """The same graph with its repeated blocks; its digest says structure and stays."""
    return replace(graph, runs=repeated_runs(graph))


def repeated_runs(graph: Graph) -> tuple[Run, ...]:
    """Runs in program order; they do not overlap, no two have one name, each block holds a parameter of its own."""
    wiring = _Wiring(graph)
    tokens = _tokens(graph)
    found: list[Run] = []
    waiting = [(0, len(graph.ops))]
    while waiting:
        start, end = waiting.pop()
        run = _best(graph, wiring, tokens, start, end)
        if run is not None:
            found.append(run)
            waiting += [(start, run.first), (run.first + run.length * run.count, end)]
    return _told_apart(graph, wiring, sorted(found, key=lambda run: run.first))


def _told_apart(graph: Graph, wiring: _Wiring, runs: Sequence[Run]) -> tuple[Run, ...]:
    """Layers of two kinds in one list ("model.layers"): later runs are called after their first block ("model.layers.3")."""
    found: dict[str, Run] = {}
    for run in runs:
        names = (run.name, ".".join(_common(graph, wiring, run.first, run.length)), f"{run.name}+{run.first}")
        name = next(name for name in names if name not in found)
        found[name] = replace(run, name=name)
    return tuple(found.values())


def _best(graph: Graph, wiring: _Wiring, tokens: Ints, start: int, end: int) -> Run | None:
    """The run in ops [start, end) that covers most ops; of equal ones that with the shortest blocks."""
    best: Run | None = None
    for bound, length, low, high in sorted(_candidates(wiring, tokens, start, end), key=lambda c: (-c[0], *c[1:])):
        if best is not None and bound <= best.length * best.count:
            break
        run = _aligned(graph, wiring, low, high, length)
        if run is not None and (best is None or run.length * run.count > best.length * best.count):
            best = run
    return best


def _candidates(wiring: _Wiring, tokens: Ints, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(ops that a run in it can cover at most, length of a block, low, high) of every stretch worth a closer look."""
    for period in _periods(tokens[start:end]):
        for length in range(period, min(_MULTIPLES * period, (end - start) // 2) + 1, period):
            reached = True
            for low, high in _stretches(tokens, start, end, length):
                bound = min(wiring.longest(low, high, length) // length + 2, (high - low) // length) * length
                reached = reached and bound > high - low - 2 * length
                yield bound, length, low, high
            if reached:
                break


def _periods(tokens: Ints) -> list[int]:
    """Distances between neighbours of one token, most frequent first, weighted by what they could cover."""
    order = np.argsort(tokens, kind="stable")
    same = tokens[order][1:] == tokens[order][:-1]
    distances = np.diff(order)[same]
    counts = Counter(distances[distances >= 2].tolist())
    ranked = sorted(counts, key=lambda d: (-counts[d], d))[:_PERIODS]
    longest = sorted(counts, key=lambda d: (-counts[d] * d, d))[:_PERIODS]
    return sorted(set(ranked) | set(longest), key=lambda d: (-counts[d] * d, d))


def _stretches(tokens: Ints, start: int, end: int, length: int) -> list[tuple[int, int]]:
    """Maximal [low, high) with equal tokens at distance `length`, at least two blocks long, longest first."""
    own = tokens[start:end]
    if 2 * length > len(own):
        return []
    equal = np.zeros(len(own) - length + 2, dtype=np.int8)
    equal[1:-1] = own[:-length] == own[length:]
    edges = np.flatnonzero(np.diff(equal))
    found = [(start + int(a), start + int(b) + length) for a, b in zip(edges[::2], edges[1::2]) if b - a >= length]
    return sorted(found, key=lambda s: (s[0] - s[1], s[0]))


def _aligned(graph: Graph, wiring: _Wiring, low: int, high: int, length: int) -> Run | None:
    """The best rotation of the blocks in [low, high) whose wiring repeats at least twice."""
    depths = _depths(graph, wiring, low, length)
    offsets = range(min(length, high - low - 2 * length + 1))
    for depth in sorted({depths[o] for o in offsets}, reverse=True):
        best: Run | None = None
        for offset in (o for o in offsets if depths[o] == depth):
            count = (high - low - offset) // length
            if best is None or count > best.count:
                skipped, blocks = wiring.alike(low + offset, length, count)
                if blocks >= 2 and (best is None or blocks > best.count):
                    first = low + offset + skipped * length
                    best = Run(_path(graph, wiring, first, length), first, length, blocks)
        if best is not None:
            return best
    return None


def _depths(graph: Graph, wiring: _Wiring, low: int, length: int) -> list[tuple[int, int, int]]:
    """Per rotation, more is better: parts of the module path that all ops of a block share, then those that the owners
    of its parameters share, then (negative) those that the ops on the two sides of the boundary share.
    """
    ops = graph.ops[low : low + 2 * length]
    modules = [tuple(op.module.split(".")) if op.module else () for op in ops]
    owners = [_owner(wiring, op, length) for op in ops]
    before = graph.ops[low - 1].module.split(".") if low else []
    cuts = [-len(_shared(a, b)) for a, b in zip((tuple(before), *modules), modules[:length])]
    return list(zip(_windows(modules, length), _windows(owners, length), cuts))


def _owner(wiring: _Wiring, op: Op, length: int) -> tuple[str, ...] | None:
    """Path of the module that holds the op's parameter; None without one that a block can have for itself."""
    for name in op.inputs:
        if name in wiring.params and wiring.users[name][1] - wiring.users[name][0] < length:
            return tuple(name.split(".")[:-1])
    return None


def _windows(paths: Sequence[tuple[str, ...] | None], length: int) -> list[int]:
    """Per offset o below `length`: how long a path all of paths[o : o + length] share; from both ends in linear time."""
    tail: list[tuple[str, ...] | None] = [None] * (length + 1)
    for i in range(length - 1, -1, -1):
        tail[i] = _meet(paths[i], tail[i + 1])
    found, head = [], None
    for offset in range(length):
        whole = _meet(tail[offset], head)
        found.append(len(whole) if whole is not None else 0)
        if length + offset < len(paths):
            head = _meet(head, paths[length + offset])
    return found


def _meet(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return b if a is None else a if b is None else _shared(a, b)


def _shared(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    length = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[:length]


def _path(graph: Graph, wiring: _Wiring, first: int, length: int) -> str:
    """Name of a run: what block 0 and block 1 have in common."""
    one, two = (_common(graph, wiring, begin, length) for begin in (first, first + length))
    return ".".join(_shared(one, two)) or graph.ops[first].module


def _common(graph: Graph, wiring: _Wiring, first: int, length: int) -> tuple[str, ...]:
    """Path that the modules (or else the parameters) of a block share."""
    ops = graph.ops[first : first + length]
    shared: tuple[str, ...] | None = None
    for op in ops:
        shared = _meet(shared, tuple(op.module.split(".")) if op.module else ())
    owned: tuple[str, ...] | None = None
    for op in ops:
        owned = _meet(owned, _owner(wiring, op, length))
    return max(shared or (), owned or (), key=len)


def _tokens(graph: Graph) -> Ints:
    """Per op a number; equal numbers mean the same op but for names and wiring."""
    known: dict[object, int] = {}
    rules: dict[int, int] = {}
    tensor = graph.tensor
    result = np.empty(len(graph.ops), dtype=np.int64)
    for i, op in enumerate(graph.ops):
        rule = rules.get(id(op.rule))
        if rule is None:
            rule = rules[id(op.rule)] = known.setdefault(op.rule, len(known))
        places = {name: k for k, name in enumerate((*op.inputs, *op.outputs))}
        content = (
            op.kind, op.call, op.args, op.kwargs, rule, op.flops, op.saved_extra, op.phase, op.runs_on,
            tuple(places.get(name, -1) for name in op.saved),
            tuple(_said(graph, name) for name in op.inputs),
            tuple((tensor[name].shape, tensor[name].dtype, tensor[name].nbytes) for name in op.outputs),
        )  # fmt: skip
        result[i] = known.setdefault(content, len(known))
    return result


def _said(graph: Graph, name: str) -> tuple[object, ...]:
    found = graph.tensor[name]
    own = name.rpartition(".")[2] if found.role == "param" else ""
    return found.role, own, found.shape, found.dtype, found.nbytes


@dataclass(frozen=True, slots=True)
class _Read:
    """Where an operand comes from, seen from the block that reads it."""

    kind: str
    """in = this block, before = the block before, own = a parameter (numbered by first use), far = anything else."""
    place: int
    """Kinds in and before: op · _RESULTS + result; own: the number."""
    name: str

    def same_place(self, other: _Read) -> bool:
        return self.kind == other.kind and self.place == other.place and (self.kind != "far" or self.name == other.name)


class _Wiring:
    """Who reads what, for the comparison of blocks."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.held = {name: t.role in ("param", "buffer") for name, t in graph.tensor.items()}
        self.params = {name for name, t in graph.tensor.items() if t.role == "param"}
        self.made = {name: (i, k) for i, op in enumerate(graph.ops) for k, name in enumerate(op.outputs)}
        self.users = {name: (uses[0][0], uses[-1][0]) for name, uses in graph.consumers.items()}
        self.kept = {*graph.outputs, graph.loss}

        # Operands of all ops in one row: where an op's begin, which op reads, which op made it (-1: held), which tensor.
        self.begin = np.cumsum([0, *(len(op.inputs) for op in graph.ops)])
        numbers = {name: i for i, name in enumerate(graph.tensor)}
        names = [name for op in graph.ops for name in op.inputs]
        self.number = np.array([numbers[name] for name in names], dtype=np.int64)
        self.distance = np.repeat(np.arange(len(graph.ops)), np.diff(self.begin))
        self.distance -= np.array([self.made.get(name, (-1, 0))[0] for name in names], dtype=np.int64)
        self.free = np.array([self.held[name] for name in names], dtype=bool)

    def longest(self, low: int, high: int, length: int) -> int:
        """Ops in a row of [low, high), whose tokens repeat at `length`, that are wired like the ops `length` later.

        Parameters count as alike; blocks of a run are alike from the second to the last but one.
        """
        first, last, shift = self.begin[low], self.begin[high - length], self.begin[low + length] - self.begin[low]
        one, two = slice(first, last), slice(first + shift, last + shift)
        near = (self.distance[one] == self.distance[two]) & (self.distance[one] < 2 * length)
        alike = self.free[one] | near | (self.number[one] == self.number[two])
        wrong = np.flatnonzero(~alike) + first
        ops = np.unique(np.searchsorted(self.begin, wrong, side="right") - 1)
        return int(np.max(np.diff(np.concatenate(([low - 1], ops, [high - length]))))) - 1

    def alike(self, first: int, length: int, count: int) -> tuple[int, int]:
        """(number of the first block, blocks) of the longest chain of alike blocks among the `count` from op `first`."""
        reads = [self._reads(first + b * length, length) for b in range(count)]
        leaks = [self._leaks(first + b * length, length) for b in range(count)]
        best = (0, 0)
        begin = 0
        while begin < count - 1:
            if leaks[begin] or not self._starts(reads[begin], reads[begin + 1]):
                begin += 1
                continue
            end = begin + 1
            while end + 1 < count and not leaks[end] and self._goes_on(reads[end], reads[end + 1]):
                end += 1
            if end - begin + 1 > best[1]:
                best = (begin, end - begin + 1)
            begin = end
        return best if self._has_parameters(reads[best[0]]) else (0, 0)

    def _reads(self, begin: int, length: int) -> list[_Read]:
        found, numbers = [], dict[str, int]()
        for op in self.graph.ops[begin : begin + length]:
            for name in op.inputs:
                made = self.made.get(name)
                if made is None:
                    first, last = self.users[name]
                    if self.held[name] and begin <= first and last < begin + length:
                        found.append(_Read("own", numbers.setdefault(name, len(numbers)), name))
                    else:
                        found.append(_Read("far", 0, name))
                elif begin <= made[0] < begin + length:
                    found.append(_Read("in", (made[0] - begin) * _RESULTS + made[1], name))
                elif begin - length <= made[0] < begin:
                    found.append(_Read("before", (made[0] - begin + length) * _RESULTS + made[1], name))
                else:
                    found.append(_Read("far", 0, name))
        return found

    def _leaks(self, begin: int, length: int) -> bool:
        """Something of the block is read beyond the next block, so a block in the middle is not like the last."""
        for op in self.graph.ops[begin : begin + length]:
            for name in op.outputs:
                if name in self.kept or (name in self.users and self.users[name][1] >= begin + 2 * length):
                    return True
        return False

    def _starts(self, zero: list[_Read], one: list[_Read]) -> bool:
        """Block 0 reads the rest of the graph where block 1 reads block 0, and is like it elsewhere."""
        for a, b in zip(zero, one, strict=True):
            if b.kind == "before":
                if a.kind not in ("far", "before") or self.held[a.name]:
                    return False
            elif b.kind == "far":
                if a.name != b.name:
                    return False
            elif not a.same_place(b):
                return False
        return True

    def _goes_on(self, one: list[_Read], two: list[_Read]) -> bool:
        return all(a.same_place(b) for a, b in zip(one, two, strict=True))

    def _has_parameters(self, reads: list[_Read]) -> bool:
        return any(read.kind == "own" and read.name in self.params for read in reads)
