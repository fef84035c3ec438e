"""Alpa on a captured model: ops into layers, layers into stages on submeshes, every stage sharded by its own programme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import takewhile
from math import inf, prod

import numpy as np

from .._words import plural
from ..errors import Infeasible, InputError
from ..graph.ir import Floats, Graph, Ints
from ..plan.model import Plan, Schedule
from ..plan.problem import Problem
from ..simulate import simulate
from ..simulate.additive import additive
from ..simulate.fits import excess
from ..solvers.clustering import cluster
from ..solvers.stage_programme import Space, StageChoice, best_stages, submeshes
from ._alpa_intervals import Intervals, Minimised
from ._alpa_recorded import clustering_input
from ._layers import Layers, is_heavy
from .types import Considered, Json, Run

LAYERS = 8
"""Layers unless told; the authors' grid is 6 to 32."""
FEW_HOSTS = 8
"""Up to these every number of hosts is a submesh, unless told; of more, powers of two."""
USUAL = (1, 8, 32)
"""Numbers of micro-batches, about."""
MANY = 4
TRIES = 24
"""Times that the stages are chosen again with less memory, because what is simulated needs more than what is summed up."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user of Alpa decides."""

    layers: int | None
    micro_batches: int | None
    space: Space | None
    tolerance: float
    imbalance: float
    minimised: Minimised = "time"


def search(problem: Problem, choices: Choices, run: Run) -> Json:
    """Offers the best plan for each number of micro-batches.

    Raises:
        Infeasible: no stages fit; says what the nearest needs.
        InputError: choices that the model or the cluster cannot have.
    """
    graph, count = problem.graph, problem.limits.devices or problem.cluster.count
    per_host = min(problem.cluster.node_size, count)
    if count % per_host:
        raise InputError(f"alpa uses whole hosts: {count} devices are no multiple of the {per_host} of a host")
    layers = layers_of(graph, choices)
    hosts = count // per_host
    meshes = submeshes(hosts, per_host, choices.space or ("all" if hosts <= FEW_HOSTS else "power_of_two"))
    found = _Found(problem, run)
    for b in batches(problem.recipe.samples, choices.micro_batches):
        if b > USUAL[-1] and found.told is not None:
            break
        found.reason = ""
        intervals = Intervals(problem, layers, meshes, b, choices.imbalance, run, choices.minimised)
        _whole(found, intervals)
        _staged(found, intervals, count)
    if found.told is None:
        raise Infeasible(found.reason or "no stages of whole layers use all devices")
    return found.told


class _Found:
    """The best plan so far, and why others do not fit."""

    def __init__(self, problem: Problem, run: Run) -> None:
        self.problem, self.run = problem, run
        self.usable = problem.limits.usable(problem.cluster.types[0].memory)
        self.considered: list[Considered] = []
        self.best = inf
        self.told: Json = None
        self.reason = ""

    def over(self, intervals: Intervals, chosen: Sequence[StageChoice]) -> list[int]:
        """Which of these stages are simulated to need more memory than there is; offers them if none does."""
        problem, b = self.problem, intervals.b
        schedule = Schedule("1f1b", b)
        plan = Plan(problem.graph.digest, problem.recipe.samples, intervals.stages(chosen), schedule)
        simulation = simulate(problem, plan, detail=False)
        memory = float(simulation.peak.max())
        over, value = max(0.0, memory - self.usable), objective(problem, plan)
        self.considered.append(_row(plan, b, value, memory, over))
        self.run.show(sorted(self.considered, key=lambda c: (c.over > 0, c.objective)))
        if over:
            self.reason = excess(problem, simulation) or self.reason
        else:
            self.run.offer(value, lambda: plan, memory)
            if value < self.best:
                self.best, self.told = value, _told(chosen, intervals)
        full = {
            lane.first_device
            for lane, peak in zip(simulation.lanes, simulation.peak, strict=True)
            if float(peak) > self.usable
        }
        return [k for k, stage in enumerate(plan.stages) if full & set(stage.mesh.devices)]


def _whole(found: _Found, intervals: Intervals) -> None:
    """All layers on all devices, the fastest that fits: a plan early on, whatever the budget."""
    last = len(intervals.layers) - 1
    m = len(intervals.submeshes) - 1
    configs = intervals.configs[m]
    for c in sorted(range(len(configs)), key=lambda c: configs[c].weight):
        piece = intervals.piece(0, last, m, c)
        found.run.tick(1, "one stage", c, len(configs))
        if piece.seconds == inf or piece.rest + piece.kept > found.usable:
            continue
        if not found.over(intervals, [StageChoice(0, last + 1, m, c, piece.seconds / intervals.b)]):
            return


def _staged(found: _Found, intervals: Intervals, count: int) -> None:
    """The stages of least cost that fit, by sums of bytes first, then by the simulator."""
    seconds, rest, kept = intervals.tables(count)
    sizes = [prod(m) for m in intervals.submeshes]
    allowed = following(rest, kept, found.usable)
    for _ in range(TRIES):
        stages = best_stages(seconds, allowed, sizes, count, intervals.b).stages
        if not stages:
            found.reason = found.reason or least_need(rest, kept, found.usable)
            return
        full = found.over(intervals, stages)
        if not full:
            return
        for s in full:
            # So many stages may not follow this one, nor any configuration that comes to the same.
            choice, after = stages[s], len(stages) - 1 - s
            at = choice.first, choice.stop - 1, choice.mesh
            same = (rest[at] == rest[at][choice.config]) & (kept[at] == kept[at][choice.config])
            allowed[at][same] = np.minimum(allowed[at][same], after - 1)


def objective(problem: Problem, plan: Plan) -> float:
    """Σ t + (B − 1) · max t, t being a stage's seconds a micro-batch, with its share of what is done once a step.

    What stages send each other does not count, as in the paper; the simulator counts it.
    """
    b = plan.schedule.micro_batches
    each = [t / b for t in additive(problem, plan)]
    return sum(each) + (b - 1) * max(each)


def layers_of(graph: Graph, choices: Choices) -> Layers:
    """Ops clustered into layers; without a wish, fewer where the rule of like work allows no eight.

    Raises:
        InputError: the number of layers that is asked for has no legal clustering.
    """
    given = clustering_input(graph, lambda i: is_heavy(graph.ops[i]))
    wanted = [choices.layers] if choices.layers is not None else list(range(min(LAYERS, len(graph.ops)), 0, -1))
    for n in wanted:
        found = cluster(*given, n, tolerance=choices.tolerance)
        if found.ends:
            flops = [sum(op.flops for op in graph.ops[a:b]) for a, b in zip((0, *found.ends), found.ends)]
            return Layers(graph, found.ends, tuple(flops))
    raise InputError(
        f"alpa cannot cluster {len(graph.ops)} ops into {wanted[0]} layers of at most {1 + choices.tolerance:g} times the mean "
        "work: ask for fewer layers or a larger tolerance"
    )


def batches(samples: int, wanted: int | None) -> list[int]:
    """Numbers of micro-batches to plan for: what is asked for, else 1, about 8 and about 32, as far as they divide the batch,
    and behind these, for a batch of which so few do not fit, four times as many until a micro-batch is one sample.

    Raises:
        InputError: micro-batches that do not divide the batch.
    """
    if wanted is not None:
        if wanted < 1 or samples % wanted:
            raise InputError(f"alpa needs equal micro-batches: {wanted} do not divide the batch of {samples}")
        return [wanted]
    divisors = [d for d in range(1, samples + 1) if samples % d == 0]
    more = takewhile(lambda about: about < MANY * samples, (USUAL[-1] * MANY**k for k in count_from(1)))
    return sorted({max(d for d in divisors if d <= about) for about in (*USUAL, *more)})


def following(rest: Floats, kept: Floats, room: float) -> Ints:
    """Greatest number of stages that may follow: rest + (following + 1) · kept ≤ room; −1 = does not fit at all."""
    with np.errstate(invalid="ignore", divide="ignore"):
        flights = np.floor((room - rest) / np.maximum(kept, 1e-9))
    found: Ints = np.clip(np.nan_to_num(flights, nan=0.0, neginf=0.0, posinf=1e6) - 1, -1, 1_000_000).astype(np.int64)
    return found


def least_need(rest: Floats, kept: Floats, usable: float) -> str:
    """Why no stages fit."""
    need = rest + kept
    gib = 2.0**30
    least = float(np.min(np.where(np.isfinite(need), need, inf).min(axis=(1, 2, 3)), initial=inf))
    if least > usable:
        return f"the leanest stage needs {least / gib:.1f} GiB a device, of {usable / gib:.1f} usable"
    return f"no stages of whole layers that use all devices keep parameters and what is in flight within {usable / gib:.1f} GiB"


def _told(stages: Sequence[StageChoice], intervals: Intervals) -> Json:
    found: list[Json] = []
    for s in stages:
        config = intervals.configs[s.mesh][s.config]
        found.append(
            {
                "layers": [s.first, s.stop],
                "submesh": list(intervals.submeshes[s.mesh]),
                "logical_shape": list(config.shape),
                "memory_weight": config.weight,
            }
        )
    proved = all(p.proved for p in intervals.pieces.values())
    return {
        "layers": len(intervals.layers),
        "micro_batches": intervals.b,
        "stages": found,
        "intra_operator_proved": proved,
    }


def _row(plan: Plan, b: int, value: float, memory: float, over: float) -> Considered:
    shape = " + ".join("×".join(map(str, s.mesh.shape)) or "1" for s in plan.stages[:6])
    more = f" + {len(plan.stages) - 6} more" if len(plan.stages) > 6 else ""
    return Considered(
        f"{plural(len(plan.stages), 'stage')}: {shape}{more}", plan.samples // b, b, "none", plan.schedule.name, value, memory, over,
        lambda: plan,
    )  # fmt: skip
