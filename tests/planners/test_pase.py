"""PaSE: published optima and fixed plans under the prototype's prices, its orders, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cost.analytic import Analytic
from meshwright.errors import InputError, Unsupported
from meshwright.formats import factor_graph, pase
from meshwright.graph.ir import Op
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.plan.problem import Limits, Problem, Recipe
from meshwright.planners._options import PaSEOptions, options_of
from meshwright.planners.megatron import Megatron
from meshwright.planners.pase import PaSE, greedy
from meshwright.planners.tensoropt import TensorOpt
from meshwright.planners.types import Budget
from meshwright.simulate import simulate
from meshwright.simulate.fits import fits
from meshwright.solvers.cost_graph import CostGraph
from meshwright.solvers.elimination import eliminate
from meshwright.solvers.elimination_order import order_of
from reference_cases import reference_cases

OPTIMA = reference_cases(
    "pase",
    "Optima in FLOPs",
    source="the original program; resnet101: an elimination that is not this one",
    columns=("network", "devices", "least total price"),
    rows=[
        ("alexnet", 4, 148215719552),
        ("alexnet", 8, 97098296512),
        ("alexnet", 16, 70320712672),
        ("alexnet", 32, 53136349552),
        ("rnnlm", 4, 6866837733376),
        ("rnnlm", 8, 4024963186688),
        ("rnnlm", 16, 2476066881536),
        ("inception3", 4, 986757044608),
        ("inception3", 8, 782140602432),
        ("inception3", 32, 602425599824),
        ("inception3", 64, 553203648656),
        ("transformer", 4, 2189181321216),
        ("transformer", 8, 1421082828800),
        ("transformer", 16, 1004992614400),
        ("resnet101", 4, 1718742247936),
        ("resnet101", 16, 1244493633088),
        ("resnet101", 32, 1086268826784),
    ],
)
BEST = {(name, devices): value for name, devices, value in OPTIMA}
FIXED = reference_cases(
    "pase", "Plans of experts in FLOPs", source="the original study",
    columns=("network", "plan", "devices", "total price"),
    rows=[
        ("alexnet", "data", 4, 577556866496),
        ("alexnet", "data", 8, 601108833248),
        ("alexnet", "data", 16, 612884816624),
        ("alexnet", "data", 32, 618772808312),
        ("alexnet", "owt", 4, 170579586688),
        ("alexnet", "owt", 8, 126301793472),
        ("alexnet", "owt", 16, 104162896864),
        ("alexnet", "owt", 32, 93093448560),
        ("inception3", "data", 4, 1000665140416),
        ("inception3", "data", 8, 798678010208),
        ("inception3", "owt", 4, 989238580608),
        ("inception3", "owt", 8, 785346810432),
        ("rnnlm", "data", 4, 9435357388800),
        ("rnnlm", "data", 8, 7101223014400),
        ("rnnlm", "expert", 4, 9267585228800),
        ("rnnlm", "expert", 8, 6849564774400),
        ("transformer", "data", 4, 2491384193024),
        ("transformer", "data", 8, 1850200256512),
        ("transformer", "data", 16, 1529608288256),
        ("transformer", "data", 32, 1369312304128),
        ("transformer", "data", 64, 1289164312064),
        ("transformer", "mesh", 4, 2491384193024),
        ("transformer", "mesh", 8, 3304656961536),
        ("transformer", "mesh", 16, 1803685920768),
        ("transformer", "mesh", 32, 1689062715392),
        ("transformer", "mesh", 64, 920363677696),
    ],
)  # fmt: skip
MESH = {4: (4, 1), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8)}
"""Batch × model of the Mesh-TensorFlow experts."""


def problem_of(data: Path, name: str, devices: int) -> Problem:
    return pase.read(data / "pase" / f"{name}.json.gz", devices=devices)


def cut_of(op: Op, plan: str, devices: int) -> tuple[int, ...]:
    """How the fixed plans of the study cut an op."""
    sizes = {f.name: f.size for f in op.rule.factors}
    names = list(sizes)
    batch = names[1] if op.kind in ("Stack", "Unstack") else "b" if "b" in op.rule.results[0][0] or op.kind in ("LSTM", "Conv") else names[0]  # fmt: skip
    if op.kind == "Einsum":
        batch = "a" if "a" in names else "b"
    cuts = {batch: devices}
    if plan == "owt" and op.kind in ("FC", "SoftmaxCrossEntropy"):
        classes = "n" if op.kind == "FC" else names[-1]
        cuts = {classes: max(n for n in range(1, devices + 1) if sizes[classes] % n == 0)}
    if plan == "expert" and op.kind == "LSTM":
        cuts = {"l": 2, "b": devices // 2}
    if plan == "mesh":
        first, second = MESH[devices]
        cuts = {batch: first}
        # Heads, hidden features, and the vocabulary, which the embedding sums over.
        model = {"Einsum": set("hfv") | ({"c"} if "a" in names else set()), "Softmax": {"d1"}, "Unstack": {"d2"}, "SoftmaxCrossEntropy": {"d2"}}  # fmt: skip
        cuts |= dict.fromkeys(model.get(op.kind, set()) & set(names), second)
    return tuple(cuts.get(n, 1) for n in names)


@pytest.mark.parametrize(("name", "devices", "least"), OPTIMA)
def test_optima_to_the_last_digit(data_folder: Path, name: str, devices: int, least: int) -> None:
    problem = problem_of(data_folder, name, devices)
    result = PaSE().plan(problem)
    assert result.plan is not None
    assert (result.status, result.objective, result.bound) == ("optimal", least, least)
    assert PaSE().objective(problem, result.plan) == result.objective


@pytest.mark.parametrize(
    ("name", "optimum"),
    [
        ("alexnet_4", 148215719552), ("alexnet_8", 97098296512), ("rnnlm_8", 4024963186688), ("inception3_4", 986757044608),
        ("transformer_4", 2189181321216),
    ],
)  # fmt: skip
def test_optima_of_the_prototypes_own_tables(data_folder: Path, name: str, optimum: int) -> None:
    problem = pase.read(data_folder / "pase" / f"{name}_costs.npz")
    result = PaSE().plan(problem)
    assert (result.status, result.objective, result.unit) == ("optimal", optimum, "flop")


@pytest.mark.parametrize(("name", "plan", "devices", "price"), FIXED)
def test_fixed_plans_cost_what_is_published_and_none_beats_the_optimum(
    data_folder: Path, name: str, plan: str, devices: int, price: int
) -> None:
    options = options_of(problem_of(data_folder, name, devices))
    assert isinstance(options, PaSEOptions)
    ops = options.problem.graph.ops
    choice = [options.option(v, cut_of(op, plan, devices)) for v, op in enumerate(ops)]
    assert options.graph.cost(choice) == price
    assert price >= BEST.get((name, devices), 0)
    assert PaSE().objective(options.problem, options.plan(choice)) == price


def test_cuts_that_leave_less_than_the_cutoff_are_outside(data_folder: Path) -> None:
    options = options_of(problem_of(data_folder, "alexnet", 64))
    assert isinstance(options, PaSEOptions)
    with pytest.raises(Unsupported, match=r"op 0 \(Conv\) cut \(64, 1, 1, 1, 1, 1, 1\) ways is no configuration"):
        options.option(0, (64, 1, 1, 1, 1, 1, 1))


def test_the_published_plans_of_eight_devices_cost_no_less(data_folder: Path) -> None:
    """Ties exist, so prices are compared: AlexNet's alternating fully connected layers, RNNLM's LSTM in four and two."""
    alexnet: dict[str, tuple[int, ...]] = {"10": (1, 2, 4), "11": (1, 4, 2), "12": (1, 2, 4), "13": (1, 2)}
    rnnlm: dict[str, tuple[int, ...]] = {"0": (1, 1, 1, 8), "1": (2, 1, 4, 1, 1), "2": (2, 1, 4, 1), "3": (2, 1, 4)}
    for name, cuts in (("alexnet", alexnet), ("rnnlm", rnnlm)):
        options = options_of(problem_of(data_folder, name, 8))
        assert isinstance(options, PaSEOptions)
        ops = options.problem.graph.ops
        choice = [
            options.option(v, cuts.get(op.name, (8, *(1,) * (len(op.rule.factors) - 1)))) for v, op in enumerate(ops)
        ]
        if name == "alexnet":  # the flattening between them has a free choice
            price = min(_with(options.graph, choice, v, c) for v in (8,) for c in range(len(options.graph.unary[8])))
            assert price >= BEST[name, 8]
            choice = list(_best_of(options.graph, choice, (8, 9)))
        assert options.graph.cost(choice) == BEST[name, 8]


def test_on_a_block_that_must_be_cut_both_find_what_is_no_slower_than_megatron() -> None:
    """One sequence on eight devices of a node, with less memory than a replica needs: there is no batch to cut."""
    shrink = Shrink(blocks=1, width=4096, heads=32, ffn=16384, vocab=50304, seq=1024, dropout=0.0)
    graph = resolve("gpt2").graph(batch=1, seq=1024, dtype="bfloat16", shrink=shrink, cache=False)
    replicated = sum(t.nbytes for t in graph.params()) / 2 * (2 + 4 + 4 + 8)
    limits = Limits(memory=0.6 * replicated, keep_free=0.0)
    problem = Problem(graph, cluster_of("a100x8"), Analytic(), Recipe(1), limits=limits)
    megatron = Megatron().plan(problem).plan
    assert megatron is not None
    step = simulate(problem, megatron, detail=False).step_seconds
    for planner in (PaSE(), TensorOpt()):
        result = planner.plan(problem)
        assert result.plan is not None and result.status == "optimal"
        assert fits(problem, result.plan) is None
        assert simulate(problem, result.plan, detail=False).step_seconds <= step * (1 + 1e-9)
        assert planner.objective(problem, megatron) >= result.objective * (1 - 1e-9)


def _with(graph: CostGraph, choice: list[int], variable: int, option: int) -> float:
    return graph.cost([option if v == variable else c for v, c in enumerate(choice)])


def _best_of(graph: CostGraph, choice: list[int], free: tuple[int, ...]) -> tuple[int, ...]:
    """The best options of some variables where all others keep theirs."""
    kept = CostGraph(
        tuple(u if v in free else np.where(np.arange(len(u)) == choice[v], u, np.inf) for v, u in enumerate(graph.unary)),
        graph.edges, graph.tables,
    )  # fmt: skip
    return eliminate(kept).choice


def test_more_devices_never_cost_more(data_folder: Path) -> None:
    for name in ("alexnet", "rnnlm"):
        prices = [PaSE().plan(problem_of(data_folder, name, devices)).objective for devices in range(1, 17)]
        assert all(b <= a for a, b in pairwise(prices))


@pytest.mark.parametrize(
    ("name", "devices", "most", "total", "width", "largest"),
    [
        ("alexnet", 4, 12, 116, 1, None), ("alexnet", 32, 100, 684, 1, None), ("rnnlm", 8, None, None, 1, None),
        ("inception3", 8, 30, 4299, 2, 25200), ("resnet101", 4, None, None, 2, None), ("transformer", 8, 62, 7729, 3, 160000),
    ],
)  # fmt: skip
def test_generateseq_has_the_published_sizes(
    data_folder: Path, name: str, devices: int, most: int | None, total: int | None, width: int, largest: int | None
) -> None:
    told: Any = PaSE(order="min_degree").plan(problem_of(data_folder, name, devices)).carry
    assert told["largest_dependent_set"] == width
    assert most in (None, told["most_configurations"]) and total in (None, told["configurations"])
    assert largest in (None, told["largest_table"])


def test_min_weight_makes_smaller_tables_than_generateseq(data_folder: Path) -> None:
    graph = options_of(problem_of(data_folder, "inception3", 32)).graph
    sizes = [len(u) for u in graph.unary]
    assert order_of(sizes, graph.edges, "min_degree").largest == 739600
    assert order_of(sizes, graph.edges, "min_weight").largest == 172000


def test_breadth_first_finds_the_same_on_chains_and_outgrows_memory_on_branches(data_folder: Path) -> None:
    for name in ("alexnet", "rnnlm"):
        problem = problem_of(data_folder, name, 8)
        assert PaSE(order="breadth_first").plan(problem).objective == BEST[name, 8]
    for order in ("min_degree", "min_weight"):
        assert PaSE(order=order).plan(problem_of(data_folder, "inception3", 4)).objective == BEST["inception3", 4]  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=r"the breadth_first order needs a table of .* more than the limit"):
        PaSE(order="breadth_first").plan(problem_of(data_folder, "transformer", 4))


def test_small_graphs_reach_the_published_minima(data_folder: Path) -> None:
    least = {
        "chain6": 120, "diamond": 116, "multi-edge": 56, "two-diamonds": 150, "k4": 82, "grid3x3": 226, "star7": 113,
        "residual-tower": 200,
    }  # fmt: skip
    path = data_folder / "intra-op-instances" / "small-factor-graphs.json"
    for name, time in least.items():
        for order in ("min_weight", "min_degree", "breadth_first"):
            assert PaSE(order=order).plan(factor_graph.read(path, graph=name)).objective == time  # type: ignore[arg-type]


def test_a_plan_says_which_dims_are_cut_and_how_often(data_folder: Path) -> None:
    problem = problem_of(data_folder, "rnnlm", 8)
    plan = PaSE().plan(problem).plan
    assert plan is not None
    options = options_of(problem)
    assert options.plan(options.choice(plan)) == plan
    for stage in plan.stages:
        assert len(stage.mesh.devices) <= 8
        for name, sharding in stage.shardings.items():
            op = problem.graph.ops[problem.graph.position[name]]
            for factor, cuts in sharding.cuts.items():
                assert op.rule.factor(factor).size % stage.mesh.size(cuts[0].axis) == 0


def test_a_budget_leaves_the_greedy_plan(data_folder: Path) -> None:
    problem = problem_of(data_folder, "inception3", 4)
    result = PaSE().plan(problem, budget=Budget(evaluations=5))
    graph = options_of(problem).graph
    assert result.status == "budget" and result.objective == graph.cost(greedy(graph)) >= BEST["inception3", 4]
    with pytest.raises(InputError, match='pase has no order "random"'):
        PaSE(order="random")  # type: ignore[arg-type]


def test_a_memory_limit_is_kept_with_a_bound(data_folder: Path) -> None:
    path = data_folder / "pase" / "alexnet.json.gz"
    free = options_of(pase.read(path, devices=16))
    least = sum(float(m.min()) for m in free.graph.memory)
    limit = 1.5 * 18122118
    problem = pase.read(path, devices=16, memory=limit)
    result = PaSE().plan(problem)
    assert result.plan is not None and result.bound is not None
    assert free.graph.bytes(free.choice(result.plan)) <= limit
    assert BEST["alexnet", 16] < result.bound <= 75612342240 <= result.objective < 1.05 * 75612342240
    none = PaSE().plan(pase.read(path, devices=16, memory=0.99 * least))
    assert none.status == "infeasible" and none.reason.startswith(
        "the least memory of any plan on 16 devices is 1.81221e+07"
    )
