"""PipeDream-2BW (Narayanan et al., ICML 2021, arXiv 2006.09503): double-buffered weights, no flush, delay one update.

Exhaustive over width w times depth d = all devices, micro-batch b, and recomputation nowhere or everywhere, for a model of
equal blocks (section 3.3):

    t(stage)   = max(compute + transfers, sum of gradients / m)         transfers are not hidden, the sum is
    throughput = w · b / max t
    memory     = 2 |W| / d + |A|                                        without recomputation: d micro-batches in flight
               = 2 |W| / d + |A| / d + d · |A_in|                       with it

with m = batch / (w · b) >= d, so that two weight versions suffice. Replicas, or else the stages of a pipeline, stand next
to each other: both are tried. The sum counts 4 (w − 1) / w · |W| as the authors' planners do, a ring would be half of it.
The formula for memory has no gradients and no optimizer state: `training_state` adds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..cluster.model import Mesh
from ..errors import Infeasible, InputError, Unsupported
from ..graph.ir import ITEM_BYTES
from ..plan.lookup import recomputes, stage_ops
from ..plan.model import Plan, Schedule, Stage, Weights
from ..plan.problem import Problem
from ._blocks import Part, block_ends, divisors, equal_parts, grids, slowest
from ._checked import wholes
from ._profile import Profile, by_samples, profile_of
from .base import Planner
from .registry import register
from .types import Info, Json, Run

EXTRA = 4.0 / 3.0
"""Compute with one more forward, at a backward of two forwards (the paper's c_extra)."""
GIB = 2.0**30
Grid = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """One point of the search."""

    devices: Grid
    micro: int
    micro_batches: int
    recompute: bool

    @property
    def depth(self) -> int:
        return len(self.devices)

    @property
    def width(self) -> int:
        return len(self.devices[0])


def stage_seconds(compute: float, transfers: float, gradients: float, micro_batches: int) -> float:
    """Seconds of a stage for one micro-batch; `gradients` are those of their sum, once in `micro_batches`."""
    return max(compute + transfers, gradients / micro_batches)


def memory_bytes(
    weights: float, stored: float, received: float, depth: int, recompute: bool, versions: int = 2
) -> float:
    """Bytes of a worker: of the model's weights and stored activations, and what a stage receives. Flush: 1 version."""
    held = stored / depth + depth * received if recompute else stored
    return versions * weights / depth + held


@register
class PipeDream2BW(Planner):
    """Width, depth, micro-batch and recomputation of most throughput.

    Args:
        micro_batches: sizes b to try, in samples; None = powers of two up to the batch.
        sums: "authors" (4 (w − 1) / w) or "ring" (2 (w − 1) / w).
        training_state: count gradients and optimizer state, too.
    """

    info = Info(
        name="pipedream_2bw",
        title="Memory-Efficient Pipeline-Parallel DNN Training",
        year=2021,
        reference="arXiv 2006.09503",
        decides=frozenset({"stages", "replicas", "schedule", "recompute"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )
    unit = "s/sample"

    def __init__(
        self,
        *,
        micro_batches: tuple[int, ...] | None = None,
        sums: Literal["authors", "ring"] = "authors",
        training_state: bool = False,
    ) -> None:
        if sums not in ("authors", "ring"):
            raise InputError(f'pipedream_2bw has no sums "{sums}": there are authors and ring')
        wholes("pipedream_2bw", "micro_batches", micro_batches, "samples")
        self.micro_batches = micro_batches
        self.sums = sums
        self.training_state = training_state

    def search(self, problem: Problem, run: Run) -> Json:
        """Every shape; the bound is proven if memory refused none."""
        best: tuple[float, Shape] | None = None
        tightest = ""
        excess = float("inf")
        refused = 0
        profiles: dict[int, Profile] = {}
        for shape in self._shapes(problem):
            if shape.micro not in profiles:
                profiles[shape.micro] = profile_of(problem, shape.micro)
            parts = equal_parts(profiles[shape.micro], shape.depth)
            if parts is None:
                continue
            over, why = self._over(problem, shape, parts)
            if over > 0:
                refused += 1
                if over < excess:
                    excess, tightest = over, why
            else:
                value = self._value(problem, shape, parts)
                if best is None or value < best[0]:
                    best = (value, shape)
                    plan = self._plan(problem, profiles[shape.micro], shape, parts)
                    run.offer(value, lambda plan=plan: plan)  # type: ignore[misc]
            run.tick(1, "shapes")
        if best is None:
            raise Infeasible(tightest or self._no_shape(problem))
        if not refused:
            run.bound(best[0])
        shape = best[1]
        return {
            "width": shape.width, "depth": shape.depth, "micro_batch": shape.micro,
            "micro_batches": shape.micro_batches, "recompute": shape.recompute, "throughput": 1.0 / best[0],
        }  # fmt: skip

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Seconds a sample in the steady state.

        Raises:
            Unsupported: not equal replicas of stages of equally many blocks, recomputed everywhere or nowhere, m >= d.
        """
        return max(self.loads(problem, plan))

    def loads(self, problem: Problem, plan: Plan) -> tuple[float, ...]:
        """Seconds a sample of each stage; raises what `objective` raises."""
        devices = tuple(tuple(stage.mesh.devices) for stage in plan.stages)
        m, depth, width = plan.schedule.micro_batches, len(devices), len(devices[0])
        micro, left = divmod(plan.samples, m * width)
        again = {recomputes(problem.graph, stage, i) for stage in plan.stages for i in stage_ops(problem.graph, stage)}
        if left or m < depth or len(again) > 1 or any(len(own) != width for own in devices):
            raise Unsupported(
                "pipedream_2bw prices equal replicas with at least as many micro-batches as stages, recomputed everywhere "
                "or nowhere"
            )
        profile = profile_of(problem, micro)
        parts = equal_parts(profile, depth)
        if parts is None or [set(p.nodes) for p in parts] != [set(nodes) for nodes in profile.parts(plan)]:
            raise Unsupported("pipedream_2bw prices stages of equally many blocks")
        return self._stages(problem, Shape(devices, micro, m, again == {True}), parts)

    def _shapes(self, problem: Problem) -> Iterator[Shape]:
        count, samples = problem.limits.devices or problem.cluster.count, problem.recipe.samples
        sizes = self.micro_batches or tuple(2**k for k in range(samples.bit_length()))
        for depth in divisors(count):
            width = count // depth
            for micro in sizes:
                m, left = divmod(samples, width * micro)
                if left or m < depth or m < 1:
                    continue
                for devices in grids(count, width, depth):
                    for recompute in (False, True):
                        yield Shape(devices, micro, m, recompute)

    def _value(self, problem: Problem, shape: Shape, parts: tuple[Part, ...]) -> float:
        return max(self._stages(problem, shape, parts))

    def _stages(self, problem: Problem, shape: Shape, parts: tuple[Part, ...]) -> tuple[float, ...]:
        """Seconds a sample of each stage."""
        cluster = problem.cluster
        extra = EXTRA if shape.recompute else 1.0
        found = []
        for s, part in enumerate(parts):
            transfers = 0.0
            for other, sent in ((s - 1, parts[s - 1].sent if s else 0.0), (s + 1, part.sent)):
                if sent and 0 <= other < shape.depth:
                    transfers += sent / slowest(cluster, (shape.devices[s][0], shape.devices[other][0]))[0]
            factor = 4.0 if self.sums == "authors" else 2.0
            width = shape.width
            gradients = factor * (width - 1) / width * part.params / slowest(cluster, shape.devices[s])[0]
            compute = (part.forward + part.backward) * extra
            seconds = stage_seconds(compute, transfers, gradients, shape.micro_batches)
            found.append(seconds / (shape.width * shape.micro))
        return tuple(found)

    def _over(self, problem: Problem, shape: Shape, parts: tuple[Part, ...]) -> tuple[float, str]:
        """(bytes above what a device may hold, in words)."""
        weights, stored = sum(p.params for p in parts), sum(p.stored for p in parts)
        received = max((p.sent for p in parts), default=0.0)
        need = memory_bytes(weights, stored, received, shape.depth, shape.recompute)
        if self.training_state:
            state = 1.0 + problem.recipe.state_bytes / ITEM_BYTES[problem.recipe.param_dtype]
            need += state * weights / shape.depth
        usable = problem.limits.usable(problem.cluster.type_of(0).memory)
        return need - usable, (
            f"the smallest shape, {shape.width} x {shape.depth} with micro-batches of {shape.micro}, needs {need / GIB:.3g} GiB "
            f"a device for two weight versions and {'recomputed' if shape.recompute else 'stored'} activations, over the "
            f"usable {usable / GIB:.3g}"
        )

    def _no_shape(self, problem: Problem) -> str:
        blocks = len(block_ends(profile_of(problem, 1)))
        count = problem.limits.devices or problem.cluster.count
        return (
            f"no width and depth of {count} devices divide {problem.recipe.samples} samples into at least as many "
            f"micro-batches as stages and {blocks} blocks into equal stages"
        )

    def _plan(self, problem: Problem, profile: Profile, shape: Shape, parts: tuple[Part, ...]) -> Plan:
        graph = problem.graph
        shardings = by_samples(graph, "data") if shape.width > 1 else {}
        stages = []
        for part, devices in zip(parts, shape.devices):
            mesh = Mesh(devices, ("data",), (len(devices),))
            stage = Stage(profile.entries(part.nodes), mesh, shardings)
            if shape.recompute:
                again = frozenset(graph.ops[graph.representative[i]].name for i in stage_ops(graph, stage))
                stage = Stage(stage.ops, mesh, shardings, recompute=again)
            stages.append(stage)
        weights = Weights(flush=False, update_every=shape.micro_batches, reads="previous")
        schedule = Schedule("2bw", shape.micro_batches, {}, (), weights)
        return Plan(graph.digest, problem.recipe.samples, tuple(stages), schedule)
