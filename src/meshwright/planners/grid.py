"""The product's default planner: every legal layout of the expert kind, pruned by a bound and by memory, judged by the simulator.

    points    dp × tp (+ sequence) × pp × chunks (gpipe, 1f1b, interleaved) × micro-batch × ZeRO × recompute
    bound     below the step of ANY cut into pp stages; points are taken in its order, and the search stops when no bound
              is below the worst of the `top` plans found
    stages    each takes whole units (blocks of a run, stretches between); the bottleneck is least under every stage's
              memory cap
    price     `simulate` of the finished plan: a grid that does not prune gives the same answer

Not a method of the literature: what an expert would try by hand (Narayanan et al., SC'21, §3; Rajbhandari et al., SC'20),
tried exhaustively.
"""

from __future__ import annotations

import bisect
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf

from ..errors import Infeasible, InputError
from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate.simulator import simulate
from ._expert_layout import Expert
from ._grid_price import Evaluator, Priced
from ._grid_space import Point, Space, read_fix
from .base import Planner
from .registry import register
from .types import Considered, Info, Json, Run


@register
class Grid(Planner):
    """Every legal layout of the expert kind.

    Args:
        fix: fields that must have one value: {"tp": 2, "pp": 2}.
        allow: fields that may have some values: {"recompute": ["none", "full"]}.
        top: plans kept for the table; pruning keeps exactly the best `top`.
        prune: False prices every point (the oracle of the tests).
    """

    info = Info(
        name="grid",
        title="Exhaustive grid of expert layouts",
        year=2026,
        reference="this project",
        decides=frozenset({"stages", "replicas", "shards", "schedule", "recompute"}),
        handles=frozenset({"memory", "dag"}),
        goals=frozenset({"time"}),
        family="hybrid",
    )

    def __init__(
        self,
        *,
        fix: Mapping[str, object] | None = None,
        allow: Mapping[str, Iterable[object]] | None = None,
        top: int = 5,
        prune: bool = True,
    ) -> None:
        self.fix = read_fix(fix or {})
        allowed = {k: [read_fix({k: v}) for v in vs] for k, vs in (allow or {}).items()}
        self.allow = {name: [d[name] for d in ds] for ds in allowed.values() for name in ds[0]}
        self.top = top
        self.prune = prune

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Simulated seconds of one step."""
        return simulate(problem, plan, detail=False).step_seconds

    def fits(self, problem: Problem, tries: int = 64) -> bool:
        """Whether some plan of this space fits: those that may hold least are priced first, up to `tries` of them.

        True is a proof, False is not. Depends on nothing but the problem: no seconds are counted.
        """
        space = Space(problem, Expert(problem.graph), self.fix, self.allow)
        points = list(space.points())
        prices = Evaluator(space)
        order = sorted((prices.least_bytes(p), k) for k, p in enumerate(points))
        return any(prices.price(points[k]).over == 0 for least, k in order[:tries] if least <= prices.usable)

    def search(self, problem: Problem, run: Run) -> Json:
        with _no_collection():
            return self._search(problem, run)

    def _search(self, problem: Problem, run: Run) -> Json:
        space = Space(problem, Expert(problem.graph), self.fix, self.allow)
        points = list(space.points())
        if not points:
            raise self._nothing(space)
        prices = Evaluator(space)
        run.tick(0, "bounds", 0, len(points))
        order = sorted((prices.bound(p), k) for k, p in enumerate(points))
        run.bound(order[0][0])  # holds for any cut into stages, not only for those that `parts` chooses
        best: list[tuple[float, int, Priced]] = []
        misses: list[tuple[float, int, Priced]] = []
        hopeless: list[tuple[float, int]] = []
        refused = 0
        for done, (bound, k) in enumerate(order):
            if self.prune and len(best) >= self.top and bound >= best[self.top - 1][0]:
                break
            if (over := prices.least_over(points[k])) > 0:
                refused += 1
                bisect.insort(hopeless, (over, k))
                del hopeless[2 * self.top :]
                run.tick(0, "search", done + 1, len(order))
                continue
            priced = prices.price(points[k])
            if priced.over > 0:
                refused += 1
                bisect.insort(misses, (priced.over, k, priced))
                del misses[8 * self.top :]
            else:
                run.offer(priced.seconds, priced.plan, priced.memory)
                bisect.insort(best, (priced.seconds, k, priced))
            if done % 8 == 0:
                run.show(self._rows(space, best, misses), (len(points), refused))
            run.tick(1, "search", done + 1, len(order))
        if not best or not misses:
            for _, k in hopeless:
                priced = prices.price(points[k])
                bisect.insort(misses, (priced.over, k, priced))
        rows = self._rows(space, best, misses)
        run.show(rows, (len(points), refused))
        if not best:
            least = misses[0][2]
            raise Infeasible(prices.misfit(least))
        return None

    def _rows(
        self, space: Space, best: Sequence[tuple[float, int, Priced]], misses: Sequence[tuple[float, int, Priced]]
    ) -> list[Considered]:
        """The best `top`, then the nearest misses: those that would be faster than the best, if there are any."""
        limit = best[0][0] if best else inf
        faster = [m for m in misses if m[2].seconds < limit] or list(misses)
        return [x.considered(space) for _, _, x in (*best[: self.top], *faster[: self.top])]

    def _nothing(self, space: Space) -> InputError:
        cluster, batch = space.problem.cluster, space.problem.recipe.samples
        wishes = ", ".join(f"{k}={v}" for k, v in {**self.fix, **self.allow}.items())
        free = Space(space.problem, space.expert, {}, {})
        if next(free.points(), None) is None:
            return InputError(
                f"no layout of {cluster.count} devices divides the batch of {batch}: use a batch that is a multiple of "
                f"the data-parallel degree, for example {max(1, round(batch / cluster.count)) * cluster.count}"
            )
        return InputError(
            f"no layout of {cluster.name} has {wishes}: give fewer of them, the rest is worked out for you"
        )


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
