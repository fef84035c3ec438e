"""The product's default planner: every legal layout of the expert kind, pruned by a bound and by memory, judged by the simulator.

    points    dp × ep × cp × tp (+ sequence) × pp × chunks (gpipe, 1f1b, interleaved, bfs, zb-h1) × micro-batch × ZeRO × recompute
    goal      the fastest step, or the least memory on the fullest device (bounded by what rests and what is left behind)
    bound     below the step of ANY cut into pp stages; first that of the bare layout, then, where that does not do, the
              point's own; the search stops when no bound is below the worst of the `top` plans found
    stages    each takes whole units (blocks of a run, stretches between); the bottleneck is least under every stage's
              memory cap
    price     `simulate` of the finished plan: a grid that does not prune gives the same answer

Not a method of the literature: what an expert would try by hand (Narayanan et al., SC'21, §3; Rajbhandari et al., SC'20),
tried exhaustively.
"""

from __future__ import annotations

import bisect
import gc
import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from math import inf
from typing import Any

from ..errors import Infeasible, InputError
from ..layouts.expert import expert_of
from ..layouts.point import Point
from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate.simulator import simulate
from ._checked import whole
from ._grid_price import Evaluator, Priced
from ._grid_space import Space, read_fix
from .base import Planner
from .registry import register
from .types import Considered, Info, Json, Run, Trainer


@register
class Grid(Planner):
    """Every legal layout of the expert kind.

    Args:
        fix: fields that must have one value: {"tp": 2, "pp": 2}.
        allow: fields that may have some values: {"recompute": ["none", "full"]}.
        top: plans kept for the table; pruning keeps exactly the best `top`.
        prune: False prices every point (the oracle of the tests).
        trainer: only what this trainer runs exactly.
    """

    info = Info(
        name="grid",
        title="Exhaustive grid of expert layouts",
        year=2026,
        reference="this project",
        decides=frozenset({"stages", "replicas", "shards", "schedule", "recompute"}),
        handles=frozenset({"memory", "dag"}),
        goals=frozenset({"time", "memory"}),
        family="hybrid",
    )

    def __init__(
        self,
        *,
        fix: Mapping[str, object] | None = None,
        allow: Mapping[str, Iterable[object]] | None = None,
        top: int = 5,
        prune: bool = True,
        trainer: Trainer | None = None,
    ) -> None:
        self.fix = read_fix(fix or {})
        allowed = {k: [read_fix({k: v}) for v in vs] for k, vs in (allow or {}).items()}
        if empty := next((key for key, values in allowed.items() if not values), ""):
            raise InputError(f"grid: allow says no choices of {empty}: leave it out, or say some")
        self.allow = {name: [d[name] for d in ds] for ds in allowed.values() for name in ds[0]}
        whole("grid", "top", top)
        self.top = top
        self.prune = prune
        self.trainer = trainer

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Simulated seconds of one step; of goal "memory" the bytes of the fullest device."""
        simulation = simulate(problem, plan, detail=False)
        return float(simulation.peak.max()) if problem.goal == "memory" else simulation.step_seconds

    def unit_of(self, problem: Problem) -> str:
        """Seconds or bytes."""
        return "B" if problem.goal == "memory" else super().unit_of(problem)

    def fits(self, problem: Problem, tries: int = 64) -> bool:
        """Whether some plan of this space fits: those that may hold least are priced first, up to `tries` of them.

        True is a proof, False is not. Depends on nothing but the problem: no seconds are counted.
        """
        with _no_collection():
            space = Space(problem, expert_of(problem.graph), self.fix, self.allow)
            points = list(space.points())
            prices = Evaluator(space)
            at_rest = sorted((prices.rest_bytes(p), k) for k, p in enumerate(points))
            able = (k for least, k in at_rest if least <= prices.usable and not prices.first_over(points[k]))
            likely = list(islice(able, 8 * tries))
            order = sorted((prices.least_bytes(points[k]), k) for k in likely)
            return any(prices.price(points[k]).over == 0 for least, k in order[:tries] if least <= prices.usable)

    def search(self, problem: Problem, run: Run) -> Json:
        with _no_collection():
            return self._search(problem, run)

    def _search(self, problem: Problem, run: Run) -> Json:
        space = Space(problem, expert_of(problem.graph), self.fix, self.allow)
        points = list(space.points())
        if not points:
            raise self._nothing(space)
        prices = Evaluator(space)
        least = problem.goal == "memory"
        first = prices.rest_bytes if least else prices.first_bound
        own = prices.least_bytes if least else prices.bound
        found = _Found(self.top, least)
        unsaid: dict[str, int] = {}
        queue: list[tuple[float, bool, int]] = []
        for k, point in enumerate(points):
            if k % 512 == 0:
                run.tick(0, "bounds", k, len(points))
            if (over := prices.first_over(point)) > 0:
                found.refuse(over, k)
            else:
                queue.append((first(point), False, k))
        heapq.heapify(queue)
        if queue:
            run.bound(queue[0][0])  # holds for any cut into stages, not only for those that `parts` chooses
        while queue:
            bound, close, k = heapq.heappop(queue)
            if self.prune and bound >= found.limit:
                break
            done = len(points) - len(queue)
            if not close and self.trainer and (why := self.trainer.why_not(problem, points[k])):
                unsaid[why] = unsaid.get(why, 0) + 1
                run.tick(0, "search", done, len(points))
                continue
            if not close:  # the bound of its own style costs a lowering: only where the first one does not do
                heapq.heappush(queue, (max(bound, own(points[k])), True, k))
                run.tick(0, "search", done, len(points))
                continue
            if (over := prices.least_over(points[k])) > 0:
                found.refuse(over, k)
                run.tick(0, "search", done, len(points))
                continue
            priced = self._price(prices, points[k])
            found.add(priced, k)
            if priced.over <= 0:
                run.offer(found.value(priced), priced.plan, priced.memory)
            run.show(self._rows(space, found), (len(points), found.refused))
            run.tick(1, "search", done, len(points))
        if not found.best or not found.misses:
            for _, k in found.hopeless:
                if self.trainer is None or not self.trainer.why_not(problem, points[k]):
                    found.miss(self._price(prices, points[k]), k)
        run.show(self._rows(space, found), (len(points), found.refused))
        if not found.best and not found.misses and unsaid:
            raise InputError(max(unsaid, key=unsaid.__getitem__), where="--for")
        if not found.best:
            raise Infeasible(prices.misfit(found.misses[0][2]))
        return None

    def _price(self, prices: Evaluator, point: Point) -> Priced:
        """In the best stages that the trainer has: the best of all, or such with equally many layers."""
        if self.trainer is None or point.pp == 1:
            return prices.price(point)
        problem, parts = prices.problem, prices.parts(point)
        return prices.price(
            point, self.trainer.parts(problem, point) if self.trainer.why_not(problem, point, parts) else parts
        )

    def _rows(self, space: Space, found: _Found) -> list[Considered]:
        """The best `top`, then the nearest misses: those that would be faster than the best, if there are any."""
        limit = found.best[0][2].seconds if found.best else inf
        faster = [m for m in found.misses if m[2].seconds < limit] or list(found.misses)
        rows = [x.considered(space) for _, _, x in (*found.best[: self.top], *faster[: self.top])]
        return [replace(r, objective=r.memory) for r in rows] if found.least_memory else rows

    def _nothing(self, space: Space) -> InputError:
        cluster, batch = space.problem.cluster, space.problem.recipe.samples
        free = Space(space.problem, space.expert, {}, {})
        if next(free.points(), None) is None:
            return InputError(
                f"no layout of {cluster.count} devices divides the batch of {batch}: use a batch that is a multiple of "
                f"the data-parallel degree, for example {max(1, round(batch / cluster.count)) * cluster.count}"
            )
        wish, others = self._conflict(space)
        words = _said({k: v for k, v in {**self.fix, **self.allow}.items() if k in others})
        rest = replace(space, fix=_only(self.fix, others), allow=_only(self.allow, others))
        able = sorted({getattr(point, wish) for point in rest.points()}, key=lambda v: (isinstance(v, str), v))
        return InputError(
            f"no layout of {cluster.name}, batch {batch:,}, has {_said({wish: {**self.fix, **self.allow}[wish]})}"
            + (f" with {words}" if words else "")
            + f": {_SAID.get(wish, wish)} may be {', '.join(map(_word, able))}"
        )

    def _conflict(self, space: Space) -> tuple[str, set[str]]:
        """The first wish that leaves nothing, and as few as possible of those before it that it needs for that."""

        def empty(names: set[str]) -> bool:
            some = replace(space, fix=_only(self.fix, names), allow=_only(self.allow, names))
            return next(some.points(), None) is None

        given: list[str] = []
        for name in (*self.fix, *self.allow):
            if empty({*given, name}):
                break
            given.append(name)
        others = set(given)
        for other in given:
            if empty(others - {other} | {name}):
                others.remove(other)
        return name, others


_SAID = {"micro_batch": "micro-batch", "sequence": "sp", "chunks": "vpp"}


def _only(wishes: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {k: v for k, v in wishes.items() if k in names}


def _said(wishes: Mapping[str, object]) -> str:
    """As they are written on the command line."""
    return ", ".join(
        f"{_SAID.get(k, k)}={' or '.join(map(_word, v)) if isinstance(v, list) else _word(v)}"
        for k, v in wishes.items()
    )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Found:
    """What a search has so far: the best, the nearest misses, and what could not fit."""

    def __init__(self, top: int, least_memory: bool = False) -> None:
        self.top = top
        self.least_memory = least_memory
        self.best: list[tuple[float, int, Priced]] = []
        self.misses: list[tuple[float, int, Priced]] = []
        self.hopeless: list[tuple[float, int]] = []
        """(bytes over at least, point), not priced."""
        self.refused = 0

    @property
    def limit(self) -> float:
        """Seconds (or bytes) that a plan must be below to be shown."""
        return self.best[self.top - 1][0] if len(self.best) >= self.top else inf

    def value(self, priced: Priced) -> float:
        """What is to be least."""
        return priced.memory if self.least_memory else priced.seconds

    def refuse(self, over: float, k: int) -> None:
        self.refused += 1
        bisect.insort(self.hopeless, (over, k))
        del self.hopeless[2 * self.top :]

    def add(self, priced: Priced, k: int) -> None:
        if priced.over > 0:
            self.refused += 1
            self.miss(priced, k)
        else:
            bisect.insort(self.best, (self.value(priced), k, priced))

    def miss(self, priced: Priced, k: int) -> None:
        bisect.insort(self.misses, (priced.over, k, priced))
        del self.misses[8 * self.top :]


@contextmanager
def _no_collection() -> Iterator[None]:
    """A search makes many small objects and no cycles: walking a graph of thousands of ops for them costs a fifth of it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


__all__ = ["Grid", "Point"]
