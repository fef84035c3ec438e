"""TensorOpt: the published worked chain, the small graphs, AlexNet, and the three questions."""

from __future__ import annotations

import json
from itertools import pairwise, product
from math import inf
from pathlib import Path
from typing import Any

import pytest

from meshwright.errors import InputError, Unsupported
from meshwright.formats import factor_graph, pase
from meshwright.planners._options import PaSEOptions, options_of
from meshwright.planners.tensoropt import TensorOpt
from meshwright.planners.types import Budget, Result
from meshwright.solvers.tracking import tracking_order
from reference_cases import reference_cases

CHAIN: Any = {
    "name": "worked chain",
    "node_mem": [[8, 4, 2], [10, 5], [6, 3, 1]],
    "node_time": [[4, 6, 9], [5, 6], [3, 5, 9]],
    "edges": [
        {"src": 0, "dst": 1, "time": [[0, 2], [1, 0], [3, 1]]},
        {"src": 1, "dst": 2, "time": [[0, 2, 4], [2, 0, 1]]},
    ],
}
ENDS = reference_cases(
    "tensoropt",
    "Frontiers of small graphs",
    source="enumeration of all choices",
    columns=("graph", "points", "(memory, time) of the leanest", "(memory, time) of the fastest"),
    rows=[
        ("chain6", 4, (42, 164), (68, 120)),
        ("diamond", 9, (53, 174), (101, 116)),
        ("multi-edge", 4, (23, 110), (44, 56)),
        ("two-diamonds", 17, (53, 289), (132, 150)),
        ("k4", 6, (32, 159), (53, 82)),
        ("grid3x3", 11, (79, 340), (119, 226)),
        ("star7", 5, (57, 170), (74, 113)),
        ("residual-tower", 10, (69, 307), (129, 200)),
    ],
)
ALEXNET = reference_cases(
    "tensoropt",
    "Frontier of PaSE's AlexNet",
    source="an elimination of frontiers apart from this one",
    columns=("devices", "points", "(bytes, FLOPs) of the leanest", "(bytes, FLOPs) of the fastest"),
    rows=[
        (4, 157, (72488472, 4606987986688), (81506400, 148215719552)),
        (16, 591, (18122118, 5647599796864), (29034080, 70320712672)),
    ],
)


def points(result: Result) -> list[tuple[float, float]]:
    return [(c.memory, c.objective) for c in result.frontier]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.json"
    path.write_text(json.dumps(CHAIN))
    return path


def test_the_worked_chain(chain: Path) -> None:
    result = TensorOpt().plan(factor_graph.read(chain))
    assert points(result) == [(8, 26), (10, 21), (12, 17), (20, 15), (24, 12)]
    variants = [[s.variant for s in c.plan.stages[0].shardings.values()] for c in result.frontier]
    assert variants == [list(v) for v in ("212", "211", "111", "100", "000")]
    assert (result.status, result.objective, result.bound) == ("optimal", 12, 12)


@pytest.mark.parametrize(("limit", "time"), [(12, 17), (19, 17), (20, 15), (100, 12)])
def test_least_time_within_a_limit(chain: Path, limit: float, time: float) -> None:
    result = TensorOpt().plan(factor_graph.read(chain, memory=limit))
    assert (result.status, result.objective) == ("optimal", time)
    assert all(c.memory <= limit for c in result.frontier)


def test_below_the_least_memory_it_says_so(chain: Path) -> None:
    result = TensorOpt().plan(factor_graph.read(chain, memory=7.9))
    assert result.status == "infeasible"
    assert result.reason == "the least memory of any plan on 1 devices is 8, above the limit of 7.9"


def test_least_memory_is_a_question_too(chain: Path) -> None:
    result = TensorOpt(objective="memory").plan(factor_graph.read(chain))
    assert (result.objective, result.unit, result.status) == (8, "memory", "optimal")
    assert TensorOpt(objective="memory").objective(factor_graph.read(chain), result.plan) == 8  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "count", "first", "last"), ENDS)
def test_small_graphs(
    data_folder: Path, name: str, count: int, first: tuple[float, float], last: tuple[float, float]
) -> None:
    problem = factor_graph.read(data_folder / "intra-op-instances" / "small-factor-graphs.json", graph=name)
    result = TensorOpt().plan(problem)
    assert (len(result.frontier), points(result)[0], points(result)[-1]) == (count, first, last)
    for choice in result.frontier:
        assert TensorOpt().objective(problem, choice.plan) == choice.objective
        assert TensorOpt(objective="memory").objective(problem, choice.plan) == choice.memory


def test_all_small_graphs_are_brute_force(data_folder: Path) -> None:
    """Point for point where all choices can be looked at, those without published values too."""
    path = data_folder / "intra-op-instances" / "small-factor-graphs.json"
    for document in json.loads(path.read_text()):
        times, memories, edges = document["node_time"], document["node_mem"], document["edges"]
        best: dict[float, float] = {}
        for c in product(*(range(len(t)) for t in times)):
            time = sum(t[i] for t, i in zip(times, c)) + sum(e["time"][c[e["src"]]][c[e["dst"]]] for e in edges)
            memory = sum(m[i] for m, i in zip(memories, c))
            best[memory] = min(time, best.get(memory, inf))
        front, fastest = [], inf
        for memory in sorted(best):
            if best[memory] < fastest:
                fastest = best[memory]
                front.append((memory, fastest))
        assert points(TensorOpt().plan(factor_graph.read(path, graph=document["name"]))) == front


@pytest.mark.parametrize(("devices", "count", "first", "last"), ALEXNET)
def test_alexnet(
    data_folder: Path, devices: int, count: int, first: tuple[float, float], last: tuple[float, float]
) -> None:
    problem = pase.read(data_folder / "pase" / "alexnet.json.gz", devices=devices)
    result = TensorOpt().plan(problem)
    assert (len(result.frontier), points(result)[0], points(result)[-1]) == (count, first, last)
    assert result.carry["exact"] and result.carry["frontiers"][0]["searches"][0]["eliminations"]["linear"] == 14  # type: ignore[call-overload,index]
    if devices == 16:
        within = pase.read(data_folder / "pase" / "alexnet.json.gz", devices=16, memory=1.5 * first[0])
        assert TensorOpt().plan(within).objective == 75612342240


def test_no_expert_plan_lies_below_the_curve(data_folder: Path) -> None:
    """Data parallel, and with the fully connected layers cut by their outputs."""
    problem = pase.read(data_folder / "pase" / "alexnet.json.gz", devices=8)
    options = options_of(problem)
    assert isinstance(options, PaSEOptions)
    curve = points(TensorOpt().plan(problem))
    ops = problem.graph.ops
    data = [tuple(8 if i == 0 else 1 for i in range(len(op.rule.factors))) for op in ops]
    owt = [
        (1, 8, 1) if op.kind == "FC" else (1, 1) if op.kind == "SoftmaxCrossEntropy" else cut
        for op, cut in zip(ops, data)
    ]
    for cuts in (data, owt):
        choice = [options.option(v, cut) for v, cut in enumerate(cuts)]
        memory, time = options.graph.bytes(choice), options.graph.cost(choice)
        assert not any(m >= memory and t > time for m, t in curve if m == memory or (t > time and m >= memory))
        assert any(m <= memory and t <= time for m, t in curve)


def test_fewest_devices_are_monotone_in_the_limit_and_their_frontiers_are_kept(data_folder: Path) -> None:
    path = data_folder / "pase" / "alexnet.json.gz"
    found = []
    for limit in (3e8, 1.5e8, 8e7, 4e7):
        result = TensorOpt(objective="devices").plan(pase.read(path, devices=8, memory=limit))
        assert result.unit == "devices" and all(c.memory <= limit for c in result.frontier)
        found.append(result.objective)
    assert found == sorted(found) and found[0] < found[-1]
    profile = TensorOpt(profile=(2, 4)).plan(pase.read(path, devices=8))
    told = profile.carry["frontiers"]  # type: ignore[call-overload,index]
    assert [t["devices"] for t in told] == [2, 4] and [t["points"] for t in told][1] == 157
    assert len(profile.frontier) == sum(t["points"] for t in told)
    with pytest.raises(InputError, match="16 devices are asked about, the cluster has 8"):
        TensorOpt(profile=(16,)).plan(pase.read(path, devices=8))


def test_recorded_tables_are_for_one_number_of_devices(data_folder: Path) -> None:
    with pytest.raises(Unsupported, match="are for 4 devices: other numbers cannot be planned"):
        TensorOpt(objective="devices", counts=(2, 4)).plan(pase.read(data_folder / "pase" / "alexnet_4_costs.npz"))


def test_the_kinds_of_elimination() -> None:
    chain = tracking_order([3] * 5, [(v, v + 1) for v in range(4)], 10**6)[1]
    assert (chain.linear, chain.node, chain.branch, chain.edge) == (5, 0, 0, 0)
    fork = tracking_order([3] * 6, [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 5)], 10**6)[1]
    assert (fork.node, fork.edge, fork.branch) == (2, 1, 0) and fork.linear == 4
    complete = [(u, v) for u in range(6) for v in range(u)]
    assert tracking_order([3] * 6, complete, 10**6)[1].branch > 0
    small = tracking_order([3] * 6, complete, 50)
    assert small[1].fixed and small[0].largest <= 50


def test_a_heuristic_elimination_is_told_and_proves_nothing(data_folder: Path) -> None:
    path = data_folder / "intra-op-instances" / "small-factor-graphs.json"
    exact = TensorOpt().plan(factor_graph.read(path, graph="k4"))
    result = TensorOpt(limit=10).plan(factor_graph.read(path, graph="k4"))
    assert not result.carry["exact"] and result.bound is None and result.status == "feasible"  # type: ignore[call-overload,index]
    assert result.carry["frontiers"][0]["searches"][0]["eliminations"]["heuristic"] >= 1  # type: ignore[call-overload,index]
    for memory, time in points(result):
        assert any(m <= memory and t <= time for m, t in points(exact))


def test_a_grid_is_told_and_a_budget_ends_it(data_folder: Path) -> None:
    problem = pase.read(data_folder / "pase" / "alexnet.json.gz", devices=4)
    coarse = TensorOpt(epsilon=0.01).plan(problem)
    assert not coarse.carry["exact"] and coarse.carry["epsilon"] == 0.01 and 1 < len(coarse.frontier) < 157  # type: ignore[call-overload,index]
    assert coarse.status == "optimal", "both ends are exact"
    for memory, time in points(TensorOpt().plan(problem)):
        assert any(m <= 1.01 * memory and t <= 1.01 * time for m, t in points(coarse))
    stopped = TensorOpt().plan(problem, budget=Budget(evaluations=3))
    assert stopped.status == "budget"
    with pytest.raises(InputError, match="epsilon is 2, it must be a share below 1"):
        TensorOpt(epsilon=2.0)


def mlp(batch: int, dims: tuple[int, ...]) -> Any:
    """Products with ReLU between, in PaSE's format."""
    nodes: list[Any] = []
    edges: list[Any] = []
    for i, (a, b) in enumerate(pairwise(dims)):
        n = len(nodes)
        nodes.append(
            {
                "id": n,
                "type": "FC",
                "dom": [batch, b, a],
                "inputs": [[batch, a]],
                "outputs": [[batch, b]],
                "pw_op_cnt": 0,
            }
        )
        if i:
            edges.append({"src": n - 1, "src_out": 0, "dst": n, "dst_in": 0, "shape": [batch, a]})
        if i < len(dims) - 2:
            relu = {
                "type": "Elementwise",
                "dom": [batch, b],
                "inputs": [[batch, b]],
                "outputs": [[batch, b]],
                "pw_op_cnt": 0,
            }
            nodes.append({"id": n + 1, **relu})
            edges.append({"src": n, "src_out": 0, "dst": n + 1, "dst_in": 0, "shape": [batch, b]})
    return {"batch": batch, "cutoff": 1, "nodes": nodes, "edges": edges}


@pytest.mark.parametrize(("batch", "dims"), [(64, (4096, 16384, 4096)), (4096, (256, 256, 256))])
def test_plans_have_the_shape_of_mindspores(
    data_folder: Path, tmp_path: Path, batch: int, dims: tuple[int, ...]
) -> None:
    """Columns then rows where weights are large, data parallel where they are small; its prices are others than these."""
    recorded: Any = json.loads((data_folder / "mindspore-planners" / "dynamic_programming_mlp.json").read_text())
    theirs = next(c for c in recorded if (c["devices"], c["batch"], c["dims"]) == (8, batch, list(dims)))
    path = tmp_path / "mlp.json"
    path.write_text(json.dumps(mlp(batch, dims)))
    problem = pase.read(path, devices=8)
    result = TensorOpt().plan(problem)
    options = options_of(problem)
    choice = options.choice(result.plan)  # type: ignore[arg-type]
    products = [v for v, op in enumerate(problem.graph.ops) if op.kind == "FC"]
    ours = []
    for v in products:
        m, n, k = map(int, options.words(v, choice[v]).split(","))
        ours.append([[m, k], [k, n]])
    assert ours == theirs["matmul_strategies"]
    assert len(result.frontier) > 1
