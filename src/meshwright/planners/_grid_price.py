"""Price one point of the grid: cut the chain of units into stages, build the plan, and ask the simulator.

What depends on the point little by little is kept: a style is lowered once, a piece priced once for all micro-batch
sizes, a stage once for each number of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod

import numpy as np

from ..graph.ir import ITEM_BYTES, Floats
from ..layouts.point import Point
from ..layouts.style import Style
from ..lower import lower
from ..lower.program import Program, StageCode
from ..plan.model import Plan
from ..simulate.estimate import Work, collect, estimate
from ..simulate.fits import excess
from ..simulate.pipeline import FAST, SPLIT
from ..simulate.price import Pricer, StagePrice
from ..simulate.sends import sends_of
from ..simulate.simulator import simulate
from ..simulate.tasks import Sends
from ..solvers.capped_partition import Run, capped_partition
from ._grid_space import RECOMPUTE, Space
from .types import Considered


@dataclass(frozen=True, slots=True)
class Priced:
    """One point with its answer."""

    point: Point
    parts: tuple[int, ...]
    seconds: float
    memory: float
    over: float
    space: Space

    def plan(self) -> Plan:
        return self.space.plan(self.point, self.parts)

    def considered(self, space: Space) -> Considered:
        p = self.point
        m = space.problem.recipe.samples // (p.replicas * p.micro_batch)
        schedule = p.schedule if p.pp > 1 else ""
        return Considered(
            p.words(), p.micro_batch, m, p.recompute, schedule, self.seconds, self.memory, self.over,
            partial(space.plan, p, self.parts),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Per piece of the model, on one device: arrays [piece, micro-batch size] of one unit."""

    seconds: Floats
    weight: Floats
    """Seconds of weight gradients among them, if asked for."""
    share: Floats
    """[micro-batch size]: the least part of a unit's seconds that is its forward."""
    held: Floats
    rest: Floats
    """[piece]: weights, gradients, optimizer state."""
    buffer: Floats
    forward_buffer: Floats
    """While the forward runs: nothing that is recomputed or stored cut makes it less."""
    twice: float
    """Bytes of `rest` that tied weights count in two pieces: one stage that has both holds them once."""
    counts: tuple[int, ...]


class Evaluator:
    def __init__(self, space: Space) -> None:
        self.space = space
        problem = space.problem
        self.problem, self.graph = problem, problem.graph
        self.pricer = Pricer(problem.graph, problem.cluster, problem.cost, problem.recipe)
        self.usable = min(problem.limits.usable(t.memory) for t in problem.cluster.types)
        devices = min(problem.cluster.count, problem.limits.devices or problem.cluster.count)
        self.overhead = problem.cost.step_overhead(devices)
        self.share = problem.cost.overlap("data")
        self._pieces: dict[tuple[Style, int, bool], Pieces] = {}
        self._sizes: dict[int, list[int]] = {}
        self._firsts: dict[tuple[object, int], tuple[Floats, Floats]] = {}
        self._stages: dict[tuple[object, ...], tuple[StageCode, StagePrice]] = {}
        self._works: dict[tuple[int, int, bool], tuple[Program, Work, Sends]] = {}

    # ---- pieces

    def sizes(self, replicas: int) -> list[int]:
        """Micro-batch sizes on one replica that are priced together."""
        if replicas not in self._sizes:
            n = self.problem.recipe.samples // replicas
            found = [b for b in range(1, n + 1) if n % b == 0 and b & (b - 1) == 0]
            if (wish := self.space.fix.get("micro_batch")) and wish not in found:
                found.append(int(wish))
            self._sizes[replicas] = found
        return self._sizes[replicas]

    def pieces(self, style: Style, dp: int, split: bool = False) -> Pieces:
        """Prices of single units, from a plan with one stage a piece; `split`: weight gradients too."""
        key = (style, dp, split)
        if key not in self._pieces:
            self._pieces[key] = self._price_pieces(style, dp, split)
        return self._pieces[key]

    def _price_pieces(self, style: Style, dp: int, split: bool) -> Pieces:
        units = self.space.units
        counts = tuple(p.count if p.run else 1 for p in units.folded.pieces)
        point = Point(
            dp, style.tp, len(counts), style.sequence, 1, 1, style.zero, style.recompute, "1f1b", style.cp, style.ep, style.context,
            style.whole_experts, style.replicate, style.reshard,
        )  # fmt: skip
        plan = self.space.on_first_devices(self.space.plan(point, counts))
        program = lower(self.graph, plan, self.problem.recipe)
        micro = [point.replicas * b for b in self.sizes(point.replicas)]
        prices = [self.pricer.stage(code, micro, split=split) for code in program.stages]
        n = np.array(counts, np.float64)
        rest = np.array([p.weights + p.gradients + p.state for p in prices])
        twice = 0.0
        if any(p.shared for code in program.stages for p in code.params):
            one = self.space.plan(replace(point, pp=1), (len(units),))
            whole = self.pricer.stage(lower(self.graph, one, self.problem.recipe).stages[0], micro[:1])
            twice = float(rest.sum()) - (whole.weights + whole.gradients + whole.state)
        seconds = np.array([(p.forward + p.backward).sum(axis=1) for p in prices])
        forward = np.array([p.forward.sum(axis=1) for p in prices])
        return Pieces(
            seconds=seconds / n[:, None],
            weight=np.array([p.weight for p in prices]) / n[:, None],
            share=np.divide(forward, seconds, out=np.ones_like(seconds), where=seconds > 0).min(axis=0),
            held=np.array([p.kept + p.loss for p in prices]) / n[:, None],
            rest=rest / n,
            twice=twice,
            buffer=np.array([p.buffers.max(axis=1) for p in prices]),
            forward_buffer=np.array([p.buffers[:, 0] for p in prices]),
            counts=counts,
        )

    # ---- points

    def first_bound(self, point: Point) -> float:
        """`bound` of the same layout with nothing recomputed, nothing stored cut and one replica: never above its own."""
        base = replace(point.style, zero=0, recompute="none", replicate=1)
        pieces, b = self.pieces(base, 1), self.sizes(point.ep).index(point.micro_batch)
        if point.schedule in SPLIT:
            return self._stepped(self.micro_batches(point) * self._total(pieces, b) / point.pp)
        return self._bound(point, pieces, b)

    def rest_bytes(self, point: Point) -> float:
        """Bytes of parameters, gradients and optimizer state that the fullest rank holds at least, all cut as far as may be."""
        recipe = self.problem.recipe
        use, grad, master = (ITEM_BYTES[d] for d in (recipe.compute_dtype, recipe.grad_dtype, recipe.param_dtype))
        state = recipe.state_bytes + (master if recipe.param_dtype != recipe.compute_dtype else 0)
        cut = [point.dp if point.zero >= zero else 1 for zero in (3, 2, 1)]
        each = use / cut[0] + grad / cut[1] + state / cut[2]
        return self._elements * each / (point.tp * point.ep * point.pp)

    def first_over(self, point: Point) -> float:
        """Bytes above the limit that no cut avoids, whatever rests cut and runs again: told by one lowering of all layouts
        that compute alike. 0 = it may fit.

        The fullest rank holds the mean of what rests and of the least that the ways of recomputing leave behind; some rank
        runs the unit with the largest work space.
        """
        rest = self.rest_bytes(point)
        if rest > self.usable:
            return rest - self.usable
        key = point.style.compute, point.ep
        if key not in self._firsts:
            ways = [self.pieces(replace(point.style, zero=0, recompute=how, replicate=1), 1) for how in RECOMPUTE]
            least = np.min([np.asarray(w.counts, np.float64) @ w.held for w in ways], axis=0)
            space = np.min([w.forward_buffer.max(axis=0) for w in ways], axis=0)
            self._firsts[key] = least, space if self.problem.recipe.fused else 0.0 * space
        held, space = self._firsts[key]
        b = self.sizes(point.ep).index(point.micro_batch)
        flight = min(self._flights(point, self.micro_batches(point)))
        return max(0.0, rest + flight * float(held[b]) / point.pp - self.usable, float(space[b]) - self.usable)

    @cached_property
    def _elements(self) -> float:
        """Parameters that the graph uses."""
        used = (t for t in self.graph.params() if t.name in self.graph.consumers)
        return float(sum(prod(t.shape) for t in used))

    def bound(self, point: Point) -> float:
        """Seconds below the step of any cut into pp stages.

        Stage s needs m·t_s and, before it, one forward and one backward of all stages before it; the best convex
        combination of these p statements is total / (1 − (1 − 1/m)^p). With chunks only the busiest device counts.

        Zero bubble: weight gradients wait for nobody, so the same holds (a) without them, and (b) of all work with the
        forwards before it alone. If those are at least the part φ of the work before, (b) gives
        φ · total / (1 − (1 − φ/m)^p).
        """
        b = self.sizes(point.replicas).index(point.micro_batch)
        return self._bound(point, self.pieces(point.style, point.dp, point.schedule in SPLIT), b)

    def micro_batches(self, point: Point) -> int:
        return self.problem.recipe.samples // (point.replicas * point.micro_batch)

    def _bound(self, point: Point, pieces: Pieces, b: int) -> float:
        total, m = self._total(pieces, b), self.micro_batches(point)
        if point.chunks > 1:
            return self._stepped(m * total / point.pp)
        if point.schedule not in SPLIT:
            return self._stepped(_chained(total, m, point.pp, 1.0))
        weight, share = float(np.dot(pieces.weight[:, b], pieces.counts)), float(pieces.share[b])
        return self._stepped(max(_chained(total - weight, m, point.pp, 1.0), _chained(total, m, point.pp, share)))

    @staticmethod
    def _total(pieces: Pieces, b: int) -> float:
        return float(np.dot(pieces.seconds[:, b], pieces.counts))

    def _stepped(self, seconds: float) -> float:
        """A step whose pipeline takes `seconds`, with stragglers and fixed work."""
        return seconds * self.overhead[0] + self.overhead[1]

    def price(self, point: Point, parts: tuple[int, ...] | None = None) -> Priced:
        """`parts`: units of each stage; None = the best."""
        parts = parts or self.parts(point)
        plan = self.space.plan(point, parts)
        program = lower(self.graph, plan, self.problem.recipe)
        seconds, peak = self._estimate(point, plan, program)
        return Priced(point, parts, seconds, peak, max(0.0, peak - self.usable), self.space)

    def least_bytes(self, point: Point) -> float:
        """Bytes that the fullest rank of ANY cut of this point holds at least.

        The ranks together hold every unit's rest once and what it leaves behind at least as often as the last stage
        does; the fullest holds at least the mean, and at least the smallest work space. Some rank holds any one unit.
        """
        pieces = self.pieces(point.style, point.dp)
        b = self.sizes(point.replicas).index(point.micro_batch)
        m = self.micro_batches(point)
        flight = min(self._flights(point, m))
        held = float(np.dot(pieces.rest + flight * pieces.held[:, b], pieces.counts)) - pieces.twice
        mean = held / point.pp + float(pieces.buffer[:, b].min())
        if point.zero == 3:  # a piece of several blocks has room for the weights of a neighbour, a block alone has not
            return mean
        return max(mean, float((pieces.rest + flight * pieces.held[:, b] + pieces.buffer[:, b]).max()))

    def least_over(self, point: Point) -> float:
        """Bytes above the limit that NO cut of this point avoids on its fullest rank; 0 = it may fit."""
        return max(0.0, self.least_bytes(point) - self.usable)

    def parts(self, point: Point) -> tuple[int, ...]:
        """Units per stage: least bottleneck under the memory caps; without caps if they cannot be kept."""
        pieces = self.pieces(point.style, point.dp)
        b = self.sizes(point.replicas).index(point.micro_batch)
        p, v = point.pp, point.chunks
        if p * v == 1:
            return (sum(pieces.counts),)
        m = self.micro_batches(point)
        runs = [
            Run(n, float(pieces.seconds[k, b]), float(pieces.rest[k]), float(pieces.held[k, b]))
            for k, n in enumerate(pieces.counts)
        ]
        room = [(self.usable - float(pieces.buffer[:, b].max())) / v] * (p * v)
        flights = self._flights(point, m)
        found = capped_partition(runs, p * v, room, flights)
        if found is None:
            found = capped_partition(runs, p * v, [1e30] * (p * v), flights)
        if found is None:
            raise AssertionError(f"{point} has more stages than units: the space should not hold it")
        return found

    def _flights(self, point: Point, m: int) -> list[float]:
        """Micro-batches in flight of each stage s = chunk · pp + rank."""
        p, v = point.pp, point.chunks
        if point.schedule in ("gpipe", "bfs"):
            return [float(m)] * (p * v)
        if point.schedule in SPLIT:
            return [float(min(p, m))] * p
        if v == 1:
            return [float(min(p - s, m)) for s in range(p)]
        ranks = [min(2 * (p - r - 1) + (v - 1) * p + 1, m * v) / v for r in range(p)]
        return ranks * v

    def _estimate(self, point: Point, plan: Plan, program: Program) -> tuple[float, float]:
        """(seconds, bytes on the fullest device); equal to `simulate`."""
        crowded = self.problem.cluster.turns(point.size * point.pp) > 1.0
        if crowded or any(t.dst != t.src + 1 for t in program.transfers) or point.schedule not in FAST | SPLIT:
            simulation = simulate(self.problem, plan, detail=False, program=program, pricer=self.pricer)
            return simulation.step_seconds, float(simulation.peak.max())
        column = self.sizes(point.replicas).index(point.micro_batch)
        work, sends = self._work(program, column, point.replicas, point.schedule in SPLIT)
        seconds, peaks = estimate(work, plan.schedule, sends, point.chunks, self.share, self.overhead)
        return seconds, float(peaks.max())

    def _work(self, program: Program, column: int, replicas: int, split: bool) -> tuple[Work, Sends]:
        """What every rank does in a micro-batch; plans that differ in schedule only share it."""
        key = (id(program.stages), program.micro_batch, split)
        if key not in self._works:
            prices = [self._stage(code, replicas, split) for code in program.stages]
            sends = sends_of(program, self.pricer)
            meshes = [code.mesh for code in program.stages]
            work = collect(prices, column, meshes, sends, self.pricer)
            self._works[key] = program, work, sends
        return self._works[key][1:]

    def _stage(self, code: StageCode, replicas: int, split: bool) -> StagePrice:
        """Stages with the same code in the same kind of place cost the same; all micro-batch sizes at once."""
        number = code.stage if any(p.shared for p in code.params) else -1  # tied sums name their stages
        key = (id(code.params), number, tuple(s.count for s in code.segments), self.pricer.place(code.mesh), split)
        if key not in self._stages:
            micro = [replicas * b for b in self.sizes(replicas)]
            self._stages[key] = code, self.pricer.stage(code, micro, split=split)
        return self._stages[key][1]

    def misfit(self, priced: Priced) -> str:
        """Why the nearest miss does not fit, in one sentence."""
        simulation = simulate(self.problem, priced.plan(), detail=False, pricer=self.pricer)
        words = excess(self.problem, simulation) or "fits"
        return f"the nearest layout, {priced.point.words()} with {priced.point.recompute} recompute: {words}"


def _chained(total: float, m: int, p: int, share: float) -> float:
    """The least T with T ≥ m·t_s + share · (t_0 + … + t_(s − 1)) for all s, over all t ≥ 0 that add up to `total`."""
    return share * total / (1.0 - (1.0 - share / m) ** p) if share > 0 else m * total / p


__all__ = ["Evaluator", "Pieces", "Priced"]
