"""Prices that came with an imported graph: seconds per op, bytes or seconds per transfer, as a profile states them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..cluster.model import Cluster, DeviceType
from ..cluster.topology import shared_level, way_out
from ..errors import InputError
from ..graph.ir import Floats, Ints, Op, Phase
from .base import Collective, CostModel, Group, OpMemory
from .collectives import CollectivePrices
from .constants import Family

IDEAL = Family(
    gemm_16=1.0, gemm_8=1.0, gemm_4=1.0, gemm_32=1.0, attention_first=1.0, attention_flash=1.0, attention_modern=1.0,
    small_head=1.0, memory=1.0, norm=1.0, inner=1.0, outer=1.0, fill=0.0, exchange=1.0, start=0.0, sms=1, depth=0.0, launch=0.0,
    score_rate=1.0, score_bytes=0.0, misaligned=1.0,
)  # fmt: skip
"""Recorded bandwidths are already what was reached, so nothing is taken off."""


@dataclass(frozen=True, slots=True)
class OpRecord:
    """What a profile says about one op, whole, at `Graph.samples`. Seconds and bytes."""

    seconds: Mapping[Phase, float] = field(default_factory=dict)
    """A phase that is missing costs nothing, except that backward = input_grad + weight_grad where those are given."""
    on: Mapping[str, Mapping[Phase, float]] = field(default_factory=dict)
    """Device kind or device name -> seconds there, instead of `seconds`."""
    degree: Mapping[int, Mapping[Phase, float]] = field(default_factory=dict)
    """Parts that its opaque factor is cut into -> seconds of one part; a degree that is missing is refused."""
    static: float = 0.0
    kept: float = 0.0
    transient: float = 0.0


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """Bytes replace those of the tensor; seconds replace the whole price where above 0."""

    nbytes: float = -1.0
    seconds: float = 0.0


class Recorded(CostModel):
    """Looks prices up; scales them by the share of the op that a shard computes.

    transfers: (tensor, consumer) or (tensor, "") -> record; the entry with the consumer wins.
    """

    name: ClassVar[str] = "recorded"

    def __init__(
        self,
        ops: Mapping[str, OpRecord],
        transfers: Mapping[tuple[str, str], TransferRecord] | None = None,
        *,
        scale: float = 1.0,
    ) -> None:
        """`scale` multiplies every recorded second (a profile in other units)."""
        self.ops = ops
        self.transfers = transfers or {}
        self.scale = scale
        self._prices = CollectivePrices()

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        """See `CostModel.compute`.

        Raises:
            InputError: the op has no record, or none for the degree of its opaque factor.
        """
        record = self._record(op)
        local = np.asarray(sizes, dtype=np.float64)
        seconds = record.on.get(device.name) or record.on.get(device.kind) or record.seconds
        opaque = [i for i, f in enumerate(op.rule.factors) if f.kind == "opaque"]
        share = self._share(op, local, skip=opaque if record.degree else ())
        if not (record.degree and opaque):
            return share * _of(seconds, phase) * self.scale
        parts = [round(op.rule.factors[opaque[0]].size / max(row, 1.0)) for row in local[:, opaque[0]].tolist()]
        found = np.empty(len(local))
        for i, degree in enumerate(parts):
            if degree != 1 and degree not in record.degree:
                known = ", ".join(str(d) for d in sorted(record.degree))
                raise InputError(f"{op.name} was not recorded in {degree} parts: recorded are {known}", where=op.name)
            found[i] = _of(record.degree.get(degree, seconds), phase)
        return share * found * self.scale

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        """Bytes over the memory bandwidth, where the cluster states one; a profile's ops include their own traffic."""
        moved = np.asarray(nbytes, dtype=np.float64)
        return moved / device.bandwidth if device.bandwidth else np.zeros(moved.shape)

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        """Bytes of the record, scaled by the share of the op; static memory shrinks only with factors of its parameters."""
        record = self._record(op)
        local = np.asarray(sizes, dtype=np.float64)
        share = self._share(op, local)
        samples = [i for i, f in enumerate(op.rule.factors) if f.samples]
        return OpMemory(
            static=record.static * self._share(op, local, skip=samples),
            kept=record.kept * share,
            transient=record.transient * share,
        )

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        """As the analytic model, with the cluster's figures taken as reached."""
        return self._prices.seconds(kind, np.atleast_1d(np.asarray(nbytes, dtype=np.float64)), group, IDEAL)

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        """Recorded seconds, or recorded bytes over the link, or `nbytes` over the link; nothing on one device.

        Raises:
            InputError: no link and no level joins the two devices.
        """
        moved = np.atleast_1d(np.asarray(nbytes, dtype=np.float64))
        if src == dst:
            return np.zeros(moved.shape)
        record = self.transfers.get((tensor, consumer)) or self.transfers.get((tensor, ""))
        if record is not None and record.seconds > 0:
            return np.full(moved.shape, record.seconds * self.scale)
        if record is not None and record.nbytes >= 0:
            moved = np.full(moved.shape, record.nbytes)
        bandwidth, latency = _wire(cluster, src, dst)
        return np.asarray(np.where(moved > 0, moved / bandwidth + latency, 0.0), dtype=np.float64)

    def _record(self, op: Op) -> OpRecord:
        if op.name not in self.ops:
            raise InputError(
                f'no recorded price for op "{op.name}": the profile holds {len(self.ops)} ops', where=op.name
            )
        return self.ops[op.name]

    def _share(self, op: Op, local: Floats, skip: Sequence[int] = ()) -> Floats:
        found = np.ones(len(local))
        for i, factor in enumerate(op.rule.factors):
            if (factor.size > 1 or factor.samples) and i not in skip:
                found = found * (local[:, i] / factor.size)
        return found


def _of(seconds: Mapping[Phase, float], phase: Phase) -> float:
    if phase == "backward" and "backward" not in seconds:
        return seconds.get("input_grad", 0.0) + seconds.get("weight_grad", 0.0)
    return seconds.get(phase, 0.0)


def _wire(cluster: Cluster, src: int, dst: int) -> tuple[float, float]:
    """Bytes/s and seconds of latency between two devices."""
    link = cluster.link_between.get((src, dst))
    if link is not None:
        return link.bandwidth, link.latency
    k = shared_level(cluster, src, dst)
    if k < 0:
        raise InputError(f"cluster {cluster.name}: no level joins devices {src} and {dst}", where="levels")
    level = cluster.levels[k]
    ends = (way_out(cluster, src, k - 1), way_out(cluster, dst, k - 1))
    return min(level.pair or level.bandwidth, *ends), level.latency
