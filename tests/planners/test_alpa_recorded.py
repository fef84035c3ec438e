"""Alpa's parts on the public inputs of each: equal to the answers of the original programs."""

from __future__ import annotations

import json
from itertools import combinations, pairwise, product
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.formats import alpa_clustering, alpa_ilp, autoparallel
from meshwright.formats.detect import format_of, read
from meshwright.plan.validate import validate
from meshwright.planners.alpa import Alpa
from meshwright.solvers.clustering import cluster
from meshwright.solvers.stage_programme import best_stages, covering, submeshes
from reference_cases import reference_cases

# Intra-operator programme


def test_every_public_instance_of_the_intra_operator_programme(data_folder: Path) -> None:
    path = data_folder / "alpa-ilp" / "instances.json"
    assert format_of(path) == "alpa_ilp"
    for name, wanted in json.loads((path.parent / "expected.json").read_text()).items():
        problem = alpa_ilp.read(path, instance=name)
        result = Alpa().plan(problem)
        if wanted.get("infeasible"):
            assert result.status == "infeasible" and "bytes at every time" in result.reason
            continue
        assert result.status == "optimal"
        assert result.objective == pytest.approx(wanted["objective"], rel=1e-9), name
        assert Alpa().objective(problem, result.plan) == result.objective  # type: ignore[arg-type]


def test_rows_of_memory_and_aliases_never_lower_the_optimum(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "alpa-ilp" / "instances.json"
    free = {}
    for name, instance in json.loads(path.read_text()).items():
        free[name] = {**instance, "alias": [], "v": [], "M": -1}
    other = tmp_path / "free.json"
    other.write_text(json.dumps(free))
    dearer = 0
    for name in ("r2_mem", "r4_alias", "r6_all", "r9_mem"):
        tight, loose = (Alpa().plan(alpa_ilp.read(p, instance=name)) for p in (path, other))
        assert loose.status == "optimal" and loose.objective <= tight.objective
        dearer += loose.objective < tight.objective
    assert dearer


def test_a_tighter_limit_of_bytes_costs_more_until_nothing_fits(data_folder: Path) -> None:
    path = data_folder / "alpa-ilp" / "instances.json"
    costs = [Alpa().plan(alpa_ilp.read(path, instance="r9_mem", memory=m)).objective for m in range(1, 60)]
    assert all(a >= b for a, b in pairwise(costs))
    assert costs[0] == inf and costs[-1] < inf and len(set(costs)) >= 3


def test_what_is_wrong_with_an_instance_is_named(tmp_path: Path) -> None:
    good = {
        "s_len": [2, 2], "follow": [-1, -1], "edges": [[0, 1]], "c": [[1, 2], [1, 2]], "d": [[0, 0], [0, 0]],
        "m": [[1, 1], [1, 1]], "r": [[[0, 1], [1, 0]]], "live": [], "alias": [], "v": [], "M": -1,
    }  # fmt: skip
    for change, words in (
        ({"edges": [[0, 2]]}, "edges is"),
        ({"r": [[[0, 1]]]}, "r is"),
        ({"r": []}, "one for each of the 1 edges"),
        ({"c": [[1, 2]]}, "c is"),
        ({"follow": [-1, 5]}, "follow is 5"),
        ({"M": "much"}, "M is"),
    ):
        path = tmp_path / "one.json"
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=words):
            alpa_ilp.read(path)
    path.write_text(json.dumps(good))
    assert Alpa().plan(alpa_ilp.read(path)).objective == 2.0


AUTOPARALLEL = reference_cases(
    "alpa",
    "Cost graphs of torch's autoparallel, by the intra-operator programme",
    source="integer programmes apart from this one, with a bound equal to the value",
    columns=("graph", "least µs"),
    rows=[("tiny1_1d", 1667.5959), ("tiny3_2d", 3743.4172), ("llama8b_8x8", 554382.96)],
)


@pytest.mark.parametrize(("name", "optimum"), AUTOPARALLEL)
def test_autoparallel_optimum_is_certified(data_folder: Path, name: str, optimum: float) -> None:
    path = data_folder / "autoparallel" / f"{name}.npz"
    problem = read(path)
    result = Alpa().plan(problem)
    assert result.status == "optimal" and result.unit == "us"
    assert result.objective == pytest.approx(optimum, rel=5e-8)
    assert result.bound == pytest.approx(result.objective, rel=1e-9)


def test_nothing_of_a_cost_graph_of_autoparallel_is_lost(data_folder: Path) -> None:
    path = data_folder / "autoparallel" / "tiny3_2d.npz"
    raw = np.load(path)
    problem = autoparallel.read(path)
    graph, cost = problem.graph, problem.cost
    placement = autoparallel.placement_of(path)
    rng = np.random.default_rng(5)
    choice = {op.name: int(rng.integers(len(cost.options[op.name].names))) for op in graph.ops}  # type: ignore[attr-defined]
    names = raw["name"].tolist()
    expected = 0.0
    forbidden = set()
    for i, name in enumerate(names):
        t = raw["table"][i]
        expected += raw["unary"][raw["unary_ptr"][t] + choice[name]]
        for a, u in enumerate(raw["in_idx"][raw["in_ptr"][i] : raw["in_ptr"][i + 1]]):
            e = raw["edge_tab_ptr"][t] + a
            width = raw["nopt"][u]
            price = raw["edge"][raw["edge_ptr"][e] + choice[name] * width + choice[names[u]]]
            if np.isinf(price):
                forbidden.add((names[u], name))
            else:
                expected += price
    for a, b in raw["pairs"]:
        if placement[names[a]][choice[names[a]]] != placement[names[b]][choice[names[b]]]:
            forbidden.add((names[a], names[b]))
    mine = sum(
        price
        for op in graph.ops
        if np.isfinite(price := cost.options[op.name].price[choice[op.name]])  # type: ignore[attr-defined]
    )
    banned = set()
    for u, v, table in cost.pairs:  # type: ignore[attr-defined]
        price = table[choice[u], choice[v]]
        if np.isinf(price):
            banned.add((u, v))
        else:
            mine += price
    assert banned == forbidden
    only = {op.name for op in graph.ops if np.isinf(cost.options[op.name].price[choice[op.name]])}  # type: ignore[attr-defined]
    assert only <= {names[i] for i in (*raw["fixed_node"], *raw["param_node"])}
    lost = sum(raw["unary"][raw["unary_ptr"][raw["table"][names.index(n)]] + choice[n]] for n in only)
    assert mine + lost == pytest.approx(expected, rel=1e-12)
    for i, option in zip(raw["fixed_node"], raw["fixed_opt"], strict=True):
        price = cost.options[names[i]].price  # type: ignore[attr-defined]
        assert np.flatnonzero(np.isfinite(price)).tolist() == [option]


# Inter-operator programme


def all_stages(seconds: np.ndarray, following: np.ndarray, sizes: list[int], devices: int, b: int) -> float:
    """The best by trying every cut, submesh and configuration."""
    layers = seconds.shape[0]
    best = inf
    for s in range(1, layers + 1):
        for inner in combinations(range(1, layers), s - 1):
            cuts = (0, *inner, layers)
            for meshes in product(range(len(sizes)), repeat=s):
                if sum(sizes[m] for m in meshes) != devices:
                    continue
                times = []
                for j, m in enumerate(meshes):
                    key = cuts[j], cuts[j + 1] - 1, m
                    ok = following[key] >= s - 1 - j
                    times.append(np.where(ok, seconds[key], inf).min())
                if max(times) < inf:
                    best = min(best, sum(times) + (b - 1) * max(times))
    return float(best)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_stages_are_the_best_of_all(layers: int, devices: int, configs: int, b: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [1, 2, 4, 2]
    seconds = rng.integers(1, 9, (layers, layers, len(sizes), configs)).astype(float)
    seconds[rng.random(seconds.shape) < 0.2] = inf
    following = rng.integers(-1, layers, seconds.shape)
    found = best_stages(seconds, following, sizes, devices, b)
    assert found.cost == all_stages(seconds, following, sizes, devices, b)
    if found.stages:
        assert sum(sizes[s.mesh] for s in found.stages) == devices
        assert [s.first for s in found.stages] == [0, *(s.stop for s in found.stages[:-1])]
        assert found.stages[-1].stop == layers
        times = [s.seconds for s in found.stages]
        assert found.cost == sum(times) + (b - 1) * max(times)
        # Less memory, fewer choices, or more micro-batches never help; the order of configurations does not matter.
        assert best_stages(seconds, following - 1, sizes, devices, b).cost >= found.cost
        assert best_stages(seconds, following, sizes, devices, b + 1).cost >= found.cost
        assert best_stages(seconds[..., ::-1], following[..., ::-1], sizes, devices, b).cost == found.cost


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_inference_minimises_stages_times_the_slowest(layers: int, devices: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [1, 2]
    seconds = rng.integers(1, 9, (layers, layers, 2, 1)).astype(float)
    following = np.full(seconds.shape, 9)
    best = inf
    for s in range(1, layers + 1):
        for inner in combinations(range(1, layers), s - 1):
            cuts = (0, *inner, layers)
            for meshes in product(range(2), repeat=s):
                if sum(sizes[m] for m in meshes) == devices:
                    best = min(best, s * max(seconds[cuts[j], cuts[j + 1] - 1, m, 0] for j, m in enumerate(meshes)))
    assert best_stages(seconds, following, sizes, devices, 7, inference=True).cost == best


def test_every_public_case_of_the_inter_operator_programme(data_folder: Path) -> None:
    folder = data_folder / "alpa-dp"
    for name, wanted in json.loads((folder / "expected.json").read_text()).items():
        path = folder / f"case_{name}.npz"
        assert format_of(path) == "alpa_dp"
        problem = read(path)
        result = Alpa().plan(problem)
        assert result.status == "optimal" and result.plan is not None
        assert result.objective == pytest.approx(wanted["cost"], rel=1e-6)
        assert result.carry["stages"] == wanted["stages"]  # type: ignore[index,call-overload]
        assert {d for stage in result.plan.stages for d in stage.mesh.devices} == set(range(problem.cluster.count))
        validate(problem, result.plan)
        if wanted.get("brute_force_cost"):
            assert result.objective == pytest.approx(wanted["brute_force_cost"], rel=1e-12)


def test_the_unit_test_of_the_original_program() -> None:
    state = np.random.RandomState(42)
    seconds = state.rand(8, 8, 4, 5)
    found = best_stages(seconds, np.full(seconds.shape, 4096), [1, 2, 4, 8], 8, 16)
    assert found.cost == pytest.approx(0.29528506, rel=1e-7)
    assert [(s.first, s.stop, s.mesh, s.config) for s in found.stages] == [(0, 4, 2, 2), (4, 8, 2, 4)]


@pytest.mark.parametrize(("b", "cost"), [(2, 10.0), (4, 20.0), (8, 36.0)])
def test_two_layers_by_hand(b: int, cost: float) -> None:
    seconds = np.full((2, 2, 2, 1), inf)
    seconds[0, 0, 0] = seconds[1, 1, 0] = 4.0
    seconds[0, 1, 1] = 5.0
    assert best_stages(seconds, np.full(seconds.shape, 9), [1, 2], 2, b).cost == cost


@pytest.mark.parametrize(("hosts", "per_host"), [(1, 8), (2, 4), (3, 4), (4, 2)])
def test_submeshes_that_add_up_cover_the_cluster(hosts: int, per_host: int) -> None:
    shapes = submeshes(hosts, per_host)
    rng = np.random.default_rng(hosts)
    for _ in range(100):
        left, chosen = hosts * per_host, []
        while left:
            fits = [x for x in shapes if x[0] * x[1] <= left]
            chosen.append(fits[rng.integers(len(fits))])
            left -= chosen[-1][0] * chosen[-1][1]
        placed = covering(chosen)
        assert sorted(d for part in placed for d in part) == list(range(hosts * per_host))
        for (n, m), part in zip(chosen, placed, strict=True):
            assert len(part) == n * m
            inside = {d // per_host for d in part}
            assert len(inside) == n
    with pytest.raises(InputError, match="power of two"):
        submeshes(1, 6)


# Clustering


def test_every_public_case_of_clustering(data_folder: Path) -> None:
    path = data_folder / "alpa-clustering" / "graphs.json"
    assert format_of(path) == "alpa_clustering"
    for key, wanted in json.loads((path.parent / "expected.json").read_text()).items():
        name, layers, tolerance = key.split("|")
        problem = alpa_clustering.read(path, graph=name, layers=int(layers))
        result = Alpa(tolerance=float(tolerance)).plan(problem)
        assert result.objective == wanted["total_cost"], key
        assert result.carry["slices"] == wanted["slices"], key  # type: ignore[index,call-overload]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_the_largest_boundary_is_the_least_of_all_legal_cuts(n: int, layers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = min(layers, n)
    heavy = rng.random(n) < 0.6
    flops = rng.integers(1, 9, n) * heavy
    nbytes = rng.integers(1, 1000, n)
    reads = [sorted({int(j) for j in rng.integers(0, i, min(i, 2))}) if i else [] for i in range(n)]
    found = cluster(heavy.tolist(), flops.tolist(), nbytes.tolist(), reads, layers)
    most = 1.5 * flops.sum() / layers
    few = min(3, int(heavy.sum()) // layers)

    def legal(a: int, b: int) -> bool:
        for r in range(a, b):
            part = range(a, r + 1)
            h, f = sum(heavy[i] for i in part), sum(flops[i] for i in part)
            if h >= few and f >= most and heavy[r] and h > few:
                return False
        return bool(h >= few or f >= most)

    def boundary(a: int, b: int) -> float:
        return float(sum(nbytes[j] for j in {j for i in range(a, b) for j in reads[i] if j < a}))

    best = inf
    for inner in combinations(range(1, n), layers - 1):
        cuts = (0, *inner, n)
        if all(legal(a, b) for a, b in pairwise(cuts)):
            best = min(best, max(boundary(a, b) for a, b in pairwise(cuts)))
    assert found.boundary == best or (best < inf and best <= found.boundary <= best * (1 + 2e-4) ** layers)
