"""Seconds of explicit calls (see `explicit`) by any cost model, each price asked for once."""

from __future__ import annotations

import numpy as np

from ..cluster.model import Cluster, Mesh
from ..cost.base import Collective, CostModel, Group
from ..graph.ir import Graph
from ..lower.parts import local_count
from ..lower.program import Instr
from .explicit import Call, with_samples


class Prices:
    """Of one graph on one cluster."""

    def __init__(self, cost: CostModel, cluster: Cluster, graph: Graph, micro: int) -> None:
        """`micro`: samples of a micro-batch on a whole stage."""
        self.cost, self.cluster, self.graph, self.micro = cost, cluster, graph, micro
        self.grows = with_samples(graph)
        self._known: dict[object, float] = {}

    def call(self, call: Call, mesh: Mesh) -> float:
        device = self.cluster.type_of(int(mesh.devices[0]))
        if call.kind in ("forward", "backward"):
            i = call.instr
            assert i is not None
            index = self.graph.position[call.on]
            op = self.graph.ops[self.graph.representative[index]]
            sizes = [
                n * self._samples(mesh, i) if f.samples else n for n, f in zip(i.sizes, op.rule.factors, strict=True)
            ]
            phase = i.phase if i.within else call.kind
            key = (op.name, phase, tuple(sizes), i.steps, device.name)
            if key not in self._known:
                local = np.array([[max(1, round(n)) for n in sizes]], np.int64)
                self._known[key] = i.steps * float(self.cost.compute(op, local, device, phase)[0])
            return self._known[key]
        if call.kind == "collective":
            return self._collective(call.collective, call.nbytes, mesh, call.axes)
        # add reads two operands; move re-arranges
        return self._traffic(2.0 * call.nbytes if call.kind == "add" else 0.0, mesh)

    def _samples(self, mesh: Mesh, i: Instr) -> float:
        """Samples of a micro-batch on the fullest device; `Instr.sizes` are per sample."""
        return local_count(self.micro, i.samples or (), mesh)

    def gather(self, call: Call, size: float, mesh: Mesh) -> float:
        return self._traffic(0.0 if call.joins else 2.0 * size, mesh)

    def _traffic(self, nbytes: float, mesh: Mesh) -> float:
        device = self.cluster.type_of(int(mesh.devices[0]))
        key = ("traffic", nbytes, device.name)
        if key not in self._known:
            self._known[key] = float(self.cost.traffic(np.array([nbytes]), device)[0])
        return self._known[key]

    def collective(self, i: Instr, nbytes: float, mesh: Mesh) -> float:
        return self._collective(i.collective or "all_reduce", nbytes, mesh, i.axes)

    def _collective(self, kind: Collective, nbytes: float, mesh: Mesh, axes: tuple[str, ...]) -> float:
        key = (kind, nbytes, axes, tuple(mesh.devices))
        if key not in self._known:
            group = Group(self.cluster, mesh, axes)
            self._known[key] = float(self.cost.collective(kind, np.array([nbytes]), group)[0])
        return self._known[key]

    def send(self, nbytes: float, src: Mesh, dst: Mesh) -> float:
        key = ("send", nbytes, tuple(src.devices), tuple(dst.devices))
        if key not in self._known:
            ends = [(int(src.devices[k]), int(dst.devices[k])) for k in (0, -1)]
            self._known[key] = max(
                float(self.cost.transfer(np.array([nbytes]), a, b, self.cluster)[0]) for a, b in ends
            )
        return self._known[key]
