"""One segment -> seconds and bytes of one block, for many micro-batch sizes at once.

compute      heavy ops one by one, light ops as fused kernels
tensor       collectives on activations, and statistics
sharded      gathers and gradient sums of parameters, one per block as their runtimes batch them
exposed      max(comm − share · compute, (1 − share) · comm), share = cost.overlap(class), per phase
block        max(compute + exposed, launch floor): the host must issue it; on a CPU, which is its own host, their sum
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..cluster.model import Cluster, DeviceType, Mesh
from ..cost.base import Collective, CostModel, Group, OpMemory
from ..cost.losses import CROSS_ENTROPIES
from ..graph.ir import ITEM_BYTES, Floats, Graph, Ints, Op, Phase
from ..lower.atoms import PRODUCTS
from ..lower.program import Instr, Segment, tensor_of
from .panels import hidden
from .phases import backward_phase, is_product
from .samples import At, Samples, affine, local_samples, own_sizes, sizes_of

KINDS: tuple[Collective, ...] = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "permute",
)  # fmt: skip
PARTS = ("compute", *KINDS, "launch")
"""Columns of a phase's seconds: busy, exposed collectives, waiting for the host. They add up to its duration."""
TENSOR, SHARDED, GRADIENT = 0, 1, 2
"""Classes of communication by what can hide it; gradients of activations (a backward's own traffic) beside products that
do not wait for them."""

N = len(PARTS)
FORWARD, BACKWARD, WEIGHT = slice(0, N), slice(N, 2 * N), 2 * N
STREAMS = slice(2 * N + 1, 2 * N + 5)
BYTES = slice(2 * N + 5, 2 * N + 5 + len(KINDS))
CALLS = slice(2 * N + 5 + len(KINDS), 2 * N + 5 + 2 * len(KINDS))
KEPT = 2 * N + 5 + 2 * len(KINDS)
WIDTH = KEPT + 1
"""Columns of `SegmentPrice.sums`."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentPrice:
    """One block, one micro-batch, n micro-batch sizes."""

    sums: Floats
    """[n, WIDTH], all that adds up over blocks: seconds by part of forward and backward, of weight gradients inside the
    backward, of communication per (phase, class), hidden or not, gradients counting as tensors; bytes and calls per collective; bytes kept."""
    buffers: Floats
    """[n, 2] bytes of work space while the forward, the backward runs."""
    gathered: Floats
    """[n] bytes of parameters that are gathered for the block."""

    @property
    def forward(self) -> Floats:
        """Seconds [n, PARTS]."""
        return self.sums[:, FORWARD]

    @property
    def backward(self) -> Floats:
        """Seconds [n, PARTS]."""
        return self.sums[:, BACKWARD]

    @property
    def kept(self) -> Floats:
        """Bytes [n]."""
        return self.sums[:, KEPT]


def exposed(comm: Floats, compute: Floats, share: Floats | float) -> Floats:
    """Seconds that stay visible of communication beside `compute`, of which `share` can hide it."""
    found: Floats = np.maximum(comm - share * compute, (1.0 - share) * comm)
    return found


class SegmentPricer:
    """Prices blocks of one graph on one cluster."""

    def __init__(
        self,
        graph: Graph,
        cluster: Cluster,
        cost: CostModel,
        attention_share: float = 1.0,
        compute_dtype: str = "bfloat16",
    ) -> None:
        """`attention_share`, `compute_dtype`: see `Recipe`."""
        self.graph, self.cluster, self.cost = graph, cluster, cost
        self.attention_share = attention_share
        self.item = ITEM_BYTES[compute_dtype]
        self._heavy: dict[tuple[object, ...], dict[int, list[float]]] = {}
        self.share: dict[int, Floats | float] = {
            TENSOR: cost.overlap("tensor"), SHARDED: cost.overlap("sharded"), GRADIENT: cost.overlap("gradient"),
        }  # fmt: skip

    def price(
        self, segment: Segment, mesh: Mesh, micro: Ints, sums: tuple[tuple[Instr, float], ...], split: bool
    ) -> SegmentPrice:
        n = len(micro)
        if segment.name == "constants":  # position tables and masks: computed once, not once a micro-batch
            return SegmentPrice(np.zeros((n, WIDTH)), np.zeros((n, 2)), np.zeros(n))
        samples = Samples(mesh, segment.samples, micro)
        local = samples.over(segment.samples)
        forward, backward, rerun, weight = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
        for device in self.devices(mesh):
            at = self._coordinates(mesh, device)
            here = Samples(mesh, segment.samples, micro, at) if at else samples
            f, _ = self._compute(segment.forward, device, here, at=at)
            r, _ = self._compute(segment.rerun, device, here, at=at)
            b, w = self._compute(segment.backward, device, here, split, at=at)
            kernels = self._kernels(segment, mesh, device, micro, at)
            again = _rerun_shares(segment)
            forward = np.maximum(forward, f + kernels[0].sum(axis=0))
            rerun = np.maximum(rerun, r + again @ kernels[0])
            backward = np.maximum(backward, b + kernels[1].sum(axis=0))
            weight = np.maximum(weight, w)
        backward = backward + rerun
        comm, calls, nbytes = self._communication(segment, mesh, micro, sums)
        streams = comm.sum(axis=3)
        comm[:, TENSOR, :, KINDS.index("broadcast")] -= self._double_buffered(segment, mesh, micro, samples)
        own_host = all(device.kind == "cpu" for device in self.devices(mesh))
        phases = []
        for compute, by_class, floor in zip((forward, backward), comm, self._floors(segment, mesh), strict=True):
            parts = np.zeros((n, len(PARTS)))
            parts[:, 0] = compute
            for cls, by_kind in enumerate(by_class):
                total = by_kind.sum(axis=1)
                shown = exposed(total, compute, self.share[cls])
                parts[:, 1:-1] += by_kind * np.divide(shown, total, out=np.zeros(n), where=total > 0)[:, None]
            parts[:, -1] = floor if own_host else np.maximum(0.0, floor - parts.sum(axis=1))
            phases.append(parts)
        kept, summed = segment.kept, sum(i.nbytes * k for i, k in sums)
        space, stays = self._workspace(segment, samples)
        transient = np.maximum(affine(kept.transient, local), space)
        table = np.empty((n, WIDTH))
        table[:, FORWARD], table[:, BACKWARD], table[:, WEIGHT] = phases[0], phases[1], weight
        streams[:, TENSOR] += streams[:, GRADIENT]
        table[:, STREAMS] = streams[:, :GRADIENT].reshape(4, n).T
        table[:, BYTES], table[:, CALLS] = nbytes, calls
        table[:, KEPT] = affine(kept.activations, local) + stays[0]
        again = transient + affine(kept.rerun, local) + stays[1] + np.maximum(summed, self._fresh(segment))
        if kept.op_by_op is not None:  # the worst instants are known; what is kept is among them
            own = affine(kept.activations, local) + affine(kept.loss, local)
            alive = [affine(columns, local) - own for columns in kept.op_by_op]
            transient, again = alive[0], alive[1] + stays[1] + summed
        return SegmentPrice(table, np.stack([transient, again], axis=1), self._gathered(segment, mesh, micro))

    def devices(self, mesh: Mesh) -> tuple[DeviceType, ...]:
        """Types of the mesh's devices; the slowest one sets the pace."""
        if self.cluster.homogeneous:
            return (self.cluster.types[0],)
        kinds = sorted({self.cluster.device[d] for d in mesh.devices})
        return tuple(self.cluster.types[k] for k in kinds)

    def _coordinates(self, mesh: Mesh, device: DeviceType) -> At | None:
        """Where devices of a type are in the mesh; None: anywhere, as there is one type."""
        if self.cluster.homogeneous:
            return None
        own = [k for k, d in enumerate(mesh.devices) if self.cluster.type_of(int(d)) is device]
        return {axis: {mesh.coordinates(k)[axis] for k in own} for axis in mesh.axes}

    def _fresh(self, segment: Segment) -> float:
        """Bytes of the largest gradient of a weight that the backward makes, as wide as it computes, before it is added to
        the others."""
        found = 0.0
        for i in segment.backward:
            op = self.graph.ops[self.graph.position[i.on]] if i.kind == "compute" else None
            if op is None or op.kind not in PRODUCTS:
                continue
            made = {tensor_of(v) for v in i.outputs}
            column = {f.name: k for k, f in enumerate(op.rule.factors)}
            for name, dims in zip(op.inputs, op.rule.operands, strict=True):
                if name in made and self.graph.tensor[name].role == "param":
                    found = max(found, self.item * prod(i.sizes[column[f]] for dim in dims for f in dim))
        return found

    def _workspace(self, segment: Segment, samples: Samples) -> tuple[Floats, tuple[Floats, Floats]]:
        """What heavy ops hold: (bytes [n] of the largest work space besides the result, (bytes kept beyond what lowering
        counts, the same of ops that run again and keep nothing)).

        A loss holds what the cost model says, with the casts of its logits; else, and where ops run one by one, as torch's.
        """
        space, stays, remade = np.zeros((3, samples.n))
        rerun = {i.on for i in segment.rerun if i.kind == "compute"}
        kept, local, as_torch = segment.kept, samples.over(segment.samples), True
        for i in segment.forward:
            if i.kind != "compute" or i.group >= 0:
                continue
            into = remade if i.on in rerun else stays
            loss = self._loss(i, samples) if kept.op_by_op is None else None
            if loss is not None:
                as_torch, room, more = False, loss.transient, loss.kept
            else:
                room, more = self._known(i, ("memory",), samples.of(i), self._memory)
            into += more
            np.maximum(space, room, out=space)
        if as_torch:
            stays += affine(kept.loss, local)
            np.maximum(space, affine(kept.loss_transient, local), out=space)
        return space, (stays, remade)

    def _loss(self, instr: Instr, samples: Samples) -> OpMemory | None:
        """See `CostModel.loss`."""
        op = self.graph.ops[self.graph.position[instr.on]]
        return self.cost.loss(op, sizes_of(instr, op, samples.of(instr))) if op.kind in CROSS_ENTROPIES else None

    def _memory(self, op: Op, sizes: Ints) -> Floats:
        """Bytes [n, 2]: work space besides the result; kept beyond what a fused kernel keeps."""
        found = self.cost.memory(op, sizes)
        more = np.zeros(len(sizes))
        if self.cost.holds_all:
            more = found.kept
        elif "fused" in self.cost.variants(op, sizes):
            more = found.kept - self.cost.memory(op, sizes, "fused").kept
        return np.stack([np.maximum(0.0, found.transient - self._results(op, sizes)), more], axis=1)

    def _known(self, instr: Instr, key: tuple[str, ...], local: Ints, price: Callable[[Op, Ints], Floats]) -> Floats:
        """Figures [columns, n] of one heavy op, each number of local samples priced once whatever else differs."""
        known = self._heavy.setdefault((instr.on, instr.sizes, *key), {})
        wanted = local.tolist()
        new = [b for b in wanted if b not in known]
        if new:
            op = self.graph.ops[self.graph.position[instr.on]]
            rows = price(op, sizes_of(instr, op, np.array(new, np.int64)))
            known.update(zip(new, rows.reshape(len(new), -1).tolist(), strict=True))
        return np.array([known[b] for b in wanted]).T

    def _results(self, op: Op, sizes: Ints) -> Floats:
        """Bytes [n] of the results of a shard."""
        column = {f.name: k for k, f in enumerate(op.rule.factors)}
        total = np.zeros(len(sizes))
        for name, dims in zip(op.outputs, op.rule.results, strict=True):
            tensor = self.graph.tensor[name]
            used = [column[f] for dim in dims for f in dim]
            total += ITEM_BYTES.get(tensor.dtype, 4) * np.prod(sizes[:, used], axis=1)
        return total

    def _compute(
        self, instrs: Sequence[Instr], device: DeviceType, samples: Samples, split: bool = False, at: At | None = None
    ) -> tuple[Floats, Floats]:
        """Seconds [n] of the heavy ops of a list, and of the weight gradients among them; `at`: on devices at these coordinates."""
        seconds, weight = np.zeros(samples.n), np.zeros(samples.n)
        for i in instrs:
            if i.kind != "compute" or i.group >= 0:
                continue
            op = self.graph.ops[self.graph.position[i.on]]
            i = own_sizes(i, op, at)
            if not all(i.sizes) or not samples.of(i).all():
                continue  # an empty part
            phase = op.phase if self.graph.training == "explicit" else self._phase(i, op)
            seconds += (spent := self._spent(i, device, phase, samples.of(i)))
            if phase == "weight_grad":
                weight += spent
            elif split and phase == "backward" and is_product(self.graph, op):
                weight += self._spent(i, device, "weight_grad", samples.of(i))
        return seconds, weight

    def _spent(self, instr: Instr, device: DeviceType, phase: Phase, local: Ints) -> Floats:
        """Seconds [n] of one heavy op."""

        def price(op: Op, sizes: Ints) -> Floats:
            seconds = self.cost.compute(op, sizes, device, phase)
            return (
                seconds if self.attention_share == 1.0 else seconds * self.cost.packed(op, sizes, self.attention_share)
            )

        found: Floats = instr.steps * self._known(instr, (phase, device.name), local, price)[0]
        return found

    def _double_buffered(self, segment: Segment, mesh: Mesh, micro: Ints, samples: Samples) -> Floats:
        """Seconds [phase, n] of broadcasts beside products that run in steps."""
        found = np.zeros((2, len(micro)))
        for which, instrs in enumerate((segment.forward, segment.rerun, segment.backward)):
            if any(i.steps > 1 for i in instrs):
                found[int(which > 0)] += hidden(
                    instrs,
                    len(micro),
                    lambda i: self._collective(
                        i.collective or "broadcast",
                        self._bytes(i, mesh, micro)[None],
                        Group(self.cluster, mesh, i.axes),
                    )[0],
                    lambda i, phase: np.max(
                        [self._spent(i, d, phase, samples.of(i)) for d in self.devices(mesh)], axis=0
                    ),
                    self.share[SHARDED],
                )
        return found

    def _phase(self, instr: Instr, op: Op) -> Phase:
        if instr.phase != "backward":
            return instr.phase
        return backward_phase(self.graph, op, {tensor_of(v) for v in instr.outputs})

    def _kernels(self, segment: Segment, mesh: Mesh, device: DeviceType, micro: Ints, at: At | None = None) -> Floats:
        """Seconds [phase, kernel, n] of the fused kernels of light ops."""
        if not segment.kernels:
            return np.zeros((2, 0, len(micro)))
        local = np.stack([local_samples(mesh, k.samples, micro, at) for k in segment.kernels]).astype(np.float64)
        columns = np.array([(k.forward, k.backward) for k in segment.kernels], np.float64)
        nbytes: Floats = columns[:, :, 0].T[:, :, None] + columns[:, :, 1].T[:, :, None] * local[None]
        found: Floats = np.where(nbytes > 0, self._traffic(nbytes, device), 0.0)
        return found

    def _traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        """Seconds [..., n] of kernels that move `nbytes` [..., n]."""
        return self.cost.traffic(nbytes.ravel(), device).reshape(nbytes.shape)

    def _collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        """Seconds [rows, n] of collectives of `nbytes` [rows, n]."""
        return self.cost.collective(kind, nbytes.ravel(), group).reshape(nbytes.shape)

    def _communication(
        self, segment: Segment, mesh: Mesh, micro: Ints, sums: tuple[tuple[Instr, float], ...]
    ) -> tuple[Floats, Ints, Floats]:
        """Seconds [phase, class, n, KINDS], calls [KINDS], bytes [n, KINDS]."""
        n = len(micro)
        seconds, nbytes = np.zeros((2, 3, n, len(KINDS))), np.zeros((n, len(KINDS)))
        calls = np.zeros(len(KINDS), np.int64)
        pending: dict[tuple[Collective, tuple[str, ...], int], list[tuple[int, int, Floats]]] = {}
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
                if self.of_param(i):
                    key = (which, kind, i.axes)
                    together[key] = together.get(key, np.zeros(n)) + size
                else:
                    copies = self._copies(i) if kind == "all_to_all" else 1
                    cls = GRADIENT if which == 2 and kind not in ("all_to_all", "broadcast") else TENSOR
                    pending.setdefault((kind, i.axes, copies), []).append((which, cls, size))
        for i, times in sums:
            if i.communicates and i.collective:
                key = (3, i.collective, i.axes)
                together[key] = together.get(key, np.zeros(n)) + times * i.nbytes
                calls[KINDS.index(i.collective)] += round(times)
                nbytes[:, KINDS.index(i.collective)] += times * i.nbytes
        for (which, kind, axes), size in together.items():
            pending.setdefault((kind, axes, 1), []).append((which, SHARDED, size))
        for (kind, axes, copies), rows in pending.items():
            group = Group(self.cluster, mesh, axes, copies=copies)
            priced = self._collective(kind, np.stack([r[2] for r in rows]), group)
            for (which, cls, _), spent in zip(rows, priced, strict=True):
                seconds[int(which > 0), cls, :, KINDS.index(kind)] += spent
        return seconds, calls, nbytes

    def _bytes(self, instr: Instr, mesh: Mesh, micro: Ints) -> Floats:
        if instr.samples is None:
            return np.full(len(micro), float(instr.nbytes))
        found: Floats = instr.nbytes * local_samples(mesh, instr.samples, micro).astype(np.float64)
        return found

    def _copies(self, instr: Instr) -> int:
        """Experts of a token whose rows an all-to-all brings to them or back."""
        made = self.graph.producer.get(instr.on, -1)
        read = [n for n, _ in self.graph.consumers.get(instr.on, ())]
        ops = [self.graph.ops[n] for n in (made, *read) if n >= 0]
        own = next((op for op in ops if op.kind in ("moe_dispatch", "moe_combine")), None)
        return self.graph.tensor[own.inputs[1]].shape[-1] if own else 1

    def of_param(self, instr: Instr) -> bool:
        tensor = self.graph.tensor.get(instr.on) if instr.kind == "collective" else None
        return tensor is not None and tensor.role == "param"

    def _gathered(self, segment: Segment, mesh: Mesh, micro: Ints) -> Floats:
        """Bytes [n] of parameters gathered for one block."""
        gathers = (i for i in segment.forward if i.collective == "all_gather" and self.of_param(i))
        return np.zeros(len(micro)) + sum((self._bytes(i, mesh, micro) for i in gathers), np.zeros(len(micro)))

    def _floors(self, segment: Segment, mesh: Mesh) -> tuple[Floats | float, Floats | float]:
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


def _rerun_shares(segment: Segment) -> Floats:
    """Per kernel: which part of its ops runs again before the backward."""
    ops, again = np.zeros(len(segment.kernels)), np.zeros(len(segment.kernels))
    for instrs, into in ((segment.forward, ops), (segment.rerun, again)):
        for i in instrs:
            if i.kind == "compute" and i.group >= 0:
                into[i.group] += 1
    shares: Floats = np.divide(again, ops, out=np.zeros(len(ops)), where=ops > 0)
    return shares
