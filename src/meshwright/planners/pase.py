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
keeps the last). Prices are the problem's; the prototype's own are cost model `pase-flops`. Not there: the greedy assignment
of parts to devices, which comes after the search.
"""

from __future__ import annotations

from math import inf
from typing import get_args

from ..errors import Infeasible
from ..plan.model import Plan
from ..plan.problem import Problem
from ..solvers.cost_graph import CostGraph
from ..solvers.elimination import LIMIT
from ..solvers.elimination_order import OrderName
from ..solvers.limited import eliminate_within
from ._checked import whole, word
from ._options import memory_cap, no_choice, options_of
from .base import Planner
from .registry import register
from .types import Info, Json, Run


@register
class PaSE(Planner):
    """Configurations of least total price, proved.

    Args:
        order: in which ops leave: "min_weight", "min_degree" (GENERATESEQ) or "breadth_first".
        limit: entries of the largest table.
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
        missing=(
            "captured models: only recorded cost graphs and graphs of the prototype's format are planned",
            "assignment of parts to devices for locality",
        ),
    )

    def __init__(self, *, order: OrderName = "min_weight", limit: int = LIMIT) -> None:
        word("pase", "order", order, get_args(OrderName))
        whole("pase", "limit", limit)
        self.order: OrderName = order
        self.limit = limit

    def search(self, problem: Problem, run: Run) -> Json:
        """A greedy choice, then the optimum; above the memory limit, the best that a price for memory finds.

        Raises:
            Infeasible: every choice is forbidden or too large.
            Unsupported: a graph whose tables would be too large, in whatever order.
        """
        options, cap = options_of(problem), memory_cap(problem)
        graph = options.graph

        def offer(choice: tuple[int, ...]) -> None:
            run.offer(graph.cost(choice), lambda: options.plan(choice), graph.bytes(choice))

        first = greedy(graph)
        if graph.cost(first) < inf and graph.bytes(first) <= cap:
            offer(first)
        found = eliminate_within(
            graph, cap, self.order, self.limit, lambda done, total: run.tick(1, "ops", done, total), offer
        )
        if not found.choice:
            raise Infeasible(no_choice(problem, graph, cap))
        run.bound(found.bound)
        offer(found.choice)
        return {
            "order": self.order,
            "largest_dependent_set": found.width,
            "most_configurations": max(map(len, graph.unary)),
            "configurations": sum(map(len, graph.unary)),
            "largest_table": found.largest,
            "chosen": {op.name: options.words(v, found.choice[v]) for v, op in enumerate(problem.graph.ops)},
        }

    def objective(self, problem: Problem, plan: Plan) -> float:
        """Sum over ops and tensors, in the unit of the cost model.

        Raises:
            Unsupported: an op that is computed in a way that is no configuration.
        """
        options = options_of(problem)
        return options.graph.cost(options.choice(plan))


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
