"""A lowered stage -> seconds and bytes, for many micro-batch sizes at once: its segments times their counts.

Prices of a segment do not depend on the count, so a search pays for a block once: `Pricer` keeps them by the identity of
the segment's instruction tuples. A stage of segments that are priced already costs about 30 µs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..cluster.model import Cluster, Mesh
from ..cost.analytic import DISPATCH
from ..cost.base import Collective, CostModel, Group
from ..graph.ir import ITEM_BYTES, Floats, Graph, Ints
from ..lower.program import Instr, Segment, StageCode, tensor_of
from ..plan.problem import Recipe
from .samples import sizes_of
from .segment import (
    BACKWARD,
    BYTES,
    CALLS,
    FORWARD,
    KEPT,
    KINDS,
    PARTS,
    STREAMS,
    WEIGHT,
    WIDTH,
    SegmentPrice,
    SegmentPricer,
    exposed,
)  # fmt: skip

__all__ = ["KINDS", "PARTS", "Pricer", "SegmentPrice", "StagePrice", "exposed"]

STAGES = "stages"
"""Axis of the sum of a tied parameter's gradient over the stages that hold a copy; no axis of a mesh."""


@dataclass(frozen=True, slots=True, eq=False)
class StagePrice:
    """One stage, one micro-batch, n micro-batch sizes; and what it does once a step."""

    forward: Floats
    """Seconds [n, PARTS]."""
    backward: Floats
    weight: Floats
    """Seconds [n] of weight gradients inside the backward, if asked for."""
    streams: Floats
    """Seconds [n, phase, class] of communication, hidden or not."""
    calls: Ints
    """[KINDS] a micro-batch."""
    nbytes: Floats
    """[n, KINDS] a micro-batch."""
    sums: Floats
    """Seconds [KINDS] of gradient sums at the end of the step, nothing hidden."""
    gathers: Floats
    """Seconds [KINDS] of gathers of updated parameters."""
    step_calls: Ints
    step_bytes: Floats
    optimizer: float
    weights: float
    """Bytes."""
    gradients: float
    state: float
    kept: Floats
    """Bytes [n] of one micro-batch in flight, without those of the loss."""
    loss: Floats
    """The same of the segment that computes the loss: logits and their like."""
    buffers: Floats
    """Bytes [n, 2] of work space while the forward, the backward runs."""
    gone: Floats
    """Bytes [n, 2, 2] of (kept, loss) that are not there at the worst instant of the forward, of the backward."""
    tied: tuple[tuple[tuple[int, ...], float], ...] = ()
    """(stages that hold a copy, bytes to sum over them once a step)."""


class Pricer:
    """Prices stages of one graph on one cluster; keeps what it has priced."""

    def __init__(self, graph: Graph, cluster: Cluster, cost: CostModel, recipe: Recipe) -> None:
        self.graph, self.cluster, self.cost, self.recipe = graph, cluster, cost, recipe
        self._blocks = SegmentPricer(graph, cluster, cost, recipe.attention_share, recipe.compute_dtype)
        self._segments: dict[tuple[object, ...], tuple[Segment, SegmentPrice]] = {}
        self._params: dict[int, tuple[Segment, frozenset[str]]] = {}
        self._scalars: dict[tuple[object, ...], float] = {}
        self._regular = cluster.homogeneous and not cluster.links and all(level.size for level in cluster.levels)
        self._loss = graph.producer.get(graph.loss, -1)
        grouped = any(op.kind == DISPATCH for op in graph.ops)
        self.workspace = max((cost.workspace(t, grouped) for t in cluster.types), default=0.0)
        """Bytes of a device that libraries hold all the time."""

    def stage(self, code: StageCode, micro_batches: Sequence[int], *, split: bool = False) -> StagePrice:
        """Everything that one device of the stage does and holds.

        split: also say how much of the backward are weight gradients (schedules with I and W).
        """
        mesh, place = code.mesh, self.place(code.mesh)
        micro = np.asarray(micro_batches, np.int64)
        sums = self._per_segment(code)
        prices = [self.segment(s, mesh, micro, g, place, split=split) for s, g in zip(code.segments, sums, strict=True)]
        n = len(micro)
        total, loss, buffers, alive = np.zeros((n, WIDTH)), np.zeros(n), np.zeros((n, 2)), np.zeros((n, 2))
        there = np.zeros((n, 2, 2))
        for k, (s, price) in enumerate(zip(code.segments, prices, strict=True)):
            total += price.sums if s.count == 1 else s.count * price.sums
            if s.name == "" and s.first <= self._loss < s.first + s.length:
                loss += price.kept
            if s.kept.op_by_op is not None:
                # Its last block runs beside what it and all before it keep: later segments keep nothing yet, or no more.
                here = total[:, KEPT, None] + price.buffers
                kept_there = np.stack([total[:, KEPT] - loss, loss], axis=1)[:, :, None]
                there = np.where((here > alive)[:, None, :], kept_there, there)
                np.maximum(alive, here, out=alive)
            else:
                # While a block runs, the parameters of the next one arrive: of its like, or of a neighbour.
                beside = [prices[j].gathered for j in (k - 1, k + 1) if 0 <= j < len(prices)]
                beside += [price.gathered] * (s.count > 1)
                near = price.gathered + (np.max(beside, axis=0) if beside else 0.0)
                np.maximum(buffers, price.buffers + near[:, None], out=buffers)
        np.maximum(buffers, alive - total[:, KEPT, None], out=buffers)
        buffers += self._buckets(code)
        kept = np.stack([total[:, KEPT] - loss, loss], axis=1)[:, :, None]
        gone = np.where((alive > 0)[:, None, :], kept - there, 0.0)
        weights, gradients, state, optimizer = self._held(code)
        weights += self._fixed(code)
        step = self._step(code, place)
        return StagePrice(
            forward=total[:, FORWARD],
            backward=total[:, BACKWARD],
            weight=total[:, WEIGHT],
            streams=total[:, STREAMS].reshape(n, 2, 2),
            calls=total[0, CALLS].astype(np.int64),
            nbytes=total[:, BYTES],
            sums=step[0],
            gathers=step[1],
            step_calls=step[2],
            step_bytes=step[3],
            optimizer=optimizer,
            weights=weights,
            gradients=gradients,
            state=state,
            kept=total[:, KEPT] - loss,
            loss=loss,
            buffers=buffers,
            gone=gone,
            tied=(*_tied(code), *self._dealt(code)),
        )

    def once(self, code: StageCode) -> tuple[Floats, Floats, float]:
        """Seconds once a step: of gradient sums and of gathers of updated parameters, [KINDS], and of the optimizer."""
        sums, gathers, *_ = self._step(code, self.place(code.mesh))
        return sums, gathers, self._held(code)[3]

    def segment(
        self,
        segment: Segment,
        mesh: Mesh,
        micro: Ints,
        sums: tuple[tuple[Instr, float], ...] = (),
        place: tuple[object, ...] | None = None,
        *,
        split: bool = False,
    ) -> SegmentPrice:
        """One block. `sums`: gradient collectives of its parameters after each micro-batch, with times per block."""
        place = self.place(mesh) if place is None else place
        key = (
            id(segment.forward), id(segment.rerun), id(segment.backward), id(segment.kernels), segment.kept, place, split,
            micro.tobytes(), tuple((i.collective, i.axes, i.nbytes, k) for i, k in sums),
        )  # fmt: skip
        found = self._segments.get(key)
        if found is None:
            # The segment is kept with its price so that none of the ids can come again.
            found = self._segments[key] = (segment, self._blocks.price(segment, mesh, micro, sums, split))
        return found[1]

    def place(self, mesh: Mesh) -> tuple[object, ...]:
        """Meshes of equal place cost the same: same axes, same position relative to the borders of every level."""
        first = mesh.devices[0]
        if self._regular and isinstance(mesh.devices, range):
            # A level that holds the whole cluster has no border to cross.
            inner = [level.size for level in self.cluster.levels if level.size < self.cluster.count]
            return (mesh.axes, mesh.shape, mesh.devices.step, tuple(first % size for size in inner))
        return (mesh.axes, mesh.shape, tuple(mesh.devices))

    def collective(self, kind: Collective, nbytes: float, mesh: Mesh, axes: tuple[str, ...], place: object) -> float:
        """Seconds of one collective of `nbytes`, remembered."""
        key = (kind, nbytes, axes, place)
        seconds = self._scalars.get(key)
        if seconds is None:
            group = Group(self.cluster, mesh, axes)
            seconds = self._scalars[key] = float(self.cost.collective(kind, np.array([nbytes]), group)[0])
        return seconds

    def transfers(self, nbytes: Floats, src: Sequence[int], dst: Sequence[int]) -> Floats:
        """Seconds [n] of n messages; in a regular cluster only the lowest level that both ends share matters."""
        if self._regular:
            x, y = np.asarray(src), np.asarray(dst)
            where = np.where(x == y, -1, 0)
            for k, level in enumerate(self.cluster.levels):
                where += (x // level.size == y // level.size) << k
            places: Sequence[object] = where.tolist()
        else:
            places = list(zip(src, dst, strict=True))
        found = np.zeros(len(nbytes))
        for row, (size, i, j, place) in enumerate(zip(nbytes.tolist(), src, dst, places, strict=True)):
            if i == j or not size:
                continue
            key = ("transfer", size, place)
            if key not in self._scalars:
                self._scalars[key] = float(self.cost.transfer(np.array([size]), i, j, self.cluster)[0])
            found[row] = self._scalars[key]
        return found

    # ---- one stage

    def _per_segment(self, code: StageCode) -> list[tuple[tuple[Instr, float], ...]]:
        """The stage's gradient collectives per micro-batch, dealt to the segments that read the parameters."""
        if not code.grads:
            return [()] * len(code.segments)
        reads = [self._read(s) for s in code.segments]
        counts = {p.name: p.count for p in code.params}
        dealt: list[list[tuple[Instr, float]]] = [[] for _ in code.segments]
        for i in code.grads:
            users = [k for k, names in enumerate(reads) if i.on in names]
            blocks = sum(code.segments[k].count for k in users)
            for k in users:
                dealt[k].append((i, counts.get(i.on, 1) / blocks))
        return [tuple(d) for d in dealt]

    def _read(self, segment: Segment) -> frozenset[str]:
        """Parameters that a segment computes with."""
        found = self._params.get(id(segment.forward))
        if found is None:
            names = {tensor_of(v) for i in segment.forward for v in i.inputs}
            params = {n for n in names if n in self.graph.tensor and self.graph.tensor[n].role == "param"}
            found = self._params[id(segment.forward)] = (segment, frozenset(params))
        return found[1]

    def _held(self, code: StageCode) -> tuple[float, float, float, float]:
        """Bytes of weights, gradients, optimizer state, and seconds of the optimizer."""
        recipe = self.recipe
        use, grad, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
        rest, grads, state = (sum(p.count * p.elements[k] for p in code.params) for k in range(3))
        # A weight that rests as its state does, in the same dtype, is its own master copy.
        apart = recipe.param_dtype != recipe.compute_dtype
        copied = sum(p.count * p.elements[2] for p in code.params if apart or p.elements[0] != p.elements[2])
        # Reads the gradient, reads and writes master copy and state, writes the copy that computes.
        moved = state * (grad + 2 * ((master if apart else use) + recipe.state_bytes) + (use if apart else 0))
        key = ("optimizer", moved)
        if key not in self._scalars:
            self._scalars[key] = (
                max(float(self.cost.traffic(np.array([moved]), d)[0]) for d in self._blocks.devices(code.mesh))
                if moved
                else 0.0
            )
        return rest * use, grads * grad, copied * master + state * recipe.state_bytes, self._scalars[key]

    def _fixed(self, code: StageCode) -> float:
        """Bytes that ops hold whatever is in flight, by a cost model that says all that they hold."""
        if not self.cost.holds_all:
            return 0.0
        total = 0.0
        for segment in code.segments:
            for instr in segment.forward:
                if instr.kind == "compute":
                    op = self.graph.ops[self.graph.position[instr.on]]
                    sizes = sizes_of(instr, op, np.ones(1, np.int64))
                    total += segment.count * float(self.cost.memory(op, sizes).static[0])
        return total

    def _unseen(self, code: StageCode) -> dict[tuple[str, ...], float]:
        """Axes that cut samples -> bytes of gradients of one device that only the cost model knows."""
        found: dict[tuple[str, ...], float] = {}
        for segment in code.segments if self.cost.holds_all else ():
            for instr in segment.forward:
                if instr.kind == "compute":
                    op = self.graph.ops[self.graph.position[instr.on]]
                    nbytes = float(self.cost.gradients(op, sizes_of(instr, op, np.ones(1, np.int64)))[0])
                    axes = segment.samples if instr.samples is None else instr.samples
                    if nbytes:
                        found[axes] = found.get(axes, 0.0) + segment.count * nbytes
        return found

    def _dealt(self, code: StageCode) -> Iterator[tuple[tuple[int, ...], float]]:
        """The same of a stage whose replicas take turns, as `_tied` says it: they have neighbouring numbers."""
        q, r = code.turn
        nbytes = sum(self._unseen(code).values()) if r > 1 else 0.0
        if nbytes:
            yield tuple(range(code.stage - q, code.stage - q + r)), nbytes

    def _buckets(self, code: StageCode) -> float:
        """Bytes of the buffers for gradients, twice as one is filled while the other is sent, and for updated weights."""
        recipe = self.recipe
        elements = min(recipe.bucket, sum(p.count * p.elements[1] for p in code.params))
        return elements * (2 * ITEM_BYTES[recipe.grad_dtype] + ITEM_BYTES[recipe.compute_dtype])

    def _step(self, code: StageCode, place: object) -> tuple[Floats, Floats, Ints, Floats]:
        """Collectives once a step: seconds of sums and of gathers, calls, bytes, each [KINDS]. Equal ones go in one bucket."""
        counts = {p.name: p.count for p in code.params}
        together: dict[tuple[Collective, tuple[str, ...]], float] = {}
        calls, nbytes = np.zeros(len(KINDS), np.int64), np.zeros(len(KINDS))
        for i in code.update:
            if i.communicates and STAGES not in i.axes:
                kind = i.collective or "all_reduce"
                times = counts.get(i.on, 1)
                together[kind, i.axes] = together.get((kind, i.axes), 0.0) + times * i.nbytes
                calls[KINDS.index(kind)] += times
                nbytes[KINDS.index(kind)] += times * i.nbytes
        reduce = KINDS.index("all_reduce")
        for axes, size in self._unseen(code).items():
            if axes:
                together["all_reduce", axes] = together.get(("all_reduce", axes), 0.0) + size
                calls[reduce] += 1
                nbytes[reduce] += size
        sums, gathers = np.zeros(len(KINDS)), np.zeros(len(KINDS))
        for (kind, axes), size in together.items():
            into = gathers if kind == "all_gather" else sums
            into[KINDS.index(kind)] += self.collective(kind, size, code.mesh, axes, place)
        return sums, gathers, calls, nbytes


def _tied(code: StageCode) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Sums over stages, those of equal stages together."""
    params = {p.name: p for p in code.params}
    found: dict[tuple[int, ...], float] = {}
    for i in code.update:
        if STAGES in i.axes:
            p = params[i.on]
            stages = tuple(sorted({code.stage, *p.shared}))
            found[stages] = found.get(stages, 0.0) + p.count * i.nbytes
    return tuple(found.items())
