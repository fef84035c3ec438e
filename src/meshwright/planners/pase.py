"""PaSE (Elango, IPDPS 2021, DOI 10.1109/IPDPS49936.2021.00111): every dim of every op's iteration space may be cut.

A configuration of an op says how many parts each dim of its iteration space has, those that are summed over included; their
product is at most the number of devices. The price of a choice is additive (section 2): inside each op, and between the ends
of each tensor, both directions. The optimum is found by the recurrence over dependent sets (section 3), which is elimination
of variables: D(i), the neighbours that are left of what hangs together with op i among the first i, is the scope of op i as
it leaves.

    order          min_weight: the op whose neighbours have the fewest configurations together leaves next (the default;
                   another value is never found, only sooner)
                   min_degree: GENERATESEQ (figure 4), fewest neighbours next, of equals the lowest
                   breadth_first: the baseline, whose tables outgrow memory on graphs with branches

The method knows no memory limit; where there is one and the optimum is above it, a price for memory is searched so that the
optimum with that price fits, and the gap to the bound is told (`solvers.limited`).

Tables are (min, +) products of arrays, no joins; two tensors between the same ops are both paid for (the public prototype
keeps the last). Prices are the problem's; the prototype's own are cost model `pase-flops`.

On a captured model the axes of one mesh take the place of free numbers of parts: each cuts one dim of an op, or none, so
that the product of the cuts may be below the devices. Meshes of one axis and of two are tried, in all their shapes: where the
last axis lies within a node, that is the locality by which the paper assigns devices afterwards. Equal blocks are cut alike.
Where tables would outgrow the limit even after exact reductions, the common search with a bound answers (`solvers.certified`).
"""

from __future__ import annotations

from math import inf

from ..cluster.model import Mesh
from ..errors import Infeasible, Unsupported
from ..plan.model import Plan
from ..plan.problem import Problem
from ..solvers.certified import certified
from ..solvers.cost_graph import FORBIDDEN, CostGraph, Found
from ..solvers.elimination import LIMIT, eliminate
from ..solvers.elimination_order import ORDERS, OrderName
from ..solvers.limited import eliminate_within
from ..solvers.reductions import reduced
from ._captured import SAME, CapturedOptions, excess_of, meshes_of, micro_batches_to_try, price_of
from ._checked import whole, wholes, word
from ._options import is_recorded, memory_cap, no_choice, options_of
from .base import Planner
from .registry import register
from .types import Info, Json, Run

ATTEMPTS = 8
"""Times that the memory limit is lowered by what the simulator sees above it."""


@register
class PaSE(Planner):
    """Configurations of least total price, proved.

    Args:
        order: in which ops leave: "min_weight", "min_degree" (GENERATESEQ) or "breadth_first".
        limit: entries of the largest table.
        axes: sizes of the mesh axes on a captured model, such as 2,2,2; () = one axis, and all shapes of two.
        micro_batches: of a step of a captured model; None = 1, or the fewest of 2, 4, 8, … that fit.
    """

    info = Info(
        name="pase",
        title="PaSE: Parallelization Strategies for Efficient DNN Training",
        year=2021,
        reference="DOI 10.1109/IPDPS49936.2021.00111",
        decides=frozenset({"shards", "replicas"}),
        handles=frozenset({"dag", "memory"}),
        goals=frozenset({"time"}),
        family="tensor",
    )

    def __init__(
        self,
        *,
        order: OrderName = "min_weight",
        limit: int = LIMIT,
        axes: tuple[int, ...] = (),
        micro_batches: int | None = None,
    ) -> None:
        word("pase", "order", order, ORDERS)
        whole("pase", "limit", limit)
        if axes:
            wholes("pase", "axes", axes, "sizes of mesh axes")
        whole("pase", "micro_batches", micro_batches)
        self.order: OrderName = order
        self.limit = limit
        self.axes = axes
        self.micro_batches = micro_batches

    def search(self, problem: Problem, run: Run) -> Json:
        """A greedy choice, then the optimum; above the memory limit, the best that a price for memory finds.

        Raises:
            Infeasible: every choice is forbidden or too large.
            Unsupported: a graph whose tables would be too large, in whatever order.
        """
        if not is_recorded(problem):
            return self._captured(problem, run)
        options, cap = options_of(problem), memory_cap(problem)
        graph = options.graph

        def offer(choice: tuple[int, ...]) -> None:
            run.offer(graph.cost(choice), lambda: options.plan(choice), graph.bytes(choice))

        first = greedy(graph)
        if graph.cost(first) < inf and graph.bytes(first) <= cap:
            offer(first)
        found = eliminate_within(graph, cap, lambda g: self._eliminated(g, run), offer)
        if not found.choice:
            raise Infeasible(no_choice(problem, graph, cap))
        run.bound(found.bound)
        offer(found.choice)
        chosen: dict[str, Json] = {op.name: options.words(v, found.choice[v]) for v, op in enumerate(problem.graph.ops)}
        return {**self._told(graph, found), "chosen": chosen}

    def _captured(self, problem: Problem, run: Run) -> Json:
        """The same on a captured model, on each mesh: the bound is that of the mesh with the lowest."""
        count = problem.limits.devices or problem.cluster.count
        bounds, why = [], "every choice of configurations has a forbidden price"
        for micro_batches in micro_batches_to_try(problem, self.micro_batches):
            told: dict[str, Json] = {}
            for mesh in meshes_of(problem, count, self.axes):
                bound, reason, here = self._on_mesh(problem, mesh, micro_batches, run)
                bounds.append(bound)
                told["×".join(map(str, mesh.shape))] = here
                why = reason or why
            if any(isinstance(here, dict) and here["fits"] for here in told.values()):
                run.bound(min(bounds))
                return {"micro_batches": micro_batches, "meshes": told}
        run.bound(min(bounds))
        raise Infeasible(why)

    def _on_mesh(self, problem: Problem, mesh: Mesh, micro_batches: int, run: Run) -> tuple[float, str, Json]:
        """(bound, why nothing fits or "", what is told): where the optimum does not fit, the limit is lowered until a plan does."""
        options = CapturedOptions(problem, mesh, micro_batches, tradeoff=False)
        found = free = self._best(options.graph, run)
        told: dict[str, Json] = {"fits": False, **self._told(options.graph, free)}
        room, bound, why = memory_cap(problem), free.bound, ""
        for attempt in range(ATTEMPTS):
            if not found.choice:
                return bound, why, told
            plan = options.plan(found.choice)
            price = price_of(problem, plan)
            if attempt == 0 and free.bound == free.value and abs(price - free.value) < SAME * price:
                bound = price  # the program's sum is the graph's in another order
            over, why = excess_of(problem, plan)
            if not over:
                run.offer(price, lambda plan=plan: plan, options.graph.bytes(found.choice))  # type: ignore[misc]
                return bound, "", {**told, "fits": True}
            # What the simulator sees besides what the graph counts must fit, too.
            room = min(room, options.graph.bytes(found.choice) - over)
            if attempt == 0:
                options = CapturedOptions(problem, mesh, micro_batches)
            found = eliminate_within(options.graph, room, lambda g: self._best(g, run))
        return bound, why, told

    def _best(self, graph: CostGraph, run: Run) -> Found:
        """Exact reductions, then elimination; where tables would be too large, the common search with a bound."""
        small = reduced(graph)
        if small.constant == inf:
            return FORBIDDEN
        try:
            inner = self._eliminated(small.graph, run)
        except Unsupported:
            return certified(graph, progress=lambda phase, steps, value, bound: run.tick(1, phase))
        choice = small.restored(inner.choice)
        value = graph.cost(choice)
        return Found(choice, value, value, inner.width, inner.largest)

    def _eliminated(self, graph: CostGraph, run: Run) -> Found:
        return eliminate(graph, self.order, self.limit, lambda done, total: run.tick(1, "ops", done, total))

    def _told(self, graph: CostGraph, found: Found) -> dict[str, Json]:
        return {
            "order": self.order,
            "largest_dependent_set": found.width,
            "most_configurations": max(map(len, graph.unary)),
            "configurations": sum(map(len, graph.unary)),
            "largest_table": found.largest,
        }

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Sum over ops and tensors, in the unit of the cost model.

        Raises:
            Unsupported: recorded prices, and an op that is computed in a way that is no configuration.
        """
        if not is_recorded(problem):
            return price_of(problem, plan)
        options = options_of(problem)
        return options.graph.cost(options.choice(plan))

    def contains(self, problem: Problem, plan: Plan) -> bool:
        """On captured models: one stage on a mesh of these, as many micro-batches as are asked for, nothing computed twice."""
        if is_recorded(problem):
            return True
        count = problem.limits.devices or problem.cluster.count
        stage = plan.stages[0]
        shapes = [sorted(mesh.shape) for mesh in meshes_of(problem, count, self.axes)]
        alike = plan.schedule.micro_batches == (self.micro_batches or 1) and plan.schedule.weights.flush
        return len(plan.stages) == 1 and sorted(stage.mesh.shape) in shapes and alike and not stage.recompute


def greedy(graph: CostGraph) -> tuple[int, ...]:
    """Each variable in turn takes what is cheapest with those before it."""
    before: list[list[int]] = [[] for _ in graph.unary]
    for e, (u, v) in enumerate(graph.edges):
        before[max(u, v)].append(e)
    found: list[int] = []
    for v, own in enumerate(graph.unary):
        price = own
        for e in before[v]:
            (a, b), table = graph.edges[e], graph.tables[e]
            price = price + (table.diagonal() if a == b else table[found[a]] if b == v else table[:, found[b]])
        found.append(int(price.argmin()))
    return tuple(found)
