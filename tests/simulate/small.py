"""A chain of equal blocks and a cost model of a few lines: truth by hand for the simulator's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from meshwright.cluster.model import Cluster, DeviceType, Level, Mesh
from meshwright.cost.base import Collective, CostModel, Group, OpMemory
from meshwright.graph.ir import Factor, Floats, Graph, Ints, Op, Phase, Rule, Run, Slot, Tensor
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.problem import Limits, Problem, Recipe

SAMPLES = 8


class Rates(CostModel):
    """Products at `flops` a second, bytes at `bandwidth`, collectives = bytes · hops over `link`."""

    name: ClassVar[str] = "rates"

    def __init__(
        self, *, flops: float = 1e6, bandwidth: float = 1e6, link: float = 1e6, floor: float = 0.0, share: float = 0.5
    ) -> None:
        self.flops, self.bandwidth, self.link, self.floor, self.share = flops, bandwidth, link, floor, share
        self.calls = 0

    def compute(self, op: Op, sizes: Ints, device: DeviceType, phase: Phase, variant: str = "") -> Floats:
        self.calls += 1
        once = 2.0 * np.prod(sizes, axis=1) / self.flops
        return once * (2.0 if phase == "backward" else 1.0)

    def traffic(self, nbytes: Floats, device: DeviceType) -> Floats:
        return np.asarray(nbytes / self.bandwidth)

    def memory(self, op: Op, sizes: Ints, variant: str = "") -> OpMemory:
        zero = np.zeros(len(sizes))
        return OpMemory(zero, zero + np.prod(sizes, axis=1), zero)

    def collective(self, kind: Collective, nbytes: Floats, group: Group) -> Floats:
        self.calls += 1
        n = int(np.prod([group.mesh.size(a) for a in group.axes]))
        return np.asarray(nbytes * (n - 1) / n * (2 if kind == "all_reduce" else 1) / self.link)

    def transfer(
        self, nbytes: Floats, src: int, dst: int, cluster: Cluster, *, tensor: str = "", consumer: str = ""
    ) -> Floats:
        return np.asarray(nbytes / self.link)

    def launch_floor(self, ops: Sequence[Op], device: DeviceType, phase: Phase) -> float:
        return self.floor

    def overlap(self, kind: str) -> float:
        return self.share


def chain(blocks: int = 4, width: int = 16) -> Graph:
    """x -> linear -> (linear, relu) × blocks -> mean; every block alike, with its own weight."""
    ops: list[Op] = []
    tensors = [Tensor("x", 4.0 * SAMPLES * width, (SAMPLES, width), role="input")]
    m, k, n = Factor("m", SAMPLES, samples=True), Factor("k", width), Factor("n", width)
    linear = Rule((m, n, k), ((("m",), ("k",)), (("n",), ("k",))), ((("m",), ("n",)),))
    relu = Rule((m, n), ((("m",), ("n",)),), ((("m",), ("n",)),))
    whole = 4.0 * SAMPLES * width
    flops = 2.0 * SAMPLES * width * width
    ops.append(
        Op(
            "start", "linear", ("x", "head"), ("start",), linear, flops, ("x", "head"),
            call="aten.linear.default", args=(Slot(0), Slot(1)),
        )
    )  # fmt: skip
    tensors += [
        Tensor("head", 4.0 * width * width, (width, width), role="param"),
        Tensor("start", whole, (SAMPLES, width)),
    ]
    before = "start"
    for b in range(blocks):
        w, y, z = f"layers.{b}.weight", f"layers.{b}/linear", f"layers.{b}/relu"
        tensors += [
            Tensor(w, 4.0 * width * width, (width, width), role="param"),
            Tensor(y, whole, (SAMPLES, width)),
            Tensor(z, whole, (SAMPLES, width)),
        ]
        ops += [
            Op(
                y, "linear", (before, w), (y,), linear, flops, (before, w), module=f"layers.{b}",
                call="aten.linear.default", args=(Slot(0), Slot(1)),
            ),
            Op(
                z, "relu", (y,), (z,), relu, saved=(z,), module=f"layers.{b}", call="aten.relu.default", args=(Slot(0),)
            ),
        ]  # fmt: skip
        before = z
    mean = Rule((m, n), ((("m",), ("n",)),), ((),))
    tensors.append(Tensor("loss", 4.0))
    ops.append(Op("loss", "mean", (before,), ("loss",), mean, call="aten.mean.default", args=(Slot(0),)))
    return Graph(
        tuple(ops), tuple(tensors), SAMPLES, inputs=("x",), outputs=("loss",), loss="loss",
        runs=(Run("layers", 1, 2, blocks),), digest=f"chain-{blocks}-{width}",
    )  # fmt: skip


def cluster(count: int, memory: float = 1e9) -> Cluster:
    kind = DeviceType("toy", "gpu", memory, {"float32": 1e6, "bfloat16": 1e6}, 1e6)
    return Cluster("toy", (kind,), count, levels=(Level("node", count, 1e6),))


def problem(graph: Graph, count: int, cost: CostModel | None = None, memory: float = 1e9, samples: int = 64) -> Problem:
    recipe = Recipe(samples, state_bytes=8.0, compute_dtype="float32")
    return Problem(graph, cluster(count, memory), cost or Rates(), recipe, limits=Limits(keep_free=0.0))


def pipeline(
    graph: Graph,
    p: int,
    m: int,
    *,
    v: int = 1,
    dp: int = 1,
    name: str = "1f1b",
    samples: int = 64,
    recompute: bool = False,
) -> Plan:
    """Blocks dealt evenly to p · v stages, samples cut over dp replicas."""
    run = graph.runs[0]
    each = run.count // (p * v)
    first, last = graph.ops[: run.first], graph.ops[run.first + run.length * run.count :]
    # Representatives only: an entry for a later block would say that it is unlike the others.
    spoken = (*first, *graph.ops[run.first : run.first + run.length], *last)
    sample = {o.name: tuple(f.name for f in o.rule.factors if f.samples) for o in spoken}
    shardings = {o: OpSharding({f: (Cut("dp"),) for f in fs}) for o, fs in sample.items()} if dp > 1 else {}
    again = frozenset(o.name for o in graph.ops[run.first : run.first + run.length]) if recompute else frozenset()
    stages = []
    for s in range(p * v):
        ops = [o.name for o in first] if s == 0 else []
        ops.append(f"{run.name}[{s * each}:{(s + 1) * each}]")
        ops += [o.name for o in last] if s == p * v - 1 else []
        r = s % p
        mesh = Mesh(range(r * dp, (r + 1) * dp), ("dp",), (dp,))
        stages.append(Stage(tuple(ops), mesh, shardings, recompute=again))
    return Plan(graph.digest, samples, tuple(stages), Schedule(name, m, {"v": v} if v > 1 else {}))
