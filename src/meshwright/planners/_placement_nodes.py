"""A problem as a placement: times in milliseconds at `Graph.samples`, from whatever cost model it has."""

from __future__ import annotations

from math import inf

import numpy as np

from ..cluster.model import DeviceType
from ..cost.recorded import Recorded
from ..errors import InputError, Unsupported
from ..graph.ir import ITEM_BYTES, Ints, Op, Phase
from ..plan.lookup import stage_ops
from ..plan.model import Plan
from ..plan.problem import Problem
from ..solvers.placement import Placement

MILLI = 1e3


def devices_of(problem: Problem) -> tuple[list[int], list[int]]:
    """Devices that are accelerators, and CPUs; where there is one kind only, all count as accelerators."""
    cluster = problem.cluster
    count = cluster.count
    cpus = [d for d in range(count) if cluster.type_of(d).kind == "cpu"]
    others = [d for d in range(count) if cluster.type_of(d).kind != "cpu"]
    if not others:
        cpus, others = [], cpus
    return others[: problem.limits.devices or None], cpus


def placement_of(problem: Problem, memory: float | None = None) -> Placement:
    """The nodes of a problem; a derived backward is priced with its forward, its gradients travel back.

    Raises:
        Unsupported: accelerators of several types, whose times the method has no place for.
    """
    graph, cost, cluster = problem.graph, problem.cost, problem.cluster
    accelerators, cpus = devices_of(problem)
    types = {cluster.type_of(d).name for d in accelerators}
    if len(types) > 1:
        raise Unsupported(f"dnn_partitioning knows one type of accelerator beside CPUs, the cluster has {len(types)}")
    fast, slow = cluster.type_of(accelerators[0]), cluster.type_of(cpus[0]) if cpus else None
    derived = graph.training == "derived"
    p, q, size, moved = [], [], [], []
    far = cpus[0] if cpus else accelerators[-1]
    owners = _owners(problem)
    for i, op in enumerate(graph.ops):
        sizes = np.array([[f.size for f in op.rule.factors]], np.int64)
        phase: Phase = op.phase if graph.training == "explicit" else "forward"

        def seconds(device: DeviceType, op: Op = op, sizes: Ints = sizes, phase: Phase = phase) -> float:
            phases: tuple[Phase, ...] = (phase, "backward") if derived else (phase,)
            return MILLI * sum(float(cost.compute(op, sizes, device, x)[0]) for x in phases)

        on_fast = not op.runs_on or fast.kind in op.runs_on
        p.append(seconds(fast) if on_fast else inf)
        q.append(seconds(slow) if slow is not None and (not op.runs_on or slow.kind in op.runs_on) else inf)
        held = cost.memory(op, sizes)
        size.append(float(held.static[0]) + (float(held.kept[0]) if derived else 0.0) + owners.get(i, 0.0))
        out = [t for t in op.outputs if graph.consumers.get(t)]
        nbytes = np.array([graph.tensor[t].nbytes for t in out])
        price = sum(
            float(cost.transfer(nbytes[k : k + 1], accelerators[0], far, cluster, tensor=t)[0])
            for k, t in enumerate(out)
            if far != accelerators[0]
        )
        moved.append(MILLI * price * (2 if derived else 1))
    edges = sorted({(graph.producer[t], i) for i, op in enumerate(graph.ops) for t in op.inputs if t in graph.producer})
    room = problem.limits.usable(fast.memory) if memory is None else memory
    return Placement(
        np.array(p), np.array(q), np.array(size), np.array(moved), _colors(problem),
        tuple(op.phase == "backward" for op in graph.ops), tuple(edges), len(accelerators), len(cpus), room,
    )  # fmt: skip


def split_of(problem: Problem, plan: Plan) -> tuple[int, ...]:
    """Position of each node's device among accelerators and CPUs.

    Raises:
        Unsupported: a stage on several devices, or a device that the search does not use.
    """
    accelerators, cpus = devices_of(problem)
    place = {d: k for k, d in enumerate((*accelerators, *cpus))}
    split = [-1] * len(problem.graph.ops)
    for s, stage in enumerate(plan.stages):
        if len(stage.mesh.devices) != 1:
            raise Unsupported(f"stage {s} has {len(stage.mesh.devices)} devices: dnn_partitioning puts a node on one")
        device = stage.mesh.devices[0]
        if device not in place:
            raise Unsupported(f"stage {s} is on device {device}, which the limit on devices leaves out")
        for i in stage_ops(problem.graph, stage):
            split[i] = place[device]
    return tuple(split)


def _owners(problem: Problem) -> dict[int, float]:
    """First reader of each parameter -> bytes of weight, gradient and optimizer state that it brings along."""
    graph, recipe = problem.graph, problem.recipe
    if isinstance(problem.cost, Recorded) or graph.training != "derived":
        return {}
    use, grads, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
    copy = master if recipe.param_dtype != recipe.compute_dtype else 0
    found: dict[int, float] = {}
    for tensor in graph.params():
        uses = graph.consumers.get(tensor.name, ())
        if uses:
            elements = tensor.nbytes / ITEM_BYTES.get(tensor.dtype, 4)
            first = min(i for i, _ in uses)
            found[first] = found.get(first, 0.0) + elements * (use + grads + copy + recipe.state_bytes)
    return found


def _colors(problem: Problem) -> tuple[int, ...]:
    """One number per node: nodes of one colocation key, or that read one parameter, share theirs."""
    graph = problem.graph
    leader = list(range(len(graph.ops)))

    def find(v: int) -> int:
        while leader[v] != v:
            leader[v] = leader[leader[v]]
            v = leader[v]
        return v

    keys: dict[tuple[str, str], int] = {}
    for i, op in enumerate(graph.ops):
        shared = [("color", op.colocate)] if op.colocate else []
        shared += [("param", graph.aliases.get(t, t)) for t in op.inputs if graph.tensor[t].role == "param"]
        for key in shared:
            leader[find(i)] = find(keys.setdefault(key, i))
    if not graph.ops:
        raise InputError("the graph has no ops: nothing to place")
    return tuple(find(v) for v in range(len(leader)))
