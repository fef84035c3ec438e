"""Double recursion on arrays: in each round every operator halves one of its dims, greedily, in an order of importance.

Volumes in elements, of local sizes. With i rows, k summed and j columns of a product (i × k)(k × j):

    slot     I (rows)          J (columns)    K (summed)    R (none)
    volume   coef · j · k / 2  i · k / 2      i · j / 2     min(I, J, K)² / 25
    x, y     rows, rows        –, columns     columns, –    –, –              what it cuts of its operand and result

A convolution has batch (filter / 2), output channels (input / 2), input channels (output / 2), height and width ((input + filter)
/ 2); what multiplies nothing has the same cuts without weights, for nothing. A neighbour that was decided in this round and cuts
the tensor between the two otherwise adds 16 times its elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._jit import kernel
from ..graph.ir import Floats, Ints

PRODUCT, CONV, OTHER = range(3)
ROWS, SUMMED, COLUMNS, HEIGHT, WIDTH = range(5)
"""Dims of an operator: of what it reads ROWS × SUMMED, of its result ROWS × COLUMNS. Of OTHER columns are SUMMED, too."""
SLOTS = 5
NOTHING = SLOTS
"""The slot that cuts nothing."""
ORDER = {
    PRODUCT: (ROWS, COLUMNS, SUMMED, NOTHING, NOTHING),
    CONV: (ROWS, COLUMNS, SUMMED, HEIGHT, WIDTH),
    OTHER: (ROWS, SUMMED, HEIGHT, WIDTH, NOTHING),
}
"""Per kind the dim that each slot halves; of equal costs the first slot is taken."""
_FEATURES = 2
_READ = {ROWS: 1, SUMMED: _FEATURES, COLUMNS: 0, HEIGHT: 3, WIDTH: 4, NOTHING: 0}
"""Dim -> what of the operand it cuts: 0 nothing, 1 rows, 2 features, 3 height, 4 width."""
_MADE = {ROWS: 1, SUMMED: 0, COLUMNS: _FEATURES, HEIGHT: 3, WIDTH: 4, NOTHING: 0}
MOVED = 16.0
"""Times that the elements of a tensor count whose two ends are cut otherwise."""
NO_CUT = 25.0

Importance = Literal["weight", "topological"]


@dataclass(frozen=True)
class Operators:
    """N operators in topological order."""

    kind: Ints
    size: Ints
    """[N, 5]: ROWS, SUMMED, COLUMNS, HEIGHT, WIDTH."""
    read_rest: Floats
    """Elements of the operand for one of ROWS × SUMMED × HEIGHT × WIDTH."""
    made_rest: Floats
    """Elements of the result for one of ROWS × COLUMNS (OTHER: SUMMED) × HEIGHT × WIDTH."""
    kernel: Floats
    """Weights for one of SUMMED × COLUMNS."""
    edges: tuple[tuple[int, int], ...]
    fed: NDArray[np.bool_]
    """Reads data."""
    coefficient: float = 0.1
    """Of the gradient's sum over rows (MindSpore 2.10: 0.1; 2020 and 2021: 0.25)."""
    no_cut: bool = True
    """A product may be left uncut (MindSpore 2.10)."""
    exclusive: bool = True
    """A product is cut on columns or on what it sums over, never on both in any rounds (MindSpore 2.10)."""
    enabled: tuple[int, ...] = (ROWS,)
    """Dims on which convolutions may be cut."""
    known: bool = True
    """The data source is decided before all others."""

    def __len__(self) -> int:
        return len(self.kind)

    @cached_property
    def dims(self) -> Ints:
        """[N, SLOTS + 1]: the dim that each slot halves, NOTHING for none."""
        table = np.array([(*ORDER[k], NOTHING) for k in range(3)], np.int64)
        return table[self.kind]

    @cached_property
    def reads(self) -> Ints:
        """[N, SLOTS + 1]: what each slot cuts of the operand."""
        return self._codes(_READ)

    @cached_property
    def makes(self) -> Ints:
        """[N, SLOTS + 1]: what each slot cuts of the result."""
        found = self._codes(_MADE)
        found[(self.kind == OTHER)[:, None] & (self.dims == SUMMED)] = _FEATURES
        return found

    def _codes(self, of: dict[int, int]) -> Ints:
        return np.array([of[d] for d in range(SLOTS + 1)], np.int64)[self.dims]

    @cached_property
    def before(self) -> tuple[Ints, Ints]:
        """(pointers, producers) of each operator."""
        return _rows(len(self), [(v, u) for u, v in self.edges])

    @cached_property
    def after(self) -> tuple[Ints, Ints]:
        """(pointers, consumers) of each operator."""
        return _rows(len(self), self.edges)


@dataclass
class State:
    """Where a recursion stands: local sizes, and which products were cut on columns or on sums."""

    ops: Operators
    size: Ints
    source: Ints
    """[N, 2]: local rows and features of the data that each operator would read."""
    cut: NDArray[np.bool_]
    """[N, 5]: dims that were halved in any round."""

    @classmethod
    def first(cls, ops: Operators) -> State:
        return cls(ops, ops.size.copy(), ops.size[:, [ROWS, SUMMED]].copy(), np.zeros(ops.size.shape, bool))

    @property
    def read(self) -> Floats:
        """Elements of each operand."""
        s = self.size.astype(np.float64)
        return s[:, ROWS] * s[:, SUMMED] * s[:, HEIGHT] * s[:, WIDTH] * self.ops.read_rest

    @property
    def made(self) -> Floats:
        """Elements of each result."""
        s = self.size.astype(np.float64)
        columns = np.where(self.ops.kind == OTHER, s[:, SUMMED], s[:, COLUMNS])
        return s[:, ROWS] * columns * s[:, HEIGHT] * s[:, WIDTH] * self.ops.made_rest

    def by_dim(self) -> Floats:
        """[N, 6]: the volume of halving each dim, and of halving none; whether it can be halved is not asked."""
        ops, read, made = self.ops, self.read, self.made
        weights = self.size[:, SUMMED] * self.size[:, COLUMNS] * ops.kernel
        found = np.zeros((len(ops), SLOTS + 1))
        coefficient = np.where(ops.kind == PRODUCT, ops.coefficient, 1.0)
        found[:, ROWS] = coefficient * weights / 2
        found[:, COLUMNS] = read / 2
        found[:, SUMMED] = made / 2
        found[:, HEIGHT] = found[:, WIDTH] = (read + weights) / 2
        found[ops.kind == OTHER] = 0.0
        least = found[:, [ROWS, COLUMNS, SUMMED]].min(axis=1)
        found[:, NOTHING] = np.where(ops.kind == PRODUCT, least**2 / NO_CUT, 0.0)
        return found

    def volumes(self) -> Floats:
        """[N, SLOTS + 1]: of each slot; inf where it is not allowed."""
        ops = self.ops
        found = np.take_along_axis(self.by_dim(), ops.dims, axis=1)
        legal = np.zeros((len(ops), SLOTS + 1), bool)
        legal[:, :SLOTS] = self.size % 2 == 0
        if ops.exclusive:
            product = ops.kind == PRODUCT
            legal[product & self.cut[:, SUMMED], COLUMNS] = False
            legal[product & self.cut[:, COLUMNS], SUMMED] = False
        off = [d for d in range(SLOTS) if d not in ops.enabled]
        legal[np.ix_(ops.kind == CONV, off)] = False
        allowed = np.take_along_axis(legal, ops.dims, axis=1)
        # Nothing is cut where a product may stay whole, and where nothing else can be done.
        stays = ((ops.kind == PRODUCT) & ops.no_cut) | ~allowed.any(axis=1)
        allowed[:, SLOTS] = stays
        return np.where(allowed, found, np.inf)

    def sources(self) -> Ints:
        """[N]: how the data that an operator reads are cut in this round; −1 = it reads none, or that is not known."""
        even = self.source % 2 == 0
        code = np.where(even[:, 0], 1, np.where(even[:, 1], _FEATURES, 0))
        return np.where(self.ops.fed & self.ops.known, code, -1)

    def order(self, importance: Importance) -> Ints:
        """Products by their dearest cut, convolutions by their cheapest, the dearest operator first; or as they stand."""
        if importance == "topological":
            return np.arange(len(self.ops))
        each = self.by_dim()
        product = each[:, [ROWS, COLUMNS, SUMMED]].max(axis=1)
        weight = np.where(self.ops.kind == PRODUCT, product, each[:, :SLOTS].min(axis=1))
        return np.argsort(-weight, kind="stable")

    def halved(self, slots: Ints) -> State:
        """After a round in which each operator took a slot."""
        at = np.arange(len(self.ops))
        dim = self.ops.dims[at, slots]
        size, cut, source = self.size.copy(), self.cut.copy(), self.source.copy()
        some = dim != NOTHING
        size[at[some], dim[some]] //= 2
        cut[at[some], dim[some]] = True
        even = self.source % 2 == 0
        rows, features = even[:, 0], ~even[:, 0] & even[:, 1]
        source[rows, 0] //= 2
        source[features, 1] //= 2
        return State(self.ops, size, source, cut)

    def price(self, slots: Ints) -> float:
        """Volume of a round in which each operator took a slot; a tensor between two counts as large as it is read."""
        ops, at = self.ops, np.arange(len(self.ops))
        total = float(self.volumes()[at, slots].sum())
        read, makes, reads = self.read, ops.makes[at, slots], ops.reads[at, slots]
        source = self.sources()
        total += MOVED * float(read[(source >= 0) & (source != reads)].sum())
        if ops.edges:
            u, v = np.array(ops.edges, np.int64).T
            total += MOVED * float(read[v][makes[u] != reads[v]].sum())
        return total


def search(ops: Operators, rounds: int, importance: Importance) -> tuple[list[Ints], list[State]]:
    """(slot of each operator in each round, the state before each round and after the last)."""
    states = [State.first(ops)]
    chosen: list[Ints] = []
    for _ in range(rounds):
        slots = one_round(states[-1], importance)
        chosen.append(slots)
        states.append(states[-1].halved(slots))
    return chosen, states


def one_round(state: State, importance: Importance) -> Ints:
    """The slots that one round takes."""
    ops = state.ops
    found: Ints = _greedy(
        state.order(importance), state.volumes(), ops.reads, ops.makes, MOVED * state.read, MOVED * state.made,
        *ops.before, *ops.after, state.sources(),
    )  # fmt: skip
    return found


def costs(state: State, slots: Ints) -> Floats:
    """[N, SLOTS + 1]: what each slot costs an operator, its producers having taken theirs (topological order)."""
    ops = state.ops
    found = state.volumes()
    read = MOVED * state.read
    source = state.sources()
    found = found + np.where((source[:, None] >= 0) & (source[:, None] != ops.reads), read[:, None], 0.0)
    for u, v in ops.edges:
        found[v] += np.where(ops.makes[u, slots[u]] != ops.reads[v], read[v], 0.0)
    return found


@kernel(
    np.int64, np.float64, np.int64, np.int64, np.float64, np.float64, np.int64, np.int64, np.int64, np.int64, np.int64
)
def _greedy(
    order: Any, volume: Any, reads: Any, makes: Any, read: Any, made: Any, before_at: Any, before: Any, after_at: Any,
    after: Any, source: Any,
) -> Any:  # fmt: skip
    """Each operator in turn takes the slot of least volume and redistribution, the lowest of equals."""
    chosen = np.full(order.shape[0], -1, np.int64)
    for v in order:
        least = np.inf
        for s in range(volume.shape[1]):
            cost = volume[v, s]
            if not cost < least:
                continue
            if source[v] >= 0 and source[v] != reads[v, s]:
                cost += read[v]
            for e in range(before_at[v], before_at[v + 1]):
                u = before[e]
                if chosen[u] >= 0 and makes[u, chosen[u]] != reads[v, s]:
                    cost += read[v]
            for e in range(after_at[v], after_at[v + 1]):
                w = after[e]
                if chosen[w] >= 0 and reads[w, chosen[w]] != makes[v, s]:
                    cost += made[v]
            if cost < least:
                least = cost
                chosen[v] = s
    return chosen


def _rows(n: int, edges: Sequence[tuple[int, int]]) -> tuple[Ints, Ints]:
    if not edges:
        return np.zeros(n + 1, np.int64), np.zeros(0, np.int64)
    a, b = np.array(edges, np.int64).T
    pointers = np.concatenate([[0], np.cumsum(np.bincount(a, minlength=n))])
    return pointers.astype(np.int64), b[np.argsort(a, kind="stable")]
