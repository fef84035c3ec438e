"""Double recursion: MindSpore's own strategies, the rules of its rounds, and the exact optimum of the same volumes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError, Unsupported
from meshwright.formats import mindspore
from meshwright.graph.ir import Factor, Graph, Op, Rule, Slot, Tensor
from meshwright.graph.serial import digest_of
from meshwright.plan.problem import Problem
from meshwright.planners._recursion import NOTHING, OTHER, PRODUCT, Operators, State, costs, one_round, search
from meshwright.planners._recursion_exact import least
from meshwright.planners.double_recursive import DoubleRecursive
from meshwright.planners.types import Result
from meshwright.testing.tiny import mlp, problem_of

FILE = Path("mindspore-planners") / "recursive_programming_mlp.json"
PUBLIC = 16


def said(result: Result) -> dict[str, Any]:
    assert isinstance(result.carry, dict)
    return dict(result.carry)


def case(devices: int, batch: int, *dims: int) -> Problem:
    return mindspore.parse({"devices": devices, "batch": batch, "dims": list(dims)}, "case")


@pytest.mark.parametrize("number", range(PUBLIC))
def test_the_strategies_of_mindspore(number: int, data_folder: Path) -> None:
    file = data_folder / FILE
    expected = json.loads(file.read_text())["public"][number]
    problem = mindspore.read(file, case=number)
    result = said(DoubleRecursive().plan(problem))
    assert list(result["strategies"].values()) == expected["matmul_strategies"]
    relus = [result["followers"].get(f"relu{i}", [[1, 1]]) for i in range(len(expected["dims"]) - 2)]
    assert relus == expected["relu_strategies"]


def test_first_rounds_costs() -> None:
    rounds = said(DoubleRecursive().plan(case(8, 64, 4096, 16384, 4096)))
    first, second, third = rounds["costs"]
    assert first[0] == pytest.approx({"I": 3355443.2, "J": 4325376, "K": 4718592, "R": 691389071}, rel=1e-8)
    assert first[1] == pytest.approx({"I": 3355443.2, "J": 17301504, "K": 16908288, "R": 703971983}, rel=1e-8)
    assert second[0] == pytest.approx({"I": 3355443.2, "J": 2162688, "K": 2359296, "R": 173895844}, rel=1e-8)
    assert second[1] == pytest.approx({"I": 11744051, "J": 8650752, "K": 65536, "R": 180187300}, rel=1e-7)
    assert "K" not in third[0] and "J" not in third[1]
    assert rounds["rounds"] == ["II", "JK", "II"]


def residual() -> Problem:
    """256 × 1024, a product with 1024 × 4096, ReLU, one with 4096 × 1024, the input added; 8 devices."""
    base = case(8, 256, 1024, 4096, 1024)
    dims = (("i",), ("j",))
    rule = Rule((Factor("i", 256, samples=True), Factor("j", 1024)), (dims, dims), (dims,))
    last = base.graph.outputs[0]
    add = Op("add", "add", ("x", last), ("sum",), rule, call="aten.add.Tensor", args=(Slot(0), Slot(1)))
    graph = Graph(
        (*base.graph.ops, add), (*base.graph.tensors, Tensor("sum", 4.0 * 256 * 1024, (256, 1024))), 256,
        inputs=("x",), outputs=("sum",), loss="sum",
    )  # fmt: skip
    graph = replace(graph, digest=digest_of(graph))
    return replace(base, graph=graph)


def test_data_decided_last_as_mindspore_numbers_nodes_of_a_residual_network() -> None:
    known = said(DoubleRecursive().plan(residual()))["strategies"]
    assert [known["matmul0"], known["matmul1"]] == [[[8, 1], [1, 1]]] * 2
    late = said(DoubleRecursive(data_source="last").plan(residual()))["strategies"]
    assert [late["matmul0"], late["matmul1"]] == [[[2, 1], [1, 4]], [[2, 4], [4, 1]]]


SIZES = st.integers(1, 12).map(lambda n: n * 4) | st.integers(1, 40)


@st.composite
def operators(draw: st.DrawFn, most: int = 5) -> Operators:
    n = draw(st.integers(1, most))
    kind = np.array([draw(st.sampled_from([PRODUCT, PRODUCT, OTHER])) for _ in range(n)])
    size = np.ones((n, 5), np.int64)
    size[:, :3] = [[draw(SIZES) for _ in range(3)] for _ in range(n)]
    size[kind == OTHER, 2] = 1
    edges = {(u, v) for v in range(1, n) for u in draw(st.sets(st.integers(0, v - 1), max_size=2))}
    fed = np.array([all(b != v for _, b in edges) for v in range(n)])
    return Operators(
        kind, size, np.ones(n), np.ones(n), (kind == PRODUCT).astype(float), tuple(sorted(edges)), fed,
        no_cut=draw(st.booleans()), exclusive=draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(operators(most=4), st.integers(0, 2))
def test_the_exact_optimum_is_that_of_all_plans_and_bounds_both_orders(ops: Operators, rounds: int) -> None:
    slots, found = least(ops, rounds)

    def value(of: list[Any]) -> float:
        state, total = State.first(ops), 0.0
        for taken in of:
            total += state.price(np.array(taken))
            state = state.halved(np.array(taken))
        return total

    assert value(slots) == pytest.approx(found.value)
    if len(ops) * rounds <= 4:
        every = product(product(range(NOTHING + 1), repeat=len(ops)), repeat=rounds)
        assert min(value(list(of)) for of in every) == pytest.approx(found.value)
    for order in ("weight", "topological"):
        chosen, states = search(ops, rounds, order)  # type: ignore[arg-type]
        assert value(chosen) >= found.value * (1 - 1e-12)
        assert len(states) == rounds + 1


@settings(max_examples=50, deadline=None)
@given(operators(), st.integers(0, 4))
def test_cuts_multiply_to_a_power_of_two_and_are_of_even_sizes(ops: Operators, rounds: int) -> None:
    chosen, states = search(ops, rounds, "weight")
    for taken, before, after in zip(chosen, states, states[1:]):
        ratio = before.size / after.size
        assert set(np.unique(ratio)) <= {1.0, 2.0}
        assert (ratio.prod(axis=1) <= 2).all()
        assert (
            (ratio.prod(axis=1) == 2) == (taken != NOTHING) & (ops.dims[np.arange(len(ops)), taken] != NOTHING)
        ).all()
    if ops.exclusive:
        end = states[-1]
        assert not (end.cut[ops.kind == PRODUCT][:, 1] & end.cut[ops.kind == PRODUCT][:, 2]).any()


@settings(max_examples=30, deadline=None)
@given(operators())
def test_sizes_twice_as_large_keep_choices_but_for_the_uncut_rule(ops: Operators) -> None:
    """Of products alone: what multiplies nothing stays free, however large it is."""
    ops = replace(ops, kind=np.full(len(ops), PRODUCT), kernel=np.ones(len(ops)), no_cut=False)
    ops = replace(ops, size=ops.size * np.array([4, 4, 4, 1, 1]))
    twice = ops.size * np.array([2, 2, 2, 1, 1])
    for order in ("weight", "topological"):
        small = one_round(State.first(ops), order)  # type: ignore[arg-type]
        large = one_round(State.first(replace(ops, size=twice)), order)  # type: ignore[arg-type]
        assert (small == large).all()


@settings(max_examples=30, deadline=None)
@given(operators())
def test_a_round_takes_the_cheapest_slot_given_the_neighbours_before(ops: Operators) -> None:
    """In topological order what was decided before are the producers: the compiled round against the table of costs."""
    state = State.first(ops)
    slots = one_round(state, "topological")
    assert (costs(state, slots).argmin(axis=1) == slots).all()


def test_the_dearest_operator_goes_first() -> None:
    """A small product in front of a large one: by weight the large one's wish decides, in order the small one's."""
    problem = case(2, 4, 3072, 256, 1024, 3072, 256, 128)
    late = DoubleRecursive(order="topological", exact=True).plan(problem)
    first = DoubleRecursive(order="weight", exact=True).plan(problem)
    assert said(first)["rounds"] != said(late)["rounds"]
    assert first.bound == late.bound
    assert first.objective == pytest.approx(60825.6) and first.status == "optimal"
    assert late.objective == pytest.approx(121036.8) and said(late)["gap"] == pytest.approx(121036.8 / 60825.6 - 1)


def test_rounds_that_agree_are_one_axis_and_the_cuts_multiply_to_the_devices() -> None:
    for problem, shape in ((case(8, 64, 4096, 16384, 4096), (2, 2, 2)), (case(4, 6, 1024, 4096, 1024), (4,))):
        result = DoubleRecursive().plan(problem)
        assert result.plan is not None
        rounds = said(result)["rounds"]
        assert len(shape) == 1 + sum(a != b for a, b in pairwise(rounds))
        assert result.plan.stages[0].mesh.shape == shape
    one = DoubleRecursive().plan(case(8, 256, 1024, 4096, 1024, 512))
    assert one.plan is not None and one.plan.stages[0].mesh.shape == (8,)


def test_one_device_cuts_nothing_and_two_calls_agree() -> None:
    alone = DoubleRecursive().plan(case(1, 64, 4096, 16384, 4096))
    assert alone.objective == 0.0 and alone.plan is not None
    assert not alone.plan.stages[0].shardings
    again = [DoubleRecursive().plan(case(8, 64, 4096, 16384, 4096)).plan for _ in range(2)]
    assert again[0] == again[1]


def test_captured_models_report_the_gap_when_asked() -> None:
    problem = problem_of(mlp(4), "a100x4")
    plain, exact = DoubleRecursive().plan(problem), DoubleRecursive(exact=True).plan(problem)
    assert plain.bound is None and exact.bound is not None
    assert exact.objective == plain.objective >= exact.bound
    assert said(exact)["gap"] == pytest.approx(exact.objective / exact.bound - 1)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(Unsupported, match="give it 4"):
        DoubleRecursive().plan(case(6, 64, 16, 16))
    with pytest.raises(InputError, match='no order "size"'):
        DoubleRecursive(order="size")  # type: ignore[arg-type]
    with pytest.raises(InputError, match='no dim of conv "depth"'):
        DoubleRecursive(conv=("depth",))
    with pytest.raises(Unsupported, match="at most 32 devices"):
        DoubleRecursive(exact=True).plan(case(128, 2**10, 2**10, 2**10))
