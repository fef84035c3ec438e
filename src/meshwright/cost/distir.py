"""DistIR's own prices (Santhanam et al. 2021, arXiv 2111.05426): sums, not maxima, of bytes and FLOPs, and a launch each.

    element-wise, n elements     launch + bytes of its operands (two at most) / memory + n / rate
    product (a × b)(b × c)       launch + item · (ab + bc) / memory + 2abc / rate; its backward is two such products
    all-reduce of s bytes on n   2 s (n − 1) / n / mean bandwidth of their pairs, or as measured: see `Calibration`; an
                                 all-gather to s bytes likewise (the public code, which never gathers, takes s of one part)
    send of s bytes              s / bandwidth, on both ends
    shape ops, lookups           launch

Communication has no latency. `calibrated` fits rates to measurements as the authors do: by non-negative least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import numpy as np

from ..cluster.model import Cluster, DeviceType, Mesh
from ..cluster.topology import shared_level
from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Floats, Ints, Op, Phase
from ._shapes import ATTENTION, LOOKUPS, VIEWS, OpShape, Shapes, volume
from .base import Collective, CostModel, Group, OpMemory
from .losses import LOSSES

LAUNCH = 1e-5
"""Seconds of one launch: the constant of the public code."""
GIGABIT = 1.25e8
"""Bytes."""
ONE_OPERAND = frozenset({*LOSSES, "mse_loss", "l1_loss"})
"""Kinds of which the original counts the first operand only, forward and backward."""
FREE: frozenset[Collective] = frozenset({"broadcast"})
TURNS: Mapping[Collective, float] = {"all_reduce": 2.0, "all_gather": 2.0}
"""Times that the bytes of a member travel; once where it is not said."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured instead of nominal figures; what is missing stays nominal."""

    memory: float = 0.0
    """Bytes/s."""
    rate: float = 0.0
    """FLOP/s."""
    launch: float = -1.0
    all_reduce: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    """Devices n -> (a, b, c): seconds = a · gigabits + b · n + c."""
    pairs: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """(from, to) -> bytes/s of a send."""


def calibrated(
    products: Sequence[tuple[float, float, float]] = (),
    all_reduces: Sequence[tuple[float, int, float]] = (),
    sends: Sequence[tuple[int, int, float, float]] = (),
) -> Calibration:
    """Rates that explain measurements best, none of them negative.

    Args:
        products: (bytes of the operands, FLOPs, seconds) of matrix products.
        all_reduces: (bytes, devices, seconds).
        sends: (from, to, bytes, seconds).

    Raises:
        InputError: fewer measurements than unknowns, or seconds that are not above 0.
    """

    def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float], what: str) -> list[float]:
        if len(rows) < len(rows[0]):
            raise InputError(f"{len(rows)} measured {what} cannot fix {len(rows[0])} unknowns: measure more sizes")
        if min(seconds) <= 0:
            raise InputError(f"measured {what} must take more than 0 seconds: got {min(seconds)}")
        table = np.array(rows, np.float64)
        size = table.max(axis=0)  # columns of one size, else the small ones drown
        size[size == 0] = 1.0
        return [float(x) for x in _nonnegative(table / size, np.array(seconds, np.float64)) / size]

    memory = rate = 0.0
    launch = -1.0
    if products:
        a, b, launch = fit([(x, y, 1.0) for x, y, _ in products], [t for _, _, t in products], "products")
        memory, rate = (1.0 / a if a else float("inf")), (1.0 / b if b else float("inf"))
    sums = {}
    for n in sorted({n for _, n, _ in all_reduces}):
        own = [(s / GIGABIT, float(n), 1.0) for s, k, _ in all_reduces if k == n]
        a, b, c = fit(own, [t for _, k, t in all_reduces if k == n], f"all-reduces of {n} devices")
        sums[n] = (a, b, c)
    pairs = {}
    for src, dst in sorted({(a, b) for a, b, _, _ in sends}):
        own_sends = [(s, t) for a, b, s, t in sends if (a, b) == (src, dst)]
        (a,) = fit([(s,) for s, _ in own_sends], [t for _, t in own_sends], f"sends from {src} to {dst}")
        pairs[src, dst] = 1.0 / a
    return Calibration(memory, rate, launch, sums, pairs)


class DistIR(CostModel):
    """Peaks and bandwidths of the cluster as they stand, nothing taken off.

    precision: dtype whose peak and size count.
    launch: seconds of a launch.
    """

    name: ClassVar[str] = "distir"

    def __init__(
        self, *, precision: str = "bfloat16", launch: float = LAUNCH, calibration: Calibration | None = None
    ) -> None:
        if precision not in ITEM_BYTES:
            raise InputError(f'no precision "{precision}": known are {", ".join(ITEM_BYTES)}', where="precision")
        if not 0 <= launch < float("inf"):
            raise InputError(f"a launch takes 0 seconds or more: got {launch}", where="launch")
        self.calibration = calibration or Calibration()
        self.precision, self.item = precision, float(ITEM_BYTES[precision])
        self.launch = self.calibration.launch if self.calibration.launch >= 0 else launch
        self._shapes = Shapes()

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        """See `CostModel.compute`.

        Raises:
            Unsupported: an imported op without shapes, or a device without a peak for the precision.
        """
        if not op.call and not op.rule.operands:
            raise Unsupported(f'op "{op.name}" has no shapes, and distir prices ops by their shapes: capture the model')
        shape, local = self._shapes.of(op), np.asarray(sizes, np.float64)
        phase = "forward" if op.phase != "forward" else phase
        if shape.product is not None and shape.product.k:
            return self._products(shape, local, device, phase)
        if op.kind in VIEWS or op.kind in LOOKUPS:
            return np.full(len(local), self.launch)
        if op.flops and (op.kind in ATTENTION or shape.product is not None):
            times = 1.0 if phase == "forward" else 2.0 if phase == "backward" else 1.0
            share = np.prod(local, axis=1) / float(np.prod(shape.full))
            moved = self.item * np.sum([volume(local, o) for o in shape.operands], axis=0)
            return times * self._seconds(moved, op.flops * share, device)
        two = (len(shape.operands) > 1 or phase != "forward") and op.kind not in ONE_OPERAND
        n = volume(local, shape.operands[0]) if shape.operands else volume(local, shape.results[0])
        return self._seconds(self.item * n * (2.0 if two else 1.0), n, device)

    def _products(self, shape: OpShape, local: Floats, device: DeviceType, phase: Phase) -> Floats:
        product = shape.product
        assert product is not None
        batch, a, c, b = (volume(local, f) for f in (product.batch, product.m, product.n, product.k))

        def one(rows: Floats, depth: Floats, columns: Floats) -> Floats:
            moved = self.item * batch * (rows * depth + depth * columns)
            return self._seconds(moved, 2.0 * batch * rows * depth * columns, device)

        if phase == "forward":
            return one(a, b, c)
        found = np.zeros(len(local))
        if phase in ("backward", "input_grad"):
            found = found + one(a, c, b)
        if phase in ("backward", "weight_grad"):
            found = found + one(b, a, c)
        return found

    def _seconds(self, nbytes: Floats, flops: Floats, device: DeviceType) -> Floats:
        peak = device.peak.get(self.precision, 0.0)
        rate = self.calibration.rate or peak
        if not rate:
            raise Unsupported(f"{device.name} has no peak for {self.precision}: it has {', '.join(device.peak)}")
        return self.launch + nbytes / (self.calibration.memory or device.bandwidth) + flops / rate

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        """Of an element-wise kernel on two operands of `nbytes` together; 0 bytes = a kernel that only re-arranges."""
        both = np.asarray(nbytes, np.float64)
        return self._seconds(both, both / (2.0 * self.item), device)

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        """What the op saves for its backward."""
        shape, local = self._shapes.of(op), np.asarray(sizes, np.float64)
        kept = np.zeros(len(local))
        names = (*op.inputs, *op.outputs)
        for name, factors in zip(names, (*shape.operands, *shape.results), strict=False):
            if name in op.saved:
                kept = kept + self.item * volume(local, factors)
        return OpMemory(np.zeros(len(local)), kept, np.zeros(len(local)))

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        """See `CostModel.collective`; the slowest of the groups."""
        sizes = np.asarray(nbytes, np.float64)
        groups = [g for g in _groups(group.mesh, group.axes, group.at_zero) if len(g) > 1]
        if not groups or kind in FREE:
            return np.zeros(len(sizes))
        n = len(groups[0])
        if kind == "all_reduce" and n in self.calibration.all_reduce:
            a, b, c = self.calibration.all_reduce[n]
            return a * sizes / GIGABIT + b * n + c
        mean = min(float(np.mean([self._pair(group.cluster, x, y) for x, y in combinations(g, 2)])) for g in groups)
        return TURNS.get(kind, 1.0) * sizes * (n - 1) / n / mean

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        sizes = np.asarray(nbytes, np.float64)
        return np.zeros(len(sizes)) if src == dst else sizes / self._pair(cluster, src, dst)

    def _pair(self, cluster: Cluster, src: int, dst: int) -> float:
        """Bytes/s between two devices."""
        if (src, dst) in self.calibration.pairs:
            return self.calibration.pairs[src, dst]
        if (src, dst) in cluster.link_between:
            return cluster.link_between[src, dst].bandwidth
        level = shared_level(cluster, src, dst)
        if level < 0:
            raise Unsupported(f"devices {src} and {dst} of {cluster.name} are not connected")
        return cluster.levels[level].bandwidth


def _nonnegative(table: Floats, wanted: Floats) -> Floats:
    """x >= 0 of least |table · x − wanted|, for a few columns: the best of all choices of columns that are not 0."""
    columns = table.shape[1]
    best, least = np.zeros(columns), float(np.sum(wanted**2))
    for size in range(1, columns + 1):
        for chosen in map(list, combinations(range(columns), size)):
            x = np.zeros(columns)
            x[chosen] = np.linalg.lstsq(table[:, chosen], wanted, rcond=None)[0]
            rest = float(np.sum((table @ x - wanted) ** 2))
            if (x >= 0).all() and rest < least:
                best, least = x, rest
    return best


def _groups(mesh: Mesh, axes: Sequence[str], at_zero: Sequence[str]) -> list[list[int]]:
    """Devices of each group along `axes`."""
    grid = np.array(list(mesh.devices), np.int64).reshape(mesh.shape)
    for k, axis in enumerate(mesh.axes):
        if axis in at_zero and axis not in axes:
            grid = grid.take([0], axis=k)
    along = [k for k, axis in enumerate(mesh.axes) if axis in axes]
    rest = [k for k in range(len(mesh.axes)) if k not in along]
    members = int(np.prod([grid.shape[k] for k in along], initial=1))
    return [[int(d) for d in row] for row in grid.transpose(*rest, *along).reshape(-1, members)]
