"""Profiled graphs of "Efficient Algorithms for Device Placement of DNN Graph Operators" (NeurIPS 2020).

One JSON object: maxFPGAs accelerators of maxSizePerFPGA bytes, maxCPUs CPUs, nodes, edges. Times and costs are in
milliseconds as the study uses them; its throughput/layer files hold costs a thousand times too small, which is kept.
Public inputs: github.com/msr-fiddle/dnn-partitioning (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cluster.model import Cluster, DeviceType, Level, Mesh
from ..cost.recorded import OpRecord, Recorded, TransferRecord
from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Graph, Ints, Op, Phase, Rule, Tensor
from ..graph.serial import digest_of
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Limits, Problem, Recipe
from ._fields import MOST, Fields, in_order, load, nodes_by_id, one_piece, overrides_checked, says

HOST_BANDWIDTH = 2.0**31
"""Bytes/s between an accelerator and host memory: what the files' costs were computed with."""
MILLI = 1e-3
_HEAD = ("maxFPGAs", "maxSizePerFPGA", "maxCPUs")
UNKNOWN = 1.0
"""FLOP/s of a device of which a profile gives times only; its ops state no FLOPs, so that they use none of it."""
ACCELERATOR: Literal["gpu"] = "gpu"
CPU: Literal["cpu"] = "cpu"


def recognises(document: object) -> bool:
    """Is this parsed JSON of this format?"""
    return isinstance(document, Mapping) and says(document, _HEAD, ("fpgaLatency", "cpuLatency", "supportedOnFpga"))


def read(
    path: Path | str,
    *,
    devices: int | None = None,
    memory: float | None = None,
    bandwidth: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """The problem of one file (.json or .json.xz); arguments override what it says.

    Args:
        devices: accelerators.
        memory: bytes of one.
        bandwidth: bytes/s to host memory; the costs become those of the edges' sizes.
        micro_batches: samples a step.

    Raises:
        InputError: names file and field.
    """
    path = Path(path)
    return parse(
        load(path), str(path), devices=devices, memory=memory, bandwidth=bandwidth, micro_batches=micro_batches
    )


def parse(
    document: Any,
    file: str,
    *,
    devices: int | None = None,
    memory: float | None = None,
    bandwidth: float | None = None,
    micro_batches: int | None = None,
) -> Problem:
    """`read`, of a parsed document."""
    overrides_checked(file, devices=devices, memory=memory, bandwidth=bandwidth, micro_batches=micro_batches)
    top = Fields(document, file)
    nodes = nodes_by_id(top, file)
    edges = _edges(top, nodes, bandwidth)
    backward = {v: node.flag("isBackwardNode", False) for v, node in nodes.items()}
    order = in_order(nodes, edges, file)
    first: dict[int, int] = {}
    colors = [(v, node.ident("colorClass")) for v, node in nodes.items() if "colorClass" in node.value]
    one_piece(nodes, [*edges, *((v, first.setdefault(color, v)) for v, color in colors)], file)
    reads: dict[int, list[int]] = {v: [] for v in nodes}
    for a, b in edges:
        reads[b].append(a)
    tensors, ops, records = [], [], {}
    sizes = {a: size for (a, _), (_, size) in reversed(edges.items())}
    for v in order:
        node = nodes[v]
        phase: Phase = "backward" if backward[v] else "forward"
        tensors.append(Tensor(_tensor(v), sizes.get(v, 0.0)))
        runs_on = (ACCELERATOR, CPU) if node.flag("supportedOnFpga") else (CPU,)
        extra = {k: node.value[k] for k in ("name", "layerId") if k in node.value}
        kwargs = (*extra.items(), ("sizes", tuple(edges[a, v][1] for a in reads[v])))
        color = str(node.ident("colorClass")) if "colorClass" in node.value else ""
        ops.append(
            Op(
                str(v),
                "profiled",
                tuple(_tensor(a) for a in reads[v]),
                (_tensor(v),),
                Rule((), ((),) * len(reads[v]), ((),)),
                phase=phase,
                colocate=color,
                runs_on=runs_on,
                kwargs=kwargs,
            )
        )
        times = {ACCELERATOR: node.number("fpgaLatency"), CPU: node.number("cpuLatency")}
        on = {kind: {phase: seconds} for kind, seconds in times.items()}
        records[str(v)] = OpRecord(on[ACCELERATOR], on, static=node.number("size", 0.0))
    transfers = {
        (_tensor(a), str(b)): TransferRecord(size if cost else 0.0, cost) for (a, b), (cost, size) in edges.items()
    }
    transfers |= {(_tensor(a), ""): transfers[_tensor(a), str(b)] for a, b in reversed(edges)}
    ends = tuple(_tensor(v) for v in order if v not in {a for a, _ in edges})
    training = any(backward.values())
    graph = Graph(tuple(ops), tuple(tensors), 1, "explicit" if training else "none", outputs=ends)
    return Problem(
        replace(graph, digest=digest_of(graph)),
        _cluster(top, devices, memory, bandwidth),
        Recorded(records, transfers, scale=MILLI),
        Recipe(micro_batches or 1, "none", 0.0, "float32", "float32"),
        limits=Limits(keep_free=0.0),
    )


def write(problem: Problem) -> dict[str, Any]:
    """The document that `read` makes this problem from.

    Raises:
        Unsupported: a problem whose prices were not recorded this way; `export` makes one from any graph.
    """
    graph, cost = problem.graph, problem.cost
    if not isinstance(cost, Recorded):
        raise Unsupported(f"prices of {cost.name} are no profile: export the graph first, which prices every op")
    kinds = [problem.cluster.type_of(d).kind for d in range(problem.cluster.count)]
    unit = MILLI / cost.scale
    nodes = []
    for op in graph.ops:
        record = cost.ops[op.name]
        extra = {k: v for k, v in op.kwargs if k in ("name", "layerId")}
        node: dict[str, Any] = {"id": int(op.name), **extra, "supportedOnFpga": ACCELERATOR in op.runs_on}
        for field, kind in (("fpgaLatency", ACCELERATOR), ("cpuLatency", CPU)):
            node[field] = record.on[kind][op.phase] / unit
        node |= {"size": record.static, "isBackwardNode": op.phase == "backward"}
        if op.colocate:
            node["colorClass"] = int(op.colocate)
        nodes.append(node)
    edges = []
    for op in graph.ops:
        sizes = dict(op.kwargs)["sizes"]
        assert isinstance(sizes, tuple)
        for name, size in zip(op.inputs, sizes):
            source = graph.ops[graph.producer[name]].name
            seconds = cost.transfers[name, op.name].seconds
            edges.append({"sourceId": int(source), "destId": int(op.name), "cost": seconds / unit, "size": size})
    memory = problem.cluster.type_of(kinds.index(ACCELERATOR)).memory if ACCELERATOR in kinds else 0.0
    return {
        "maxSizePerFPGA": memory, "maxFPGAs": kinds.count(ACCELERATOR), "maxCPUs": kinds.count(CPU),
        "nodes": nodes, "edges": edges,
    }  # fmt: skip


def export(problem: Problem) -> dict[str, Any]:
    """The document of any priced graph: one node per op, times at `Graph.samples`, a derived backward with its forward.

    Ops that read one parameter share a colour; a parameter's weight, gradient and state count at its first reader. Bytes
    and milliseconds; a cluster without CPUs gives maxCPUs = 0.

    Raises:
        InputError: the cluster has no accelerator.
    """
    graph, cost, cluster, recipe = problem.graph, problem.cost, problem.cluster, problem.recipe
    kinds = [cluster.type_of(d).kind for d in range(cluster.count)]
    fast = next((d for d, kind in enumerate(kinds) if kind != CPU), None)
    if fast is None:
        raise InputError(f"cluster {cluster.name} has no accelerator: this format needs one")
    host = next((d for d, kind in enumerate(kinds) if kind == CPU), None)
    far = host if host is not None else max(d for d, kind in enumerate(kinds) if kind != CPU)
    derived = graph.training == "derived"
    first_reader = {t.name: min((i for i, _ in graph.consumers.get(t.name, ())), default=-1) for t in graph.params()}
    use, grads, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
    copy = master if recipe.param_dtype != recipe.compute_dtype else 0
    each = use + grads + copy + recipe.state_bytes if derived else use
    nodes, edges = [], []
    for i, op in enumerate(graph.ops):
        sizes = np.array([[f.size for f in op.rule.factors]], np.int64)
        phases: tuple[Phase, ...] = ("forward", "backward") if derived else (op.phase,)

        def time_on(device: int, op: Op = op, sizes: Ints = sizes, phases: tuple[Phase, ...] = phases) -> float:
            priced = (float(cost.compute(op, sizes, cluster.type_of(device), phase)[0]) for phase in phases)
            return sum(priced) / MILLI

        memory = cost.memory(op, sizes)
        owned = [t for t in op.inputs if first_reader.get(t) == i]
        held = float(memory.static[0]) + (float(memory.kept[0]) if derived else 0.0)
        held += sum(
            each * graph.tensor[t].nbytes / ITEM_BYTES.get(graph.tensor[t].dtype, 4) for t in dict.fromkeys(owned)
        )
        shared = [t for t in op.inputs if t in first_reader and len({k for k, _ in graph.consumers[t]}) > 1]
        node: dict[str, Any] = {
            "id": i, "name": op.name, "supportedOnFpga": True, "fpgaLatency": time_on(fast),
            "cpuLatency": time_on(host) if host is not None else 0.0, "size": held, "isBackwardNode": op.phase == "backward",
        }  # fmt: skip
        if shared:
            node["colorClass"] = first_reader[shared[0]]
        nodes.append(node)
        readers: dict[int, float] = {}
        price = 0.0
        for t in op.outputs:
            nbytes = graph.tensor[t].nbytes
            for reader, _ in graph.consumers.get(t, ()):
                readers[reader] = readers.get(reader, 0.0) + nbytes
            if graph.consumers.get(t) and far != fast:
                price += float(cost.transfer(np.array([nbytes]), fast, far, cluster, tensor=t)[0]) / MILLI
        edges += [
            {"sourceId": i, "destId": reader, "cost": price * (2 if derived else 1), "size": size}
            for reader, size in readers.items()
        ]
    return {
        "maxSizePerFPGA": problem.limits.usable(cluster.type_of(fast).memory),
        "maxFPGAs": sum(kind != CPU for kind in kinds), "maxCPUs": kinds.count(CPU), "nodes": nodes, "edges": edges,
    }  # fmt: skip


def read_split(path: Path | str, problem: Problem) -> Plan:
    """A split made by hand (fields fpgas and cpus, each a list of devices with their nodes), as a plan of `problem`.

    Backward nodes that it does not name go where their colour is.

    Raises:
        InputError: a node that the graph has not, or that is nowhere or twice; more devices than the problem has.
    """
    top = Fields(load(Path(path)), str(path))
    graph, cluster = problem.graph, problem.cluster
    kinds = [cluster.type_of(d).kind for d in range(cluster.count)]
    place: dict[str, int] = {}
    for field, kind in (("fpgas", ACCELERATOR), ("cpus", CPU)):
        devices = [d for d, k in enumerate(kinds) if k == kind]
        for k, row in enumerate(top.rows(field)):
            nodes = [str(v) for v in row.value.get("nodes", ())]
            if nodes and k >= len(devices):
                raise InputError(f"{path}: {field} lists {k + 1} devices, the problem has {len(devices)}")
            for name in nodes:
                if name not in graph.position:
                    raise row.wrong("nodes", name, "the id of a node of the graph")
                if name in place:
                    raise row.wrong("nodes", name, "each node on one device")
                place[name] = devices[k]
    colors = {op.colocate: place[op.name] for op in graph.ops if op.name in place and op.colocate}
    for op in graph.ops:
        if op.name not in place and op.colocate in colors:
            place[op.name] = colors[op.colocate]
        if op.name not in place:
            raise InputError(f"{path}: node {op.name} is on no device: each must be on one")
    stages = []
    for device in dict.fromkeys(place[op.name] for op in graph.ops):
        stages.append(Stage(tuple(op.name for op in graph.ops if place[op.name] == device), Mesh((device,))))
    return Plan(graph.digest, problem.recipe.samples, tuple(stages), Schedule("dataflow", problem.recipe.samples))


def _edges(
    top: Fields, nodes: Mapping[int, Fields], bandwidth: float | None
) -> dict[tuple[int, int], tuple[float, float]]:
    """(source, reader) -> (cost, size), in the order of the file; costs of one source agree."""
    found: dict[tuple[int, int], tuple[float, float]] = {}
    costs: dict[int, float] = {}
    widest: dict[int, float] = {}
    for edge in top.rows("edges"):
        ends = edge.ident("sourceId"), edge.ident("destId")
        for name, v in zip(("sourceId", "destId"), ends):
            if v not in nodes:
                raise edge.wrong(name, v, "the id of a node")
        if ends in found:
            raise edge.wrong("destId", ends[1], f"one edge from {ends[0]} to it")
        cost, size = edge.number("cost"), edge.number("size", 0.0)
        if abs(costs.setdefault(ends[0], cost) - cost) > 1e-6:
            raise edge.wrong("cost", cost, f"{costs[ends[0]]}, as on the other edges of source {ends[0]}")
        widest[ends[0]] = max(size, widest.get(ends[0], 0.0))
        found[ends] = (cost, size)
    if bandwidth is not None:
        return {ends: (widest[ends[0]] / bandwidth / MILLI, size) for ends, (_, size) in found.items()}
    return {ends: (costs[ends[0]], size) for ends, (_, size) in found.items()}


def _cluster(top: Fields, devices: int | None, memory: float | None, bandwidth: float | None) -> Cluster:
    k = top.whole("maxFPGAs") if devices is None else devices
    cpus = top.whole("maxCPUs")
    if k < 1 and cpus < 1:
        raise top.wrong("maxFPGAs", k, "at least one device of either kind")
    for name, count in (("maxFPGAs", k), ("maxCPUs", cpus)):
        if count > MOST:
            raise top.wrong(name, count, f"at most {MOST:,} devices")
    room = top.number("maxSizePerFPGA") if memory is None else memory
    rate = bandwidth or HOST_BANDWIDTH
    types = (
        DeviceType("accelerator", ACCELERATOR, room, {"float32": UNKNOWN}, 0.0, rate),
        DeviceType("host", CPU, inf, {"float32": UNKNOWN}, 0.0),
    )
    device = (0,) * k + (1,) * cpus
    host = (*((k if cpus else -1),) * k, *range(k, k + cpus)) if cpus else ()
    return Cluster("profiled", types, k + cpus, device, (Level("host", k + cpus, rate),), host=host)


def _tensor(node: int) -> str:
    return f"{node}:out"
