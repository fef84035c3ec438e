"""The prototype's prices: its own tables to the last digit, and the published spot checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from meshwright.cluster.model import DeviceType
from meshwright.cost.pase_flops import PaSEFlops, configurations, exchanged, tensor_cuts
from meshwright.errors import InputError, Unsupported
from meshwright.formats.pase import read
from meshwright.graph.ir import Factor, Op, Rule
from meshwright.plan.problem import Problem

TABLES = (("alexnet", 4), ("alexnet", 8), ("rnnlm", 8), ("inception3", 4), ("transformer", 4))
DEVICE = DeviceType("device", "gpu", 1.0, {}, 0.0)


def cost_of(problem: Problem) -> PaSEFlops:
    assert isinstance(problem.cost, PaSEFlops)
    return problem.cost


def edge(problem: Problem, u: int, v: int, source: tuple[int, ...], target: tuple[int, ...]) -> float:
    """Price of the tensor between ops u and v cut so."""
    graph = problem.graph
    a, b = graph.ops[u], graph.ops[v]
    name = next(t for t in b.inputs if t in a.outputs)
    out = tensor_cuts(a, a.rule.results[a.outputs.index(name)], np.array([source], float))
    into = tensor_cuts(b, b.rule.operands[b.inputs.index(name)], np.array([target], float))
    return float(cost_of(problem).between(graph.tensor[name].shape, out, into)[0, 0])


@pytest.mark.parametrize(("name", "devices"), TABLES)
def test_every_price_of_the_prototypes_own_tables(data_folder: Path, name: str, devices: int) -> None:
    """Node by node and edge by edge, configurations matched by what they are (it lists one op's in an order of its own)."""
    problem = read(data_folder / "pase" / f"{name}.json.gz", devices=devices)
    graph, cost = problem.graph, cost_of(problem)
    place = []
    with np.load(data_folder / "pase" / f"{name}_{devices}_costs.npz") as tables:
        for v, op in enumerate(graph.ops):
            ours = configurations(op, devices)
            theirs = [tuple(c) for c in tables[f"configs_{v}"].tolist()]
            assert sorted(ours) == sorted(theirs)
            place.append(np.array(theirs, float))
            assert np.array_equal(cost.inside(op, place[-1]), tables[f"node_cost_{v}"])
        seen = {}
        for v, op in enumerate(graph.ops):
            for k, t in enumerate(op.inputs):
                u = graph.producer.get(t)
                if u is not None:
                    made = graph.ops[u]
                    out = tensor_cuts(made, made.rule.results[made.outputs.index(t)], place[u])
                    seen[u, v] = cost.between(
                        graph.tensor[t].shape, out, tensor_cuts(op, op.rule.operands[k], place[v])
                    )
        assert len(seen) == len(tables["edges"])
        for e, (u, v) in enumerate(tables["edges"].tolist()):
            assert np.array_equal(seen[u, v], tables[f"edge_cost_{e}"])


def test_spot_checks_of_nodes(data_folder: Path) -> None:
    problem = read(data_folder / "pase" / "alexnet.json.gz", devices=4)
    for v, cut, price in (
        (0, (4, 1, 1, 1, 1, 1, 1), 10409097600), (2, (4, 1, 1, 1, 1, 1, 1), 47624085504), (1, (4, 1, 1, 1), 2239488),
        (10, (1, 1, 4), 7557611520), (10, (4, 1, 1), 286739791872), (11, (1, 4, 1), 5543165952), (12, (1, 1, 4), 1385693184),
        (13, (1, 1), 524544),
    ):  # fmt: skip
        op = problem.graph.ops[v]
        assert float(cost_of(problem).inside(op, np.array([cut], float))[0]) == price
        sizes = np.array([[f.size // c for f, c in zip(op.rule.factors, cut)]])
        assert float(cost_of(problem).compute(op, sizes, DEVICE, "forward")[0]) == price
        assert float(cost_of(problem).compute(op, sizes, DEVICE, "backward")[0]) == 0
    assert 7557611520 == 3 * 128 * 4096 * 2304 + 3 * 128 * 4096 + 5000 * (128 * 4096 / 4) * 6


def test_spot_checks_of_edges(data_folder: Path) -> None:
    problem = read(data_folder / "pase" / "alexnet.json.gz", devices=4)
    assert edge(problem, 9, 10, (4, 1), (1, 1, 4)) == 2211840000
    assert edge(problem, 10, 11, (4, 1, 1), (1, 1, 4)) == 983040000
    assert edge(problem, 10, 11, (1, 1, 4), (1, 4, 1)) == 0


def test_numbers_of_configurations(data_folder: Path) -> None:
    counts = [7, 9, 11, 6, 11, 12, 11, 6, 3, 3, 11, 10, 10, 6]
    alexnet = read(data_folder / "pase" / "alexnet.json.gz", devices=4).graph
    assert [len(configurations(op, 4)) for op in alexnet.ops] == counts
    for name, devices, most, total in (
        ("alexnet", 4, 12, 116), ("alexnet", 32, 100, 684), ("inception3", 8, 30, 4299), ("inception3", 64, 176, 20248),
        ("transformer", 8, 62, 7729), ("transformer", 64, 566, 52613),
    ):  # fmt: skip
        ops = read(data_folder / "pase" / f"{name}.json.gz", devices=devices).graph.ops
        each = [len(configurations(op, devices)) for op in ops]
        assert (max(each), sum(each)) == (most, total)


def test_a_target_with_more_parts_overlaps_nothing_and_equal_cuts_exchange_nothing() -> None:
    shape = np.array([8.0, 8.0])
    assert exchanged(shape, np.array([2.0, 1.0]), np.array([2.0, 1.0])) == 0
    assert exchanged(shape, np.array([2.0, 1.0]), np.array([4.0, 1.0])) == 16
    assert exchanged(shape, np.array([2.0, 1.0]), np.array([1.0, 2.0])) == 32 - 16
    assert exchanged(shape, np.array([2.0, 2.0]), np.array([1.0, 1.0])) == 64 - 16


def test_flattened_tensors_are_cut_into_ranges() -> None:
    rule = Rule((Factor("d0", 4), Factor("d1", 4)), ((("d0",), ("d1",)),), ((("d0", "d1"),),))
    op = Op("r", "Ravel", ("x",), ("y",), rule, kwargs=(("cutoff", 1),))
    assert configurations(op, 8) == ((1, 1), (2, 1), (4, 1), (4, 2))


def test_a_word_costs_what_the_devices_could_do_meanwhile() -> None:
    assert PaSEFlops().rate == 5000
    assert PaSEFlops(20.0, 16.0).rate == PaSEFlops(10.0, 8.0).rate == 10000
    with pytest.raises(InputError, match="bandwidth is 0, wanted a number above 0"):
        PaSEFlops(bandwidth=0)
    op = Op("x", "Attention", (), (), Rule((Factor("b", 2),), (), ()))
    with pytest.raises(Unsupported, match='no price for kind "Attention"'):
        PaSEFlops().inside(op, np.ones((1, 1)))


def test_memory_counts_three_of_a_weight_and_one_of_a_result(data_folder: Path) -> None:
    problem = read(data_folder / "pase" / "alexnet.json.gz", devices=8)
    for v, cut, held in (
        (0, (2, 1, 1, 1, 1, 1, 4), 3 * 24 * 3 * 11 * 11 + 64 * 24 * 55 * 55), (1, (2, 4, 1, 1), 64 * 24 * 27 * 27),
        (10, (2, 2, 2), 3 * 2048 * 4608 + 64 * 2048), (13, (1, 4), 128 * 256),
    ):  # fmt: skip
        op = problem.graph.ops[v]
        memory = cost_of(problem).memory(op, np.array([[f.size // c for f, c in zip(op.rule.factors, cut)]]))
        assert float((memory.static + memory.kept)[0]) == held
