"""A lowered stage -> seconds and bytes, for many micro-batch sizes at once. The cost model says what one piece costs.

    segment (one block)   compute      heavy ops one by one, light ops as fused kernels
                          tensor       collectives on activations, and statistics
                          sharded      gathers and gradient sums of parameters, one per block as their runtimes batch them
    exposed               max(comm − share · compute, (1 − share) · comm), share = cost.overlap(class), per phase
    block                 max(compute + exposed, launch floor): the host must issue it

A stage is the sum of its segments times their counts. Prices of a segment do not depend on the count, so a search pays
for a block once: `Pricer` keeps them by the identity of the segment's instruction tuples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..cluster.model import Cluster, DeviceType, Mesh
from ..cost.base import Collective, CostModel, Group
from ..graph.ir import ITEM_BYTES, Floats, Graph, Ints, Op, Phase
from ..lower.program import GRAD, RAW, Instr, Segment, StageCode
from ..plan.problem import Recipe

KINDS: tuple[Collective, ...] = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "permute",
)  # fmt: skip
PARTS = ("compute", *KINDS, "launch")
"""Columns of a phase's seconds: busy, exposed collectives, waiting for the host. They add up to its duration."""
TENSOR, SHARDED = 0, 1
STAGES = "stages"
"""Axis of the sum of a tied parameter's gradient over the stages that hold a copy; no axis of a mesh."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentPrice:
    """One block, one micro-batch, n micro-batch sizes."""

    forward: Floats
    """Seconds [n, PARTS]."""
    backward: Floats
    weight: Floats
    """Seconds [n] of weight gradients inside the backward's compute."""
    streams: Floats
    """Seconds [n, phase, class] of communication, hidden or not."""
    calls: Ints
    """[KINDS]."""
    nbytes: Floats
    """[n, KINDS]."""
    kept: Floats
    """Bytes [n] from forward to backward."""
    forward_buffer: Floats
    backward_buffer: Floats


@dataclass(frozen=True, slots=True, eq=False)
class StagePrice:
    """One stage, one micro-batch, n micro-batch sizes; and what it does once a step."""

    forward: Floats
    backward: Floats
    weight: Floats
    streams: Floats
    calls: Ints
    """[KINDS] a micro-batch."""
    nbytes: Floats
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
    forward_buffer: Floats
    backward_buffer: Floats
    tied: tuple[tuple[tuple[int, ...], float], ...] = ()
    """(stages that hold a copy, bytes to sum over them once a step)."""


def exposed(comm: Floats, compute: Floats, share: float) -> Floats:
    """Seconds that stay visible of communication beside `compute`, of which `share` can hide it."""
    found: Floats = np.maximum(comm - share * compute, (1.0 - share) * comm)
    return found


def base(value: str) -> str:
    """Tensor of a value's name: "∂x@1" -> "x"."""
    value = value.removeprefix(GRAD).removesuffix(RAW)
    stem, at, _ = value.rpartition("@")
    return stem if at else value


class Pricer:
    """Prices stages of one graph on one cluster; keeps what it has priced."""

    def __init__(self, graph: Graph, cluster: Cluster, cost: CostModel, recipe: Recipe) -> None:
        self.graph, self.cluster, self.cost, self.recipe = graph, cluster, cost, recipe
        self.share = {TENSOR: cost.overlap("tensor"), SHARDED: cost.overlap("sharded")}
        self.data_share = cost.overlap("data")
        self._segments: dict[tuple[object, ...], tuple[Segment, SegmentPrice]] = {}
        self._params: dict[int, tuple[Segment, frozenset[str]]] = {}
        self._scalars: dict[tuple[object, ...], float] = {}
        self._loss = graph.producer.get(graph.loss, -1)

    def stage(self, code: StageCode, micro_batches: Sequence[int], *, split: bool = False) -> StagePrice:
        """Everything that one device of the stage does and holds.

        split: also say how much of the backward are weight gradients (schedules with I and W).
        """
        mesh, place = code.mesh, self.place(code.mesh)
        micro = np.asarray(micro_batches, np.int64)
        sums = self._per_segment(code)
        prices = [self.segment(s, mesh, micro, g, place, split=split) for s, g in zip(code.segments, sums, strict=True)]
        counts = [s.count for s in code.segments]
        n = len(micro)
        loss = [s.name == "" and s.first <= self._loss < s.first + s.length for s in code.segments]
        zero = np.zeros(n)

        def total(field: str) -> Floats:
            return np.asarray(sum((c * getattr(p, field) for c, p in zip(counts, prices, strict=True)), 0.0 * zero))

        def kept(of_loss: bool) -> Floats:
            return zero + sum(
                (c * p.kept for c, p, is_loss in zip(counts, prices, loss, strict=True) if is_loss == of_loss), zero
            )

        parts = np.zeros((n, len(PARTS)))
        weights, gradients, state, optimizer = self._held(code)
        step = self._step(code, place)
        return StagePrice(
            forward=parts + (total("forward") if prices else 0.0),
            backward=parts + (total("backward") if prices else 0.0),
            weight=zero + total("weight"),
            streams=total("streams") if prices else np.zeros((n, 2, 2)),
            calls=np.asarray(total("calls") if prices else np.zeros(len(KINDS)), np.int64),
            nbytes=total("nbytes") if prices else np.zeros((n, len(KINDS))),
            sums=step[0],
            gathers=step[1],
            step_calls=step[2],
            step_bytes=step[3],
            optimizer=optimizer,
            weights=weights,
            gradients=gradients,
            state=state,
            kept=kept(False),
            loss=kept(True),
            forward_buffer=np.max([zero, *(p.forward_buffer for p in prices)], axis=0),
            backward_buffer=np.max([zero, *(p.backward_buffer for p in prices)], axis=0),
            tied=_tied(code),
        )

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
            segment.count > 1, micro.tobytes(), tuple((i.collective, i.axes, i.nbytes, k) for i, k in sums),
        )  # fmt: skip
        found = self._segments.get(key)
        if found is None:
            # The segment is kept with its price so that none of the ids can come again.
            found = self._segments[key] = (segment, self._price(segment, mesh, micro, sums, split))
        return found[1]

    def place(self, mesh: Mesh) -> tuple[object, ...]:
        """Meshes of equal place cost the same: same axes, same position relative to the borders of every level."""
        first = mesh.devices[0]
        regular = isinstance(mesh.devices, range) and not self.cluster.links and self.cluster.homogeneous
        if regular and all(level.size for level in self.cluster.levels):
            step = mesh.devices.step if isinstance(mesh.devices, range) else 1
            return (mesh.axes, mesh.shape, step, tuple(first % level.size for level in self.cluster.levels))
        return (mesh.axes, mesh.shape, tuple(mesh.devices))

    def devices(self, mesh: Mesh) -> tuple[DeviceType, ...]:
        """Types of the mesh's devices; the slowest one sets the pace."""
        if self.cluster.homogeneous:
            return (self.cluster.types[0],)
        kinds = sorted({self.cluster.device[d] for d in mesh.devices})
        return tuple(self.cluster.types[k] for k in kinds)

    def collective(self, kind: Collective, nbytes: float, mesh: Mesh, axes: tuple[str, ...], place: object) -> float:
        """Seconds of one collective of `nbytes`, remembered."""
        key = (kind, nbytes, axes, place)
        seconds = self._scalars.get(key)
        if seconds is None:
            group = Group(self.cluster, mesh, axes)
            seconds = self._scalars[key] = float(self.cost.collective(kind, np.array([nbytes]), group)[0])
        return seconds

    # ---- one segment

    def _price(
        self, segment: Segment, mesh: Mesh, micro: Ints, sums: tuple[tuple[Instr, float], ...], split: bool
    ) -> SegmentPrice:
        n = len(micro)
        local = _local(mesh, segment.samples, micro)
        forward, backward, rerun, weight = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
        for device in self.devices(mesh):
            f, _ = self._compute(segment.forward, device, local)
            r, _ = self._compute(segment.rerun, device, local)
            b, w = self._compute(segment.backward, device, local, split)
            kernels = self._kernels(segment, mesh, device, micro)
            again = _rerun_shares(segment)
            forward = np.maximum(forward, f + kernels[0].sum(axis=0))
            rerun = np.maximum(rerun, r + again @ kernels[0])
            backward = np.maximum(backward, b + kernels[1].sum(axis=0))
            weight = np.maximum(weight, w)
        backward = backward + rerun
        comm, calls, nbytes = self._communication(segment, mesh, micro, sums)
        phases = []
        for compute, by_class, floor in zip((forward, backward), comm, self._floors(segment, mesh), strict=True):
            parts = np.zeros((n, len(PARTS)))
            parts[:, 0] = compute
            for cls, by_kind in enumerate(by_class):
                total = by_kind.sum(axis=1)
                shown = exposed(total, compute, self.share[cls])
                parts[:, 1:-1] += by_kind * np.divide(shown, total, out=np.zeros(n), where=total > 0)[:, None]
            parts[:, -1] = np.maximum(0.0, floor - parts.sum(axis=1))
            phases.append(parts)
        kept, gathered, summed = segment.kept, self._gathered(segment, mesh, micro), sum(i.nbytes * k for i, k in sums)
        # Prefetch: while one block computes, the parameters of the next one arrive.
        gathered = gathered * (2.0 if segment.count > 1 else 1.0)
        return SegmentPrice(
            forward=phases[0],
            backward=phases[1],
            weight=weight,
            streams=np.stack([by_class.sum(axis=2).T for by_class in comm], axis=1),
            calls=calls,
            nbytes=nbytes,
            kept=_affine(kept.activations, local),
            forward_buffer=_affine(kept.transient, local) + gathered,
            backward_buffer=_affine(kept.transient, local) + _affine(kept.rerun, local) + gathered + summed,
        )

    def _compute(
        self, instrs: Sequence[Instr], device: DeviceType, local: Ints, split: bool = False
    ) -> tuple[Floats, Floats]:
        """Seconds [n] of the heavy ops of a list, and of the weight gradients among them."""
        seconds, weight = np.zeros(len(local)), np.zeros(len(local))
        for i in instrs:
            if i.kind != "compute" or i.group >= 0:
                continue
            op = self.graph.ops[self.graph.position[i.on]]
            sizes = _sizes(i, op, local)
            phase = op.phase if self.graph.training == "explicit" else self._phase(i, op)
            spent = self.cost.compute(op, sizes, device, phase)
            seconds += spent
            if phase == "weight_grad":
                weight += spent
            elif split and phase == "backward" and self._product(op):
                weight += self.cost.compute(op, sizes, device, "weight_grad")
        return seconds, weight

    def _phase(self, instr: Instr, op: Op) -> Phase:
        """Which gradients of a product flow; any other op has one backward."""
        if instr.phase != "backward":
            return instr.phase
        if self._product(op):
            wanted = {base(v) for v in instr.outputs}
            both = tuple(name in wanted for name in op.inputs[:2])
            if both == (True, False):
                return "input_grad"
            if both == (False, True):
                return "weight_grad"
        return "backward"

    def _product(self, op: Op) -> bool:
        """A product of two floating operands: its backward is one product for each."""
        return (
            len(op.inputs) == 2
            and bool(op.rule.summed())
            and all("float" in self.graph.tensor[name].dtype for name in op.inputs)
        )

    def _kernels(self, segment: Segment, mesh: Mesh, device: DeviceType, micro: Ints) -> Floats:
        """Seconds [phase, kernel, n] of the fused kernels of light ops."""
        if not segment.kernels:
            return np.zeros((2, 0, len(micro)))
        local = np.stack([_local(mesh, k.samples, micro) for k in segment.kernels]).astype(np.float64)
        columns = np.array([(k.forward, k.backward) for k in segment.kernels], np.float64)
        nbytes: Floats = columns[:, :, 0].T[:, :, None] + columns[:, :, 1].T[:, :, None] * local[None]
        seconds = self.cost.traffic(nbytes.ravel(), device).reshape(nbytes.shape)
        found: Floats = np.where(nbytes > 0, seconds, 0.0)
        return found

    def _communication(
        self, segment: Segment, mesh: Mesh, micro: Ints, sums: tuple[tuple[Instr, float], ...]
    ) -> tuple[Floats, Ints, Floats]:
        """Seconds [phase, class, n, KINDS], calls [KINDS], bytes [n, KINDS]."""
        n = len(micro)
        seconds, nbytes = np.zeros((2, 2, n, len(KINDS))), np.zeros((n, len(KINDS)))
        calls = np.zeros(len(KINDS), np.int64)
        pending: dict[tuple[Collective, tuple[str, ...]], list[tuple[int, int, Floats]]] = {}
        together: dict[tuple[int, Collective, tuple[str, ...]], Floats] = {}
        lists = (segment.forward, segment.rerun, segment.backward)
        for which, instrs in enumerate(lists):
            for i in instrs:
                if not i.communicates:
                    continue
                kind = i.collective or "all_reduce"
                size = self._bytes(i, mesh, micro)
                calls[KINDS.index(kind)] += 1
                nbytes[:, KINDS.index(kind)] += size
                if self._of_param(i):
                    key = (which, kind, i.axes)
                    together[key] = together.get(key, np.zeros(n)) + size
                else:
                    pending.setdefault((kind, i.axes), []).append((which, TENSOR, size))
        for i, times in sums:
            if i.communicates and i.collective:
                key = (3, i.collective, i.axes)
                together[key] = together.get(key, np.zeros(n)) + times * i.nbytes
                calls[KINDS.index(i.collective)] += round(times)
                nbytes[:, KINDS.index(i.collective)] += times * i.nbytes
        for (which, kind, axes), size in together.items():
            pending.setdefault((kind, axes), []).append((which, SHARDED, size))
        for (kind, axes), rows in pending.items():
            priced = self.cost.collective(kind, np.concatenate([r[2] for r in rows]), Group(self.cluster, mesh, axes))
            for (which, cls, _), spent in zip(rows, priced.reshape(len(rows), n), strict=True):
                seconds[int(which > 0), cls, :, KINDS.index(kind)] += spent
        return seconds, calls, nbytes

    def _bytes(self, instr: Instr, mesh: Mesh, micro: Ints) -> Floats:
        if instr.samples is None:
            return np.full(len(micro), float(instr.nbytes))
        found: Floats = instr.nbytes * _local(mesh, instr.samples, micro).astype(np.float64)
        return found

    def _of_param(self, instr: Instr) -> bool:
        tensor = self.graph.tensor.get(instr.on) if instr.kind == "collective" else None
        return tensor is not None and tensor.role == "param"

    def _gathered(self, segment: Segment, mesh: Mesh, micro: Ints) -> Floats:
        """Bytes [n] of parameters gathered for one block."""
        gathers = (i for i in segment.forward if i.collective == "all_gather" and self._of_param(i))
        return np.zeros(len(micro)) + sum((self._bytes(i, mesh, micro) for i in gathers), np.zeros(len(micro)))

    def _floors(self, segment: Segment, mesh: Mesh) -> tuple[float, float]:
        """Launch floors of forward and backward; what runs again is issued again."""
        ops = [self.graph.ops[self.graph.position[i.on]] for i in segment.forward if i.kind == "compute"]
        floors: list[float] = []
        for device in self.devices(mesh):
            forward = self.cost.launch_floor(ops, device, "forward")
            backward = self.cost.launch_floor(ops, device, "backward") if segment.backward else 0.0
            issued = sum(i.kind == "compute" for i in segment.forward)
            again = sum(i.kind == "compute" for i in segment.rerun) / issued if issued else 0.0
            floors += [forward, backward + again * forward]
        return max(floors[::2]), max(floors[1::2])

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
            names = {base(v) for i in segment.forward for v in i.inputs}
            params = {n for n in names if n in self.graph.tensor and self.graph.tensor[n].role == "param"}
            found = self._params[id(segment.forward)] = (segment, frozenset(params))
        return found[1]

    def _held(self, code: StageCode) -> tuple[float, float, float, float]:
        """Bytes of weights, gradients, optimizer state, and seconds of the optimizer."""
        recipe = self.recipe
        use, grad, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
        copy = master if recipe.param_dtype != recipe.compute_dtype else 0
        rest, grads, state = (sum(p.count * p.elements[k] for p in code.params) for k in range(3))
        # Reads the gradient, reads and writes master copy and state, writes the copy that computes.
        moved = state * (grad + 2 * ((copy or use) + recipe.state_bytes) + (use if copy else 0))
        key = ("optimizer", moved)
        if key not in self._scalars:
            self._scalars[key] = (
                max(float(self.cost.traffic(np.array([moved]), d)[0]) for d in self.devices(code.mesh))
                if moved
                else 0.0
            )
        return rest * use, grads * grad, state * (copy + recipe.state_bytes), self._scalars[key]

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
        if i.communicates and STAGES in i.axes:
            p = params[i.on]
            stages = tuple(sorted({code.stage, *p.shared}))
            found[stages] = found.get(stages, 0.0) + p.count * i.nbytes
    return tuple(found.items())


def _local(mesh: Mesh, axes: tuple[str, ...], micro: Ints) -> Ints:
    """Samples [n] on the fullest device of micro-batches that are cut over `axes`."""
    parts = prod(mesh.size(a) for a in axes)
    found: Ints = -(-micro // parts)
    return found


def _affine(columns: tuple[float, float], local: Ints) -> Floats:
    found: Floats = columns[0] + columns[1] * local.astype(np.float64)
    return found


def _sizes(instr: Instr, op: Op, local: Ints) -> Ints:
    """Local factor sizes [n, factors] at `local` samples."""
    per_sample = np.array([f.samples for f in op.rule.factors], bool)
    sizes = np.array(instr.sizes, np.float64)
    found: Ints = np.ceil(np.where(per_sample, sizes * local[:, None], sizes) - 1e-9).astype(np.int64)
    return found


def _rerun_shares(segment: Segment) -> Floats:
    """Per kernel: which part of its ops runs again before the backward."""
    ops, again = np.zeros(len(segment.kernels)), np.zeros(len(segment.kernels))
    for instrs, into in ((segment.forward, ops), (segment.rerun, again)):
        for i in instrs:
            if i.kind == "compute" and i.group >= 0:
                into[i.group] += 1
    shares: Floats = np.divide(again, ops, out=np.zeros(len(ops)), where=ops > 0)
    return shares
