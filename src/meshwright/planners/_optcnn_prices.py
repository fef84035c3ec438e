"""What OptCNN charges: compute and parameter sums of each configuration of a layer, transfers between two layers.

    tc   forward + backward of a tile, by the cost model on local shapes, and the sums that norms and losses need when cut
    ts   each parameter shard summed over its own replicas: all-reduce, or through a parameter server
    tx   per device what its tile reads less what it has (forward), and the transpose of that for the gradient (backward)

Devices transfer in parallel, so the slowest device says how long an edge takes; what one device gets from its node and what
from outside are two transfers, one after the other. A server sits with the first replica of its shard: every other replica
sends it a gradient and gets parameters back over the server's connection. Samples of a batch norm are coupled: its
statistics are over the whole batch, and what summing them takes is charged to the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..cluster.model import Mesh
from ..cluster.topology import shared_level
from ..cost.base import Collective, Group
from ..graph.ir import ITEM_BYTES, Dims, Floats, Graph, Ints, Op, Phase, Tensor
from ..graph.saved import needs_grad
from ..plan.problem import Problem
from ..solvers.cost_graph import CostGraph
from ._optcnn_layers import Layer, constant_tensors, overlaps, tiles

Sync = Literal["all_reduce", "server"]
CHUNK = 1 << 21
"""(configuration, configuration, device, device) entries of one piece of an edge table."""


@dataclass(slots=True)
class Prices:
    """Tables of one problem; equal layers and equal edges are priced once."""

    problem: Problem
    devices: int
    sync: Sync
    trained: frozenset[str] = field(init=False)
    way: Ints = field(init=False)
    """[devices, devices]: pairs with equal numbers are joined alike; −1 of a device and itself."""
    _nodes: dict[tuple[object, ...], Floats] = field(init=False, default_factory=dict)
    _edges: dict[tuple[object, ...], Floats] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.trained = needs_grad(self.problem.graph)
        cluster, kinds = self.problem.cluster, dict[tuple[object, ...], int]()
        self.way = np.full((self.devices, self.devices), -1, np.int64)
        for a in range(self.devices):
            for b in range(self.devices):
                if a != b:
                    link = cluster.link_between.get((a, b))
                    kind = (link.bandwidth, link.latency) if link is not None else (shared_level(cluster, a, b),)
                    self.way[a, b] = kinds.setdefault(kind, len(kinds))

    # ---------------------------------------------------------------- nodes

    def node(self, layer: Layer) -> Floats:
        """[configurations]: tc + ts, seconds."""
        graph, op = self.problem.graph, layer.op
        key = (
            op.kind, op.rule, op.flops, op.module.rpartition(".")[2], op.args, op.kwargs, self._phase(op),
            tuple((graph.tensor[t].role, graph.tensor[t].dtype, t in self.trained) for t in op.inputs),
        )  # fmt: skip
        if key not in self._nodes:
            self._nodes[key] = self.compute(layer) + self.statistics(layer) + self.parameters(layer)
        return self._nodes[key]

    def compute(self, layer: Layer) -> Floats:
        """[configurations]: seconds of one tile, forward and backward."""
        cost, device, local = self.problem.cost, self.problem.cluster.type_of(0), layer.local()
        found = cost.compute(layer.op, local, device, "forward")
        phase = self._phase(layer.op)
        return found + cost.compute(layer.op, local, device, phase) if phase is not None else found

    def _phase(self, op: Op) -> Phase | None:
        """Which gradients flow; of a product of data and parameters, as a first layer is, the parameters' alone."""
        if not any(t in self.trained for t in op.outputs):
            return None
        if len(op.inputs) == 2 and op.rule.summed() and op.inputs[0] not in self.trained:
            return "weight_grad"
        return "backward"

    def statistics(self, layer: Layer) -> Floats:
        """[configurations]: seconds of the sums of norms and losses whose statistics or samples are cut."""
        factors = layer.op.rule.factors
        dims = layer.op.rule.results[0] if layer.op.rule.results else ()
        kept = {name for names in dims for name in names}
        item = self._item(layer.op.outputs[0]) if layer.op.outputs else 4.0
        found = np.zeros(len(layer.degrees))
        for c in range(len(layer.degrees)):
            cut, mesh = layer.cut_factors(c), layer.mesh(c)
            stat = [f for f in factors if f.name in cut and f.kind == "stat"]
            summed = [f for f in factors if f.name in cut and f.kind != "stat" and f.name not in kept]
            size = dict(zip((f.name for f in factors), layer.local()[c].tolist(), strict=True))
            if stat:
                every = {f.name for f in factors if f.kind == "stat"}
                times = max(f.sums[0] for f in stat)
                if self._phase(layer.op) is not None:
                    times += max(f.sums[1] for f in stat)
                nbytes = item * np.prod([size[n] for n in kept - every], initial=1.0)
                found[c] += times * self._collective("all_reduce", nbytes, mesh, tuple(f.name for f in stat))
            if summed:
                nbytes = item * np.prod([size[n] for n in kept], initial=1.0)
                found[c] += self._collective("all_reduce", nbytes, mesh, tuple(f.name for f in summed))
        return found

    def parameters(self, layer: Layer) -> Floats:
        """[configurations]: seconds to sum the gradients of all parameters of a layer."""
        graph = self.problem.graph
        found = np.zeros(len(layer.degrees))
        for name, dims in zip(layer.op.inputs, layer.op.rule.operands, strict=True):
            tensor = graph.tensor[name]
            if tensor.role == "param" and name in self.trained and not tensor.frozen:
                found += [self._sync(layer, c, tensor, dims) for c in range(len(layer.degrees))]
        return found

    def _sync(self, layer: Layer, c: int, tensor: Tensor, dims: Dims) -> float:
        has = {name for names in dims for name in names}
        cut, mesh = layer.cut_factors(c), layer.mesh(c)
        copied = tuple(name for name in cut if name not in has)
        if not copied:
            return 0.0
        shards = np.prod([n for name, n in cut.items() if name in has], initial=1.0)
        nbytes = np.prod(tensor.shape, initial=1.0) / shards * ITEM_BYTES.get(self.problem.recipe.grad_dtype, 4)
        if self.sync == "all_reduce":
            return self._collective("all_reduce", nbytes, mesh, copied)
        others = [
            d for d in range(1, len(mesh.devices))
            if all(x == 0 or name in copied for name, x in mesh.coordinates(d).items())
        ]  # fmt: skip
        return sum(2.0 * float(self._transfer(np.array([nbytes]), d, 0)[0]) for d in others)

    # ---------------------------------------------------------------- edges

    def edge(self, a: Layer, result: int, b: Layer, operand: int) -> Floats:
        """[configurations of a, of b]: seconds to hand a result to an operand, and its gradient back."""
        name = a.op.outputs[result]
        key = (a.op.rule, result, b.op.rule, operand, self._item(name), name in self.trained)
        if key not in self._edges:
            self._edges[key] = self._transfers(a, result, b, operand, self._item(name), name in self.trained)
        return self._edges[key]

    def _transfers(self, a: Layer, result: int, b: Layer, operand: int, item: float, back: bool) -> Floats:
        moved = self.volumes(a, result, b, operand)
        found = np.empty((len(a.degrees), len(b.degrees)))
        ways = [(int(k), *np.argwhere(self.way == k)[0].tolist()) for k in np.unique(self.way) if k >= 0]
        start = 0
        for piece in moved:  # [some configurations of a, of b, receiver, sender]
            seconds = np.zeros((len(piece), len(b.degrees)))
            for axis in (3, 2) if back else (3,):
                own = np.zeros(piece.shape[:3])
                for k, here, there in ways:
                    nbytes = item * np.where(self.way == k, piece, 0.0).sum(axis=axis)
                    own += self._transfer(nbytes, there, here)
                seconds += own.max(axis=2)
            found[start : start + len(piece)] = seconds
            start += len(piece)
        return found

    def volumes(self, a: Layer, result: int, b: Layer, operand: int) -> list[Floats]:
        """Elements [configurations of a, of b, receiver, sender] that each device needs of others, in pieces over the first.

        Of several devices that hold the same tile the first one sends; nobody is sent what he has.
        """
        held = tiles(a, a.op.rule.results[result], self.devices, halo=False)
        need = tiles(b, b.op.rule.operands[operand], self.devices, halo=True)
        common = [overlaps(x, y) for x, y in zip(held.parts, need.parts, strict=True)]
        senders = held.first == np.arange(self.devices)
        step = max(1, CHUNK // (len(b.degrees) * self.devices**2))
        found = []
        for start in range(0, len(a.degrees), step):
            own = slice(start, start + step)
            volume = np.ones((len(held.first[own]), len(b.degrees), self.devices, self.devices))
            for k, table in enumerate(common):
                volume *= table[held.part[own, None, None, :, k], need.part[None, :, :, None, k]]
            volume *= senders[own, None, None, :] & (need.first >= 0)[None, :, :, None]
            # A device has what its own tile has, whoever is the first to hold it.
            volume *= held.first[own, None, :, None] != np.arange(self.devices)
            found.append(volume)
        return found

    # ---------------------------------------------------------------- shared

    def _item(self, tensor: str) -> float:
        t = self.problem.graph.tensor[tensor]
        return float(ITEM_BYTES.get(t.dtype, 4))

    def _collective(self, kind: Collective, nbytes: float, mesh: Mesh, axes: tuple[str, ...]) -> float:
        group = Group(self.problem.cluster, mesh, axes)
        return float(self.problem.cost.collective(kind, np.array([nbytes], np.float64), group)[0])

    def _transfer(self, nbytes: Floats, src: int, dst: int) -> Floats:
        return self.problem.cost.transfer(nbytes, src, dst, self.problem.cluster)


def edges_of(graph: Graph, layers: list[Layer]) -> list[tuple[int, int, int, int]]:
    """(layer, its result, layer, its operand) of every value that one layer hands to another, once where it is read alike."""
    constant = constant_tensors(graph)
    at = {layer.index: k for k, layer in enumerate(layers)}
    found = []
    for k, layer in enumerate(layers):
        read = set()
        for j, name in enumerate(layer.op.inputs):
            made = graph.producer.get(name)
            seen = (name, layer.op.rule.operands[j]) in read
            read.add((name, layer.op.rule.operands[j]))
            if made is not None and name not in constant and not seen:
                found.append((at[made], graph.ops[made].outputs.index(name), k, j))
    return found


def cost_graph(layers: list[Layer], prices: Prices, told: Callable[[int, int], None]) -> CostGraph:
    """The layers as variables. `told` is called with (tables priced, all)."""
    edges = edges_of(prices.problem.graph, layers)
    total = len(layers) + len(edges)
    unary, tables = [], []
    for layer in layers:
        unary.append(prices.node(layer))
        told(len(unary), total)
    for a, result, b, operand in edges:
        tables.append(prices.edge(layers[a], result, layers[b], operand))
        told(len(unary) + len(tables), total)
    return CostGraph(tuple(unary), tuple((a, b) for a, _, b, _ in edges), tuple(tables))
