"""The default planner: pruning loses nothing, bounds are bounds, every answer is the simulator's, memory decides."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cluster.model import Cluster
from meshwright.cost import Analytic
from meshwright.errors import InputError
from meshwright.graph.ir import Graph
from meshwright.layouts.expert import Expert
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.plan.validate import validate
from meshwright.planners._grid_price import Evaluator
from meshwright.planners._grid_space import Space
from meshwright.planners.grid import Grid
from meshwright.simulate.fits import fits
from meshwright.simulate.simulator import simulate
from meshwright.testing import PlannerConformance


class TestGridConforms(PlannerConformance):
    planner = "grid"


@lru_cache(maxsize=8)
def graph(name: str, blocks: int) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(blocks=blocks, width=256, heads=8, kv_heads=4, ffn=512, vocab=512, seq=128, experts=8, dropout=0.0)
    return resolve(name).graph(batch=2, seq=128, dtype="bfloat16", shrink=shrink, cache=False)


def problem(name: str, blocks: int, cluster: Cluster, batch: int, memory: float = float("inf")) -> Problem:
    return Problem(graph(name, blocks), cluster, Analytic(), Recipe(batch), limits=Limits(memory=memory))


def small_problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    name = ("llama-3.1-8b", "gpt2")[int(rng.integers(2))]
    devices = int(2 ** rng.integers(1, 4))
    preset = ("h100", "a100", "v100")[int(rng.integers(3))]
    batch = devices * int(2 ** rng.integers(0, 3))
    cluster = cluster_of(f"{preset}x{devices}")
    memory = float(rng.choice([0.02, 0.03, 0.06, 80.0])) * 2**30 + Analytic().workspace(cluster.types[0]) / 0.9
    return problem(name, 4, cluster, batch, memory)


@pytest.mark.parametrize("seed", range(30))
def test_pruned_equals_exhaustive(seed: int) -> None:
    p = small_problem(seed)
    allow = {
        "chunks": [1, 2],
        "micro-batch": [1, 4],
        "zero": [[0, 1], [0, 2], [1, 3]][seed % 3],
        "recompute": [["none", "light"], ["none", "full"]][seed % 2],
    }
    pruned, every = Grid(allow=allow).plan(p), Grid(allow=allow, prune=False).plan(p)
    assert pruned.status == every.status
    assert pruned.evaluations <= every.evaluations
    best = [(r.layout, r.objective) for r in pruned.considered if not r.over][:5]
    assert best == [(r.layout, r.objective) for r in every.considered if not r.over][:5]


@pytest.mark.parametrize("seed", range(0, 30, 5))
def test_of_least_memory_too(seed: int) -> None:
    p = replace(small_problem(seed), goal="memory")
    allow = {"chunks": [1, 2], "micro-batch": [1, 4], "zero": [0, 2 + seed % 2], "recompute": ["none", "full"]}
    pruned, every = Grid(allow=allow).plan(p), Grid(allow=allow, prune=False).plan(p)
    assert (pruned.status == "infeasible") == (every.status == "infeasible")
    assert pruned.evaluations <= every.evaluations
    best = [(r.layout, r.objective) for r in pruned.considered if not r.over][:5]
    assert best == [(r.layout, r.objective) for r in every.considered if not r.over][:5]
    if pruned.plan is not None:
        assert pruned.unit == "B" and pruned.objective == Grid().objective(p, pruned.plan) == best[0][1]
        assert pruned.bound is not None and pruned.bound <= pruned.objective
        fastest = Grid(allow=allow).plan(replace(p, goal="time"))
        assert all(pruned.objective <= r.memory for r in fastest.considered)


@pytest.mark.parametrize("seed", range(0, 30, 3))
def test_no_price_is_below_its_bound(seed: int) -> None:
    space = Space(small_problem(seed), Expert(small_problem(seed).graph), {}, {})
    prices = Evaluator(space)
    points = list(space.points())
    for k in np.random.default_rng(seed).permutation(len(points))[:40]:
        point = points[k]
        assert prices.first_bound(point) <= prices.bound(point) * (1 + 1e-12)
        assert prices.bound(point) <= prices.price(point).seconds * (1 + 1e-12)
        assert prices.rest_bytes(point) <= prices.price(point).memory * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(0, 30, 3))
def test_what_is_refused_unpriced_does_not_fit(seed: int) -> None:
    p = small_problem(seed)
    tight = replace(p, limits=Limits(memory=0.02 * 2**30))
    space = Space(tight, Expert(p.graph), {}, {})
    prices = Evaluator(space)
    points = list(space.points())
    for k in np.random.default_rng(seed).permutation(len(points))[:30]:
        over = prices.price(points[k]).over * (1 + 1e-12)
        assert prices.least_over(points[k]) <= over
        assert prices.first_over(points[k]) <= over


@pytest.mark.parametrize("seed", range(3))
def test_bounds_and_prices_hold_for_experts_contexts_and_uneven_work(seed: int) -> None:
    """A mixture of experts with skewed routing and packed documents, every layout that eight devices have."""
    base = problem("mixtral-8x7b", 4, cluster_of("h100x8"), 32, [1e12, 0.06 * 2**30, 0.02 * 2**30][seed])
    p = replace(base, recipe=replace(base.recipe, routing_skew=1.5, attention_share=0.25))
    space = Space(p, Expert(p.graph), {}, {"cp": [1, 2], "ep": [1, 2, 4], "zero": [0, 3], "pp": [1, 2]})
    prices = Evaluator(space)
    points = list(space.points())
    assert {(x.cp > 1) * x.context for x in points} == {"", "ulysses", "gather"}
    assert {x.schedule for x in points} >= {"zb-h1", "bfs"}
    for k in np.random.default_rng(seed).permutation(len(points))[:12]:
        priced = prices.price(points[k])
        assert prices.first_bound(points[k]) <= prices.bound(points[k]) * (1 + 1e-12)
        assert prices.bound(points[k]) <= priced.seconds * (1 + 1e-12)
        assert max(prices.first_over(points[k]), prices.least_over(points[k])) <= priced.over * (1 + 1e-12)
        simulation = simulate(p, priced.plan(), detail=False)
        assert simulation.step_seconds == pytest.approx(priced.seconds, rel=1e-9)
        assert float(simulation.peak.max()) == pytest.approx(priced.memory, rel=1e-9)


@pytest.mark.parametrize("seed", range(0, 30, 3))
def test_a_price_is_the_simulators(seed: int) -> None:
    """Same seconds, same bytes, for legal plans of every kind."""
    p = small_problem(seed)
    space = Space(p, Expert(p.graph), {}, {})
    prices = Evaluator(space)
    points = list(space.points())
    for k in np.random.default_rng(seed).permutation(len(points))[:12]:
        priced = prices.price(points[k])
        plan = priced.plan()
        validate(p, plan)
        simulation = simulate(p, plan, detail=False)
        assert simulation.step_seconds == pytest.approx(priced.seconds, rel=1e-9)
        assert float(simulation.peak.max()) == pytest.approx(priced.memory, rel=1e-9)
        assert (fits(p, plan) is None) == (priced.over == 0)


@pytest.mark.parametrize("seed", range(0, 30, 6))
def test_fits_is_what_the_whole_search_finds(seed: int) -> None:
    p = small_problem(seed)
    grid = Grid(allow={"chunks": [1, 2], "micro_batch": [1], "zero": [0, 1, 3], "recompute": ["none", "full"]})
    least = min(r.memory for r in grid.plan(p).considered)
    found = set()
    for share in (2.0, 1.001, 0.9, 0.6, 0.3):
        q = replace(p, limits=Limits(memory=least * share / 0.9))
        assert grid.fits(q) == (grid.plan(q).plan is not None)
        found.add(grid.fits(q))
    assert found == {True, False}


def test_a_price_does_not_depend_on_what_was_priced_before() -> None:
    p = problem("gpt2", 4, cluster_of("v100x8"), 32)
    allow = {"chunks": [1, 2], "micro_batch": [1, 4], "zero": [0, 2], "recompute": ["none", "full"]}
    space = Space(p, Expert(p.graph), {}, allow)
    points = list(space.points())
    forwards = Evaluator(space)
    first = [(x.seconds, x.memory) for x in map(forwards.price, points)]
    p.graph.__dict__.pop("_lowering", None)
    backwards = Evaluator(Space(p, Expert(p.graph), {}, allow))
    again = [(x.seconds, x.memory) for x in map(backwards.price, reversed(points))]
    assert first == again[::-1]


def test_the_objective_is_the_results() -> None:
    p = small_problem(1)
    result = Grid().plan(p)
    assert result.plan is not None
    assert Grid().objective(p, result.plan) == pytest.approx(result.objective, rel=1e-9)
    assert result.bound is not None
    assert result.bound <= result.objective


def test_less_memory_is_never_faster() -> None:
    roomy = problem("llama-3.1-8b", 4, cluster_of("h100x8"), 32)
    peak = Grid().plan(roomy).considered[0].memory
    last = 0.0
    for share in (2.0, 1.0, 0.7, 0.5):
        result = Grid().plan(replace(roomy, limits=Limits(memory=peak * share / 0.9)))
        if result.plan is None:
            break
        assert result.objective >= last
        last = result.objective


def test_infeasible_says_what_does_not_fit() -> None:
    result = Grid().plan(problem("llama-3.1-8b", 4, cluster_of("h100x2"), 4, 2**20))
    assert result.status == "infeasible"
    assert result.plan is None
    assert "over the usable" in result.reason
    assert all(r.over > 0 for r in result.considered)


def test_fixed_fields_have_their_value() -> None:
    p = problem("llama-3.1-8b", 4, cluster_of("h100x8"), 32)
    result = Grid(fix={"tp": 2, "pp": "2", "recompute": "full"}).plan(p)
    assert result.plan is not None
    assert all(s.mesh.shape == (2, 2) for s in result.plan.stages)
    assert all(r.recompute == "full" for r in result.considered)


def test_wishes_that_nothing_has_are_refused_by_name() -> None:
    with pytest.raises(InputError, match='nothing called "tq" to fix'):
        Grid(fix={"tq": 2})


@pytest.mark.parametrize(
    ("fix", "allow", "sentence"),
    [
        ({"tp": 3}, {}, "tp=3: tp may be 1, 2, 4"),
        ({}, {"recompute": ["some"]}, "recompute=some: recompute may be full, light, none"),
        ({"dp": 2, "recompute": "full", "pp": 8}, {}, "pp=8: pp may be 1, 2, 4"),
        ({"dp": 4, "zero": 0, "tp": 4}, {}, "tp=4 with dp=4: tp may be 1, 2"),
        ({"recompute": "none", "dp": 1, "zero": 2}, {}, "zero=2 with dp=1: zero may be 0"),
        ({"pp": 4, "vpp": 2}, {}, "vpp=2 with pp=4: vpp may be 1"),
        ({"micro-batch": 5, "dp": 2}, {}, "micro-batch=5: micro-batch may be 1, 2, 4, 8, 16, 32"),
    ],
)
def test_wishes_that_no_layout_has_are_named_with_what_may_be(
    fix: dict[str, object], allow: dict[str, list[object]], sentence: str
) -> None:
    p = problem("llama-3.1-8b", 4, cluster_of("h100x8"), 32)
    with pytest.raises(InputError) as error:
        Grid(fix=fix, allow=allow).plan(p)
    assert str(error.value) == f"no layout of h100x8, batch 32, has {sentence}"


def test_more_bandwidth_is_never_slower() -> None:
    p = problem("llama-3.1-8b", 4, cluster_of("h100x16"), 32)
    faster = tuple(replace(level, bandwidth=2 * level.bandwidth, uplink=2 * level.uplink) for level in p.cluster.levels)
    q = replace(p, cluster=replace(p.cluster, levels=faster))
    assert Grid().plan(q).objective <= Grid().plan(p).objective
