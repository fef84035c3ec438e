"""Chimera (Li and Hoefler, SC 2021, arXiv 2107.06925): bidirectional synchronous pipelines.

Every worker holds a stage of each of 2f pipes, half of them in each direction, so that one pipe fills the bubbles of the
others. Decides the width W and depth D (even), the micro-batch size B, recomputation, and how more than D micro-batches
are put together (`plan.schedules.chimera`), by the paper's greedy: the largest B that fits in memory, recomputation only if
none does, then the W and D of least modelled step time

    T = (F + c) · C_f + (B + c) · C_b + the sum of gradients that no idle time hides

with C_f and C_b counted on the critical path of the schedule and B = 2 F, or 3 F with recomputation. Memory counts 2f
copies of a stage's weights, gradients and optimizer state, and the micro-batches that the table holds at its peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..cluster.model import Mesh
from ..errors import Infeasible, InputError, Unsupported
from ..graph.ir import ITEM_BYTES
from ..plan.lookup import recomputes, stage_ops
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ..plan.schedules import conditions
from ..plan.schedules.chimera import worker
from ..simulate.fits import fits
from ._blocks import Part, divisors, equal_parts, slowest
from ._checked import whole, wholes
from ._chimera_model import all_reduce, play, step_seconds
from ._profile import by_samples, profile_of
from .base import Planner
from .registry import register
from .types import Info, Json, Run

GIB = 2.0**30
Form = Literal["direct", "doubling", "halving"]
FORMS: tuple[Form, ...] = ("direct", "doubling", "halving")


@dataclass(frozen=True, slots=True)
class Shape:
    """One point of the search."""

    width: int
    depth: int
    micro: int
    micro_batches: int
    form: Form
    recompute: bool


@register
class Chimera(Planner):
    """Width, depth, micro-batch and form of least modelled step time.

    Args:
        f: pairs of pipes.
        form: of more micro-batches than stages; None = the best.
        micro_batches: sizes B to try, in samples; None = powers of two.
    """

    info = Info(
        name="chimera",
        title="Chimera: Efficiently Training Large-Scale Neural Networks with Bidirectional Pipelines",
        year=2021,
        reference="arXiv 2107.06925",
        decides=frozenset({"stages", "replicas", "schedule", "recompute"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="pipeline",
    )
    unit = "s"

    def __init__(self, *, f: int = 1, form: Form | None = None, micro_batches: tuple[int, ...] | None = None) -> None:
        whole("chimera", "f", f, what="pair of pipes")
        if form is not None and form not in FORMS:
            raise InputError(f'chimera has no form "{form}": there are direct, doubling and halving')
        wholes("chimera", "micro_batches", micro_batches, "samples")
        self.f = f
        self.form = form
        self.micro_batches = micro_batches

    def search(self, problem: Problem, run: Run) -> Json:
        """Every width and depth, each with its largest micro-batch that fits; no bound, since B is chosen greedily."""
        chosen: tuple[float, Shape] | None = None
        closest = ("", float("inf"))
        for recompute in (False, True):
            for width, depth in self._grids(problem):
                for shapes in self._largest_first(problem, width, depth, recompute):
                    fitting = False
                    for shape, parts in shapes:
                        over, why = self._over(problem, shape, parts)
                        plan = self._plan(problem, shape, parts)
                        # The paper's count of bytes first; the simulator also knows gathers, buffers and the loss.
                        why, over = (fits(problem, plan) or "", 0.0) if over <= 0 else (why, over)
                        if why:
                            closest = (why, over) if over < closest[1] else closest
                        else:
                            fitting = True
                            value = self._value(problem, shape, parts)
                            if chosen is None or value < chosen[0]:
                                chosen = (value, shape)
                                run.offer(value, lambda plan=plan: plan)  # type: ignore[misc]
                        run.tick(1, "shapes")
                    if fitting:
                        break
            if chosen is not None:
                break
        if chosen is None:
            raise Infeasible(closest[0] or self._no_shape(problem))
        value, shape = chosen
        return {
            "width": shape.width, "depth": shape.depth, "micro_batch": shape.micro,
            "micro_batches": shape.micro_batches, "form": shape.form, "recompute": shape.recompute,
        }  # fmt: skip

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Modelled seconds of a step.

        Raises:
            Unsupported: no plan of 2f pipes of equal stages under the chimera schedule.
        """
        f, form = plan.schedule.args.get("f", 1), plan.schedule.args.get("form", "direct")
        if plan.schedule.name != "chimera" or f != self.f or form not in FORMS:
            raise Unsupported(f"chimera prices plans under the chimera schedule with f = {self.f}")
        depth = len(plan.stages) // (2 * self.f)
        width = len(plan.stages[0].mesh.devices)
        m = plan.schedule.micro_batches
        micro, left = divmod(plan.samples, m * width)
        again = {recomputes(problem.graph, stage, i) for stage in plan.stages for i in stage_ops(problem.graph, stage)}
        parts = None if left or len(again) > 1 else equal_parts(profile_of(problem, micro), depth)
        if parts is None:
            raise Unsupported("chimera prices equal stages and equal micro-batches, recomputed everywhere or nowhere")
        kind: Form = next(known for known in FORMS if known == form)
        return self._value(problem, Shape(width, depth, micro, m, kind, again == {True}), parts)

    def _grids(self, problem: Problem) -> Iterator[tuple[int, int]]:
        count = problem.limits.devices or problem.cluster.count
        for depth in divisors(count):
            if depth % (2 * self.f) == 0:
                yield count // depth, depth

    def _largest_first(
        self, problem: Problem, width: int, depth: int, recompute: bool
    ) -> Iterator[list[tuple[Shape, tuple[Part, ...]]]]:
        """Per micro-batch size, largest first, the shapes of all forms."""
        samples = problem.recipe.samples
        sizes = self.micro_batches or tuple(2**k for k in range(samples.bit_length()))
        for micro in sorted(sizes, reverse=True):
            m, left = divmod(samples, width * micro)
            if left or m < 2 * self.f:  # every pipe has at least one
                continue
            forms: tuple[Form, ...] = ("direct",) if m <= depth else (self.form,) if self.form else FORMS
            parts = equal_parts(profile_of(problem, micro), depth)
            args = {"f": self.f}
            legal = [x for x in forms if not conditions("chimera", depth, m, 2 * self.f, {**args, "form": x})]
            if parts is not None and legal:
                yield [(Shape(width, depth, micro, m, form, recompute), parts) for form in legal]

    def _value(self, problem: Problem, shape: Shape, parts: tuple[Part, ...]) -> float:
        cluster, depth = problem.cluster, shape.depth
        near = (0, shape.width) if depth > 1 else (0,)
        rate, latency = slowest(cluster, near)
        c = latency + max(p.sent for p in parts) / rate
        forward = max(p.forward for p in parts)
        ratio = 3.0 if shape.recompute else 2.0
        counts = play(depth, shape.micro_batches, self.f, shape.form, 1.0, ratio)
        f, b = forward + c, ratio * forward + c
        timing = play(depth, shape.micro_batches, self.f, shape.form, f, b)
        sums = []
        for s, part in enumerate(parts):
            holders = {worker(depth, self.f, pipe, s) for pipe in range(2 * self.f)}
            copies = [d for w in sorted(holders) for d in range(w * shape.width, (w + 1) * shape.width)]
            wide, start = slowest(cluster, copies)
            sums.append(all_reduce(2 * self.f * shape.width, start, wide, part.params))
        return step_seconds(timing, counts, f, b, sums)

    def _over(self, problem: Problem, shape: Shape, parts: tuple[Part, ...]) -> tuple[float, str]:
        """(bytes above what a device may hold, in words), of the fullest worker."""
        recipe, depth = problem.recipe, shape.depth
        copies = 2.0 + recipe.state_bytes / ITEM_BYTES[recipe.param_dtype]  # weights, gradients, optimizer state
        peaks = play(depth, shape.micro_batches, self.f, shape.form, 1.0, 3.0 if shape.recompute else 2.0).peaks
        received = max(p.sent for p in parts)
        need = 0.0
        for w in range(depth):
            own = [p for i in range(2 * self.f) for s, p in enumerate(parts) if worker(depth, self.f, i, s) == w]
            stored = max(p.stored for p in own)
            held = peaks[w][0] * received + stored if shape.recompute else peaks[w][0] * stored
            need = max(need, copies * sum(p.params for p in own) + held)
        usable = problem.limits.usable(problem.cluster.type_of(0).memory)
        return need - usable, (
            f"the smallest shape, {shape.width} x {depth} with micro-batches of {shape.micro}, needs {need / GIB:.3g} GiB a "
            f"device for {2 * self.f} copies of a stage and its activations, over the usable {usable / GIB:.3g}"
        )

    def _no_shape(self, problem: Problem) -> str:
        count = problem.limits.devices or problem.cluster.count
        return (
            f"no width and depth of {count} devices suit chimera: the depth must be a multiple of {2 * self.f} that divides the "
            f"blocks of the model, and {problem.recipe.samples} samples must give every pipe a micro-batch, "
            "and as many as stages, or fewer, or a multiple"
        )

    def _plan(self, problem: Problem, shape: Shape, parts: tuple[Part, ...]) -> Plan:
        graph = problem.graph
        profile = profile_of(problem, shape.micro)
        shardings = by_samples(graph, "data") if shape.width > 1 else {}
        stages = []
        for pipe in range(2 * self.f):
            for s, part in enumerate(parts):
                w = worker(shape.depth, self.f, pipe, s)
                mesh = Mesh(range(w * shape.width, (w + 1) * shape.width), ("data",), (shape.width,))
                stage = Stage(profile.entries(part.nodes), mesh, shardings, pipe=pipe)
                if shape.recompute:
                    again = frozenset(graph.ops[graph.representative[i]].name for i in stage_ops(graph, stage))
                    stage = Stage(stage.ops, mesh, shardings, recompute=again, pipe=pipe)
                stages.append(stage)
        args = {"f": self.f, "form": shape.form}
        return Plan(graph.digest, problem.recipe.samples, tuple(stages), Schedule("chimera", shape.micro_batches, args))
