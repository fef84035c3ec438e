"""The analytic cost model: rooflines with measured efficiencies, and latency plus bandwidth over the levels.

Forms and constants: public rows of whole training steps (see constants/*.toml for every figure and its evidence).
Per op: matrix products (and convolutions as such) by tiles, waves and depth; attention fused or through its score matrix;
everything else by the bytes that it moves. What it does not know: clocks under load, contention between streams, other jobs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod
from typing import ClassVar

import numpy as np

from ..cluster.model import Cluster, DeviceType
from ..cluster.topology import shared_level, way_out
from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Floats, Ints, Op, Phase
from . import losses, matmul
from ._shapes import ATTENTION, LOOKUPS, MATMULS, NORMS, VIEWS, OpShape, Product, Shapes, volume
from .base import Collective, CostModel, Dependent, Group, OpMemory, Traffic
from .collectives import CollectivePrices
from .constants import Family, Predicted, Software, among, family, generation, software
from .losses import CROSS_ENTROPIES, LOSSES

_BACKWARD = ("backward", "input_grad", "weight_grad")
_FORMAT = {
    "float8_e4m3fn": "gemm_8", "float8_e5m2": "gemm_8", "float8": "gemm_8", "float4": "gemm_4", "int8": "gemm_8",
    "bfloat16": "gemm_16", "float16": "gemm_16", "tfloat32": "gemm_16", "float32": "gemm_32", "float64": "gemm_32",
}  # fmt: skip
_OF_ATTENTION = (
    "attention_first", "attention_flash", "attention_modern", "small_head", "score_rate", "score_bytes", "misaligned",
)  # fmt: skip
"""Constants of a family that attention reads besides the rate of products and of memory."""
ATTENTION_8 = 1.5
"""Rate of fused attention on 8-bit operands over that on 16-bit ones: FlashAttention 3 computes 1.2 PFLOP/s against .74 at best
(Shah et al., arXiv 2407.08608), less at shorter sequences and in the backward."""
FLASH_BACKWARD = 3.0
"""Backward of fused attention over its forward: it computes the scores again (fitted: 3, FLOPs alone say 2.5)."""
SCORE_BACKWARD = 1.4
"""Bytes moved per score by the backward of unfused attention over those of its forward (fitted: 7 over 5)."""
SCORES_KEPT, DROPPED_KEPT = 2.0, 3.0
"""Bytes kept per score without fused attention: its 16-bit softmax; with dropout also the mask and what it leaves."""
READS = {"delayed": 1, "current": 2, "row": 2, "block": 1}
"""How often an operand is read to be quantised, by how its scales are found: from earlier steps, or from its own largest
element first. A scale per block of 8-bit numbers is found on the way; blocks of 4-bit numbers need the tensor's, too."""
OPTIMIZER_BYTES = 30.0
"""Bytes moved per parameter by a mixed-precision Adam step."""
STREAMS = 4
"""Of TransformerEngine's products by several experts."""
DETERMINISTIC = 32.0 * 2**20
"""Bytes of work space that torch's products need to give the same every time (CUBLAS_WORKSPACE_CONFIG = :4096:8)."""
DISPATCH = "moe_dispatch"
BLOCK_OPS = 8
"""Heavy ops (products, convolutions, lookups) that count as one layer for the launch floor where there is no attention."""


class Analytic(CostModel):
    """Works for any device with a family of constants.

    precision: dtype of operands of matrix products ("bfloat16", "float8_e4m3fn", "float32", …); other ops and the
    modules in `high_precision` use 16 bits where it is below.
    software: a generation of constants/software.toml.
    scaling: how scales of 8- and 4-bit operands are found: delayed, current, row or block.
    """

    name: ClassVar[str] = "analytic"

    def __init__(
        self,
        *,
        precision: str = "bfloat16",
        software: str | Software = "modern",
        scaling: str = "delayed",
        high_precision: Sequence[str] = ("lm_head",),
        families: dict[str, Family] | None = None,
        prices: CollectivePrices | None = None,
    ) -> None:
        """`families` overrides constants by family name (calibration, validation); `prices` of collectives may be shared
        between models, as they are kept by family."""
        if precision not in _FORMAT:
            raise InputError(f'no precision "{precision}": known are {", ".join(_FORMAT)}', where="precision")
        if scaling not in READS:
            raise InputError(f'no scaling "{scaling}": known are {", ".join(READS)}', where="scaling")
        self.precision = precision
        self.software = software if isinstance(software, Software) else generation(software)
        self.high_precision = frozenset(high_precision)
        self.wide = "bfloat16" if _FORMAT[precision] in ("gemm_8", "gemm_4") else precision
        """dtype of everything but matrix products."""
        self.item = float(ITEM_BYTES.get(self.wide, 4))  # tfloat32 is float32 in memory
        self._quantised = _quantised(precision, scaling) * self.software.quantise
        self._families = families or {}
        self._shapes = Shapes()
        self._prices = prices or CollectivePrices()
        self._rates: dict[tuple[str, float, float, bool], matmul.Rates] = {}

    # ---------------------------------------------------------------- one op

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        """See `CostModel.compute`. Variant "unfused" or "fused" of an attention op overrides the software's.

        Raises:
            Unsupported: the device has no peak for the precision.
        """
        shape = self._shapes.of(op)
        local = np.asarray(sizes, dtype=np.float64)
        if op.phase != "forward":
            phase = "forward"  # explicit graphs: the op IS the backward or the update, with its own FLOPs
        if phase == "update":
            return self.traffic(OPTIMIZER_BYTES * self._elements(shape, local, parameters=True), device)
        if shape.product is not None:
            return self._product(op, shape, shape.product, local, device, phase)
        if op.kind in ATTENTION and shape.scores:
            return self._attention(op, shape, local, device, phase, variant)
        return self._moved(op, shape, local, device, phase)

    def depends(self, what: Op | Dependent, device: DeviceType, phase: Phase = "forward") -> Hashable:
        """See `CostModel.depends`: the constants that are read, for models of one precision and scaling."""
        family, software = self._family(device), self.software
        if not isinstance(what, str):
            return self._depends(what, family, phase)
        wires = family.inner, family.outer, family.start
        found: dict[Dependent, Hashable] = {
            "traffic": (family.memory, software.fused),
            "collective": (*wires, family.fill, family.exchange),
            "transfer": (*wires, software.transfer),
            "host": (software.floor_forward, software.floor_backward),
        }
        return found[what]

    def _depends(self, op: Op, family: Family, phase: Phase) -> Hashable:
        software, shape = self.software, self._shapes.of(op)
        if phase == "update" and op.phase == "forward":
            return family.memory, software.fused
        product = getattr(family, _FORMAT[self.wide]), getattr(family, _FORMAT[self.precision]), family.memory
        if shape.product is not None:
            own = family.sms, family.depth, family.launch, software.rate, software.odd, software.expert
            return (*product, *own, self._quantised)
        if op.kind in ATTENTION and shape.scores:
            return (*product, software.rate, software.attention, *(getattr(family, name) for name in _OF_ATTENTION))
        return (*product, family.norm, software.loss, software.dispatch)

    def _product(
        self, op: Op, shape: OpShape, product: Product, local: Floats, device: DeviceType, phase: Phase
    ) -> Floats:
        rates = self._matmul_rates(device, self._is_wide(op))
        batch, m, n = (volume(local, f) for f in (product.batch, product.m, product.n))
        if op.kind in MATMULS:
            k = volume(local, product.k)
        else:
            whole = 2.0 * batch * m * n
            k = self._flops(op, shape, local) / np.maximum(whole, 1.0)
        # What flows through the product is quantised for it and, transposed, for the weights' gradient; weights once a step.
        # What the members of a group all read was gathered, after each had quantised its own part of it.
        quantise = 0.0 if self._is_wide(op) else self._quantised / rates.bandwidth
        slow = self._unaligned(op, n, k)
        own: Floats | float
        if phase == "forward":
            own = n / volume(shape.full[None], product.n)
            return slow * self._products(rates, batch, m, n, k) + quantise * batch * m * k * own
        found = np.zeros(len(local))
        if phase in ("backward", "input_grad"):
            own = k / volume(shape.full[None], product.k) if op.kind in MATMULS else 1.0
            found = found + slow * self._products(rates, batch, m, k, n) + quantise * batch * m * n * own
        if phase in ("backward", "weight_grad"):
            found = found + slow * self._products(rates, batch, n, k, m)
        return found

    def _products(self, rates: matmul.Rates, batch: Floats, m: Floats, n: Floats, k: Floats) -> Floats:
        """Seconds; those of experts (a batch of them) no sooner than the host has issued one after the other."""
        issued = self.software.expert * np.where(batch > 1, batch, 0.0)
        found: Floats = np.maximum(matmul.seconds(rates, batch, m, n, k), issued)
        return found

    def _attention(
        self, op: Op, shape: OpShape, local: Floats, device: DeviceType, phase: Phase, variant: str
    ) -> Floats:
        if phase == "weight_grad":
            return np.zeros(len(local))
        constants = self._family(device)
        peak = self._peak(device, self.wide)
        width = volume(local, shape.head)
        flops = self._flops(op, shape, local)
        forward = phase == "forward"
        how = variant or self.software.attention
        if how == "fused":
            how = "modern" if self.software.attention == "unfused" else self.software.attention
        if how == "unfused":
            rate = np.full(len(local), peak * float(getattr(constants, _FORMAT[self.wide])) * self.software.rate)
            if self.wide != "float32":  # what narrow heads cost tensor cores
                rate *= constants.score_rate * 2.0 * width / (width + 128.0)
                rate /= np.where(width % 8, constants.misaligned, 1.0)
            score = constants.score_bytes * self.item / 2.0
            moved = score * (1.0 if forward else SCORE_BACKWARD) * volume(local, shape.scores)
            found: Floats = (1.0 if forward else 2.0) * flops / rate + moved / (device.bandwidth * constants.memory)
            return found
        share = float(getattr(constants, f"attention_{how.removesuffix('-8')}"))
        if how.endswith("-8"):
            share *= ATTENTION_8
        rate = peak * share * np.where(width <= 64, constants.small_head, 1.0)
        seconds: Floats = _seen(op, shape, local) * flops / rate * (1.0 if forward else FLASH_BACKWARD)
        return seconds

    def packed(self, op: Op, sizes: Ints, share: float) -> Floats | float:
        """See `CostModel.packed`: of fused attention, documents of `share` of the sequence each.

        A shard has q of Q queries; d = share · Q in a document. At worst they are the last of one document, or whole
        documents: causal, they see q · (d − min(q, d) / 2) keys of the q · (Q − q / 2) of one document.
        """
        shape = self._shapes.of(op)
        if op.kind not in ATTENTION or not shape.scores or self.software.attention == "unfused":
            return 1.0
        if not is_causal(op):
            return share
        q = volume(np.asarray(sizes, dtype=np.float64), shape.queries)
        whole = float(prod(shape.full[list(shape.queries)]))
        document = share * whole
        found: Floats = (document - np.minimum(q, document) / 2.0) / (whole - q / 2.0)
        return found

    def _moved(self, op: Op, shape: OpShape, local: Floats, device: DeviceType, phase: Phase) -> Floats:
        constants = self._family(device)
        bandwidth = device.bandwidth * (constants.norm if op.kind in NORMS else constants.memory)
        forward = phase == "forward"
        if op.kind in VIEWS:
            return np.zeros(len(local))
        if op.kind in LOSSES:
            logits = volume(local, shape.operands[0])
            return logits * losses.BYTES[self.software.loss][forward] / bandwidth
        if op.kind in LOOKUPS:
            # Rows read and written; backward reads the gradient and adds it to the table's rows.
            found: Floats = volume(local, shape.results[0]) * self.item * (2.0 if forward else 3.0) / bandwidth
            return found
        bytes_ = self._elements(shape, local) * self.item * (1.0 if forward else 1.5) / bandwidth
        if op.kind == DISPATCH:
            bytes_ = bytes_ + self.software.dispatch
        flops = self._flops(op, shape, local)
        if op.flops:
            rate = self._peak(device, self.wide) * getattr(constants, _FORMAT[self.wide])
            return np.asarray(np.maximum(bytes_, flops * (1.0 if forward else 2.0) / rate), dtype=np.float64)
        return bytes_

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        """Kept: what the op saves for its backward (a tensor saved by two ops counts in both). Static: zero (tensors say)."""
        shape = self._shapes.of(op)
        local = np.asarray(sizes, dtype=np.float64)
        zero = np.zeros(len(local))
        share = np.asarray(np.prod(local / shape.full, axis=1), dtype=np.float64)
        kept = op.saved_extra * share
        for name in op.saved:
            if name in op.inputs:
                kept = kept + self.item * volume(local, shape.operands[op.inputs.index(name)])
            else:
                kept = kept + self.item * volume(local, shape.results[op.outputs.index(name)])
        fused = variant == "fused" or (not variant and self.software.attention != "unfused")
        transient = self.item * sum((volume(local, r) for r in shape.results), zero)
        if op.kind in ATTENTION and not fused:
            scores = volume(local, shape.scores)
            kept = kept + (SCORES_KEPT + DROPPED_KEPT * self.software.dropout) * scores
            transient = transient + self.item * scores
        if op.kind in CROSS_ENTROPIES:
            logits = volume(local, shape.operands[0])
            kept, transient = losses.KEPT[self.software.loss] * logits, losses.SPACE[self.software.loss] * logits
        return OpMemory(static=zero, kept=kept, transient=transient)

    def loss(self, op: Op, sizes: Ints) -> OpMemory | None:
        """See `CostModel.loss`."""
        return self.memory(op, sizes) if op.kind in CROSS_ENTROPIES else None

    def variants(self, op: Op, sizes: Ints) -> tuple[str, ...]:
        """As the software does; of attention also fused and through the score matrix."""
        return ("", "fused", "unfused") if op.kind in ATTENTION else ("",)

    # ---------------------------------------------------------------- bytes

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        """See `CostModel.traffic`; the software may fuse away a share of it."""
        moved = np.asarray(nbytes, dtype=np.float64) * self.software.fused
        return np.asarray(moved / (device.bandwidth * self._family(device).memory), dtype=np.float64)

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        """See `CostModel.collective`.

        Raises:
            InputError: members that no level of the cluster joins.
        """
        bytes_ = np.atleast_1d(np.asarray(nbytes, dtype=np.float64))
        return self._prices.seconds(kind, bytes_, group, self._family(_slowest(group)))

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        """Over the explicit link of the pair, else over the lowest level that both share; nothing on one device."""
        moved = np.asarray(nbytes, dtype=np.float64)
        if src == dst:
            return np.zeros(moved.shape)
        constants = self._family(cluster.type_of(src))
        link = cluster.link_between.get((src, dst))
        if link is not None:
            bandwidth, latency = link.bandwidth * constants.inner, link.latency
        else:
            k = shared_level(cluster, src, dst)
            if k < 0:
                raise InputError(f"cluster {cluster.name}: no level joins devices {src} and {dst}", where="levels")
            level = cluster.levels[k]
            ends = (way_out(cluster, src, k - 1), way_out(cluster, dst, k - 1))
            bandwidth, latency = min(level.pair or level.bandwidth, *ends), level.latency
            bandwidth *= constants.outer if k else constants.inner
        found = self.software.transfer * (moved / bandwidth + latency + constants.start / 2)
        return np.asarray(np.where(moved > 0, found, 0.0), dtype=np.float64)

    # ---------------------------------------------------------------- the host, the step, overlap

    def launch_floor(self, ops: Sequence[Op], device: DeviceType, phase: Phase) -> float:
        """See `CostModel.launch_floor`: one layer's floor per attention op, or per `BLOCK_OPS` heavy ops."""
        attention = sum(op.kind in ATTENTION for op in ops)
        heavy = sum(self._shapes.of(op).product is not None or op.kind in LOOKUPS or op.kind in ATTENTION for op in ops)
        layers = max(float(attention), heavy / BLOCK_OPS)
        return layers * (self.software.floor_forward if phase == "forward" else self.software.floor_backward)

    def workspace(self, device: DeviceType, grouped: bool = False) -> float:
        """See `CostModel.workspace`: torch has one for the thread of the forward and one for that of the backward; what
        TransformerEngine takes besides it takes for each of its streams again where it multiplies by experts."""
        constants, engine = self._family(device), self.software.engine == "transformer-engine"
        handle = DETERMINISTIC if self.software.deterministic and constants.workspace else constants.workspace
        return 2.0 * handle + engine * constants.workspace_engine * (1 + STREAMS * (grouped and self.software.grouped))

    def step_overhead(self, devices: int) -> tuple[float, float]:
        """Stragglers per doubling of nodes of 8; what processes wait for each other once a step, more per doubling of nodes."""
        doublings = float(np.log2(max(1.0, devices / 8)))
        fixed = self.software.fixed * (1.0 + doublings) if devices > 1 else 0.0
        return 1.0 + self.software.straggle * doublings, fixed

    def overlap(self, kind: Traffic) -> float:
        """See `CostModel.overlap`."""
        return {
            "data": self.software.overlap_data,
            "tensor": self.software.overlap_tensor,
            "gradient": self.software.overlap_gradient,
            "sharded": self.software.overlap_sharded,
        }[kind]

    # ---------------------------------------------------------------- helpers

    def ships(self, what: Predicted, devices: Sequence[DeviceType]) -> bool:
        """See `CostModel.ships`; a model that is derived from this one has its own."""
        own = all(among(self._family(t), (family(t.family or t.kind),), what) for t in devices)
        return type(self) is Analytic and own and among(self.software, software().values(), what)

    def _family(self, device: DeviceType) -> Family:
        key = device.family or device.kind
        return self._families[key] if key in self._families else family(key)

    def _peak(self, device: DeviceType, dtype: str) -> float:
        if dtype not in device.peak:
            raise Unsupported(
                f"{device.name} computes no {dtype}: choose one of {', '.join(sorted(device.peak))}", where="precision"
            )
        return device.peak[dtype]

    def _is_wide(self, op: Op) -> bool:
        return op.module.rpartition(".")[2] in self.high_precision

    def _matmul_rates(self, device: DeviceType, wide: bool) -> matmul.Rates:
        dtype = self.wide if wide else self.precision
        peak = self._peak(device, dtype)
        key = (device.family or device.kind, device.bandwidth, peak, wide)
        found = self._rates.get(key)
        if found is None:
            constants = self._family(device)
            flops = peak * float(getattr(constants, _FORMAT[dtype])) * self.software.rate
            found = matmul.Rates(
                flops, device.bandwidth * constants.memory, constants.sms, self.item, constants.depth, constants.launch
            )
            self._rates[key] = found
        return found

    def _unaligned(self, op: Op, n: Floats, k: Floats) -> Floats | float:
        """Factor on products whose rows in memory, of n or k elements, are no whole vectors of eight: by how few they hold.

        Tensor cores take 16-bit operands by vectors; halves, quarters and single elements cost equal steps up to
        `Software.odd`.
        """
        dtype = self.wide if self._is_wide(op) else self.precision
        if self.software.odd == 1.0 or dtype not in ("bfloat16", "float16"):
            return 1.0
        vector = np.gcd(np.gcd(n.astype(np.int64), k.astype(np.int64)), 8)
        found: Floats = self.software.odd ** (1.0 - np.log2(vector) / 3.0)
        return found

    def _flops(self, op: Op, shape: OpShape, local: Floats) -> Floats:
        share: Floats = np.prod(local / shape.full, axis=1)
        return op.flops * share

    def _elements(self, shape: OpShape, local: Floats, *, parameters: bool = False) -> Floats:
        """Of all operands and results; `parameters`: of the first operand alone."""
        if parameters:
            return volume(local, shape.operands[0]) if shape.operands else np.zeros(len(local))
        return sum((volume(local, f) for f in (*shape.operands, *shape.results)), np.zeros(len(local)))


def _quantised(precision: str, scaling: str) -> float:
    """Bytes moved per element of an operand that is quantised: read in 16 bits, written as it is and transposed."""
    if _FORMAT[precision] not in ("gemm_8", "gemm_4"):
        return 0.0
    four = _FORMAT[precision] == "gemm_4"
    reads = READS[scaling] + (four and scaling == "block")
    return 2.0 * reads + 2.0 * (0.5 if four else 1.0)


def is_causal(op: Op) -> bool:
    """Whether an attention op masks the future by its `is_causal` argument (position 5)."""
    if dict(op.kwargs).get("is_causal") is True:
        return True
    return len(op.args) > 5 and op.args[5] is True


def _seen(op: Op, shape: OpShape, local: Floats) -> Floats:
    """Share of the scores of a shard that fused attention computes; of a causal one that has the LAST of the queries.

    Of Q queries and T keys the last q see Q − q + 1 … Q keys each: q · (Q − q / 2) of q · T. All of them: half.
    """
    if not is_causal(op):
        return np.ones(len(local))
    q, whole, keys = volume(local, shape.queries), prod(shape.full[list(shape.queries)]), volume(local, shape.keys)
    found: Floats = (whole - q / 2.0) / keys
    return found


def _slowest(group: Group) -> DeviceType:
    """The device type whose constants price a collective: of the group's first device, or the least bandwidth where mixed."""
    types = group.cluster.types
    if len(types) == 1:
        return types[0]
    present = {group.cluster.device[d] for d in group.mesh.devices}
    return min((types[t] for t in present), key=lambda t: t.bandwidth)
