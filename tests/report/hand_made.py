"""A small answered problem with hand-made figures, so that layout and wording can be checked without a search."""

from __future__ import annotations

import numpy as np

from meshwright.cluster.model import Cluster, DeviceType, Level, Mesh
from meshwright.graph.ir import Graph, Op, Rule, Run, Tensor
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from meshwright.report.candidates import Candidate
from meshwright.simulate.result import CATEGORIES, Event, Lane, Simulation

GIB = 2.0**30


def small_graph() -> Graph:
    ops = tuple(
        Op(f"model.layers.{i}/linear", "linear", (f"x{i}", f"model.layers.{i}.w"), (f"x{i + 1}",), Rule((), (), ()))
        for i in range(4)
    )
    tensors = [Tensor("x0", 8 * 16 * 4, (8, 16), role="input")]
    for i in range(4):
        tensors += [Tensor(f"model.layers.{i}.w", 1024, (16, 16), role="param"), Tensor(f"x{i + 1}", 512, (8, 16))]
    return Graph(ops, tuple(tensors), 8, runs=(Run("model.layers", 0, 1, 4),), digest="d")


def hopper(count: int) -> Cluster:
    kind = DeviceType("H100-80GB", "gpu", 79.6 * GIB, {"bfloat16": 989e12}, 3.35e12, family="h100")
    return Cluster(f"h100x{count}", (kind,), count, levels=(Level("node", 8, 450e9), Level("fabric", count, 50e9)))


def simulation(step: float, parts: dict[str, float], memory: dict[str, float], lanes: int = 1) -> Simulation:
    """Times in seconds, memory in GiB; the parts are scaled to the step."""
    scale = step / sum(parts.values())
    peak = np.array([sum(memory.values()) * GIB * (1 - 0.1 * k) for k in range(lanes)])
    events = tuple(
        Event(lane, "compute", f"{kind}{m}", kind, lane, m, start + m * 0.2 + lane * 0.1, 0.09)
        for lane in range(lanes)
        for kind, start in (("F", 0.0), ("B", 1.0))
        for m in range(4)
    )
    table = np.zeros((3, len(CATEGORIES)))
    for k, name in enumerate(CATEGORIES):
        table[:, k] = [0.5 * memory.get(name, 0), memory.get(name, 0), 0.6 * memory.get(name, 0)]
    return Simulation(
        step_seconds=step,
        samples_per_second=1024 / step,
        mfu=0.464,
        bubble=0.02,
        exposed_communication=step - parts.get("compute", 0) * scale,
        lanes=tuple(Lane(f"stage {k}", 64 // lanes, 64 // lanes * k, (k,)) for k in range(lanes)),
        peak=peak,
        peak_by=tuple({k: v * GIB * (1 - 0.1 * i) for k, v in memory.items()} for i in range(lanes)),
        memory_at=tuple(np.array([0.0, 0.5 * step, step]) for _ in range(lanes)),
        memory=tuple(table * GIB * (1 - 0.1 * i) for i in range(lanes)),
        seconds_by={k: v * scale for k, v in parts.items()},
        events=events,
        priced_by="analytic",
        calls_by={"all_gather": 129, "reduce_scatter": 129},
        bytes_by={"all_gather": 3e10, "reduce_scatter": 3e10},
    )


def small_plan(devices: int = 64, stages: int = 1) -> Plan:
    sharded = Layout((((0, (Cut("dp"),)),), ((0, ()),)))
    per = devices // stages
    block = 4 // stages
    return Plan(
        "d",
        1024,
        tuple(
            Stage(
                (f"model.layers[{block * k}:{block * (k + 1)}]",),
                Mesh(range(per * k, per * (k + 1)), ("dp",), (per,)),
                {"model.layers.0/linear": OpSharding({"m": (Cut("dp"),)})},
                storage={"model.layers.0.w": Storage(grad=sharded, state=sharded)},
            )
            for k in range(stages)
        ),
        Schedule("1f1b" if stages > 1 else "gpipe", 16),
    )


def priced(layout: str, step: float, memory: float, **more: object) -> Candidate:
    values = {"micro_batch": 1, "micro_batches": 16, "mfu": 0.464 * 15.6 / step, "over_bytes": 0.0} | more
    return Candidate(
        layout,
        step_s=step,
        tokens_per_s_per_device=1024 * 8192 / step / 64,
        memory_bytes=memory * GIB,
        **values,  # type: ignore[arg-type]
    )
