"""The price of SUMMA: steps, broadcasts on real links, what double buffering hides, blocks in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from meshwright.cluster import resolve
from meshwright.cost import Analytic
from meshwright.cost.base import Group
from meshwright.graph.ir import Floats, Graph
from meshwright.lower import lower
from meshwright.lower.program import Segment
from meshwright.plan.model import Plan
from meshwright.plan.problem import Problem, Recipe
from meshwright.simulate.price import PARTS, Pricer
from meshwright.simulate.segment import SegmentPrice
from meshwright.simulate.simulator import simulate
from meshwright.testing.linear import LINEAR, linear_graph, linear_plan


class Overlapping(Analytic):
    """Nothing hides but what double buffering does, of which `share` can."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.hides = share

    def overlap(self, kind: str) -> float:
        return self.hides if kind == "sharded" else 0.0


def setting(cluster: str, q: int, size: int = 4096) -> tuple[Graph, Plan, Recipe]:
    graph = linear_graph(size, size, size)
    assert resolve(cluster).count >= q * q
    return graph, linear_plan(graph, "2d", q * q), Recipe(size)


def priced(cluster: str, q: int, cost: Analytic, size: int = 4096) -> tuple[Segment, SegmentPrice, Graph]:
    graph, plan, recipe = setting(cluster, q, size)
    (code,) = lower(graph, plan, recipe).stages
    (segment,) = code.segments
    pricer = Pricer(graph, resolve(cluster), cost, recipe)
    return segment, pricer.segment(segment, code.mesh, np.array([size])), graph


def broadcasts(price: SegmentPrice) -> tuple[float, float]:
    """Seconds that are seen, forward and backward."""
    column = PARTS.index("broadcast")
    return float(price.forward[0, column]), float(price.backward[0, column])


def seconds_of(cost: Analytic, cluster: str, graph: Graph, segment: Segment, q: int) -> tuple[float, dict[str, float]]:
    """One broadcast, and one step of each phase of the product, from the cost model."""
    plan = setting(cluster, q)[1]
    mesh, devices = plan.stages[0].mesh, resolve(cluster)
    panel = next(i for i in segment.forward if i.kind == "panel")
    size = panel.nbytes * graph.samples / q
    one = float(cost.collective("broadcast", np.array([size]), Group(devices, mesh, panel.axes))[0])
    op = next(op for op in graph.ops if op.name == LINEAR)
    sizes = np.array([[graph.samples // q, *(f.size // q for f in op.rule.factors[1:])]], np.int64)
    phases = ("forward", "input_grad", "weight_grad")

    def spent(phase: str) -> float:
        found: Floats = cost.compute(op, sizes, devices.types[0], phase)  # type: ignore[arg-type]
        return float(found[0])

    return one, {phase: spent(phase) for phase in phases}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("cluster", "q"), [("a100x4", 2), ("a100x16", 4)])
def test_double_buffering_hides_all_steps_but_the_first(cluster: str, q: int, share: float) -> None:
    cost = Overlapping(share)
    segment, price, graph = priced(cluster, q, cost)
    one, step = seconds_of(cost, cluster, graph, segment, q)
    panel = next(i for i in segment.forward if i.kind == "panel" and i.dim2 == 1)  # of W: as large, along other links
    mesh = setting(cluster, q)[1].stages[0].mesh
    one_w = float(cost.collective("broadcast", np.array([panel.nbytes]), Group(resolve(cluster), mesh, panel.axes))[0])
    forward, backward = broadcasts(price)
    assert forward == pytest.approx(q * (one + one_w) - share * (q - 1) * min(one + one_w, step["forward"]))
    hidden = (q - 1) * (min(one_w, step["input_grad"]) + min(one, step["weight_grad"]))
    assert backward == pytest.approx(q * (one + one_w) - share * hidden)


def test_a_product_in_steps_takes_its_steps() -> None:
    """q products of k / q each, not one of k: smaller products are slower, never faster."""
    cost = Overlapping(0.0)
    segment, price, graph = priced("a100x4", 2, cost)
    _, step = seconds_of(cost, "a100x4", graph, segment, 2)
    op = next(op for op in graph.ops if op.name == LINEAR)
    whole = np.array([[2048, 2048, 4096]], np.int64)
    at_once = float(cost.compute(op, whole, resolve("a100x4").types[0], "forward")[0])
    assert at_once <= 2 * step["forward"] < float(price.forward[0, 0])


def test_rows_inside_of_a_node_are_cheaper_than_rows_across_nodes() -> None:
    graph, plan, recipe = setting("a100x16", 4)
    problem = Problem(graph, resolve("a100x16"), Analytic(), recipe)
    (stage,) = plan.stages
    across = tuple(4 * c + r for r in range(4) for c in range(4))  # every row and no column crosses nodes
    scattered = tuple((5 * k) % 16 for k in range(16))
    near = simulate(problem, plan).step_seconds
    turned, spread = (
        simulate(problem, replace(plan, stages=(replace(stage, mesh=replace(stage.mesh, devices=d)),))).step_seconds
        for d in (across, scattered)
    )
    assert near == pytest.approx(turned)  # X and W are alike here: rows and columns change places
    assert near < spread


def test_two_blocks_of_each_operand_are_there_at_once() -> None:
    graph, plan, recipe = setting("a100x4", 2)
    (code,) = lower(graph, plan, recipe).stages
    (segment,) = code.segments
    fixed, each = segment.kept.transient
    block = 4096 * 4096 / 4 * 4
    assert fixed + each * 2048 >= 2 * 2 * block
