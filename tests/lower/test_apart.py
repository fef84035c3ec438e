"""Gradients computed apart, as a program says them: what is re-laid for each, what it costs, what is kept for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.cluster import resolve
from meshwright.cluster.model import Mesh
from meshwright.cost.analytic import Analytic
from meshwright.graph.ir import Graph
from meshwright.lower import lower
from meshwright.lower.joined import joined
from meshwright.lower.program import GRAD, Instr, Segment
from meshwright.lower.volumes import received
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from meshwright.plan.problem import Problem, Recipe
from meshwright.report.plan_words import sharding_words
from meshwright.report.shardings import sharding_rows
from meshwright.simulate.additive import additive
from meshwright.simulate.simulator import simulate
from meshwright.testing.linear import LINEAR, W, X, Y, linear_graph

M, K, N = 256, 128, 32
CUT = (Cut("x"),)
GRAPH = linear_graph(M, K, N)
RECIPE = Recipe(M, compute_dtype="float32")


def plan(backward: dict[int, dict[str, tuple[Cut, ...]]], *, again: bool = False, graph: Graph = GRAPH) -> Plan:
    """Samples over two ranks; the weight rests cut on its columns."""
    shardings = {op.name: OpSharding({"b": CUT}) for op in graph.ops}
    shardings[LINEAR] = replace(shardings[LINEAR], backward=backward)
    storage = {W: Storage(Layout(tuple(((n, own),) for n, own in zip(graph.tensor[W].shape, (CUT, ()), strict=True))))}
    recompute = frozenset({"shift/add"}) if again else frozenset()
    names = tuple(op.name for op in graph.ops)
    stage = Stage(names, Mesh(range(2), ("x",), (2,)), shardings, {}, storage, recompute)
    return Plan(graph.digest, graph.samples, (stage,), Schedule("1f1b", 1))


def segment(found: Plan) -> Segment:
    (code,) = lower(GRAPH, found, RECIPE).stages
    (one,) = code.segments
    return one


def of_product(instrs: tuple[Instr, ...]) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """(what, on, inputs, outputs) of what concerns the linear layer."""
    return [
        (i.collective or i.kind, i.on, i.inputs, i.outputs) for i in instrs if i.on in (LINEAR, W, X, Y) or i.within
    ]


def test_the_dual_says_nothing_more() -> None:
    assert segment(plan({1: {"b": CUT}})) == segment(plan({}))
    assert not any(i.within for i in segment(plan({})).backward)


def test_the_gradient_of_a_weight_by_columns() -> None:
    """dW[n, k] = Σ_b dY[b, n] · X[b, k], each rank its own n: dY is swapped from rows to columns, X is gathered, and dW is
    made where W rests. The gradient of X stays the dual: it reads W as the forward did, gathered again."""
    found = segment(plan({1: {"n": CUT}}))
    assert of_product(found.forward) == [
        ("all_gather", W, (W,), (f"{W}@1",)),
        ("compute", LINEAR, (X, f"{W}@1", W), (Y,)),
    ]
    assert of_product(found.rerun) == [("all_gather", W, (W,), (f"{W}@1",))]
    assert of_product(found.backward) == [
        ("compute", LINEAR, (GRAD + Y, f"{W}@1"), (GRAD + X,)),
        ("all_to_all", Y, (GRAD + Y,), (f"{GRAD}{Y}@1",)),
        ("all_gather", X, (X,), (f"{X}@1",)),
        ("compute", LINEAR, (f"{GRAD}{Y}@1", f"{X}@1"), (GRAD + W,)),
    ]
    (swap,), (gather,) = ([i for i in found.backward if i.collective == kind] for kind in ("all_to_all", "all_gather"))
    assert (swap.nbytes, swap.samples) == (4 * N, ("x",)) and (gather.nbytes, gather.samples) == (4 * K, ())
    dual, own = (i for i in found.backward if i.kind == "compute" and i.within)
    assert (dual.phase, own.phase) == ("input_grad", "weight_grad")
    factors = [f.name for f in GRAPH.ops[GRAPH.position[LINEAR]].rule.factors]
    assert dict(zip(factors, own.sizes, strict=True)) == {"b": 1.0, "n": N / 2, "k": K} and own.samples == ()


def test_the_gradient_of_an_input_as_a_partial_sum() -> None:
    """dX[b, k] = Σ_n dY[b, n] · W[n, k], each rank its own n: W is read where it rests, dX summed and scattered to its rows."""
    found = segment(plan({0: {"n": CUT}}))
    assert found.rerun == ()  # nobody reads all of W in the backward
    assert of_product(found.backward)[:3] == [
        ("all_to_all", Y, (GRAD + Y,), (f"{GRAD}{Y}@1",)),
        ("compute", LINEAR, (f"{GRAD}{Y}@1", W), (f"{GRAD}{X}@1",)),
        ("reduce_scatter", X, (f"{GRAD}{X}@1",), (GRAD + X,)),
    ]


def test_ranks_run_it_as_one_op() -> None:
    found = joined(segment(plan({0: {"n": CUT}, 1: {"n": CUT}})))
    (own,) = (i for i in found.backward if i.on == LINEAR)
    assert (own.inputs, set(own.outputs)) == ((GRAD + Y,), {GRAD + X, GRAD + W})
    assert not any(i.within for i in (*found.forward, *found.backward))


def test_what_the_gradients_read_is_kept() -> None:
    """X at rest is saved in any case; run again, x is kept in its place and X is there while the backward runs."""
    kept, dual = segment(plan({1: {"n": CUT}})).kept, segment(plan({})).kept
    assert kept.activations == dual.activations
    again = segment(plan({1: {"n": CUT}}, again=True))
    assert X in {name for i in again.rerun for name in i.outputs}
    assert again.kept.activations == kept.activations
    assert (kept.rerun, again.kept.rerun) == ((4 * K * N, 0.0), (4 * K * N, 4 * K))


def test_copies_for_a_gradient_are_work_space() -> None:
    """X gathered for dW, and dY swapped. Else the most is a kernel of four tensors as large as a part of X, or W gathered."""
    m, k, n = 4, 32, 4
    graph = linear_graph(m, k, n)
    shardings = {op.name: OpSharding({"b": CUT}) for op in graph.ops}
    storage = {W: Storage(Layout((((n, CUT),), ((k, ()),))))}
    found = []
    for own in ({}, {1: {"n": CUT}}):
        shardings[LINEAR] = replace(shardings[LINEAR], backward=own)
        names = tuple(op.name for op in graph.ops)
        stage = Stage(names, Mesh(range(4), ("x",), (4,)), dict(shardings), {}, storage)
        (code,) = lower(graph, Plan(graph.digest, m, (stage,), Schedule("1f1b", 1)), replace(RECIPE, samples=m)).stages
        fixed, each = code.segments[0].kept.transient
        found.append(fixed + each * m / 4)
    assert found == [4 * 4 * k, 4 * (m * k + m * n / 4)]


def priced(graph: Graph, found: Plan) -> tuple[float, float]:
    """(sum over the program, simulated seconds)."""
    asked = Problem(graph, resolve("a100x2"), Analytic(precision="float32"), replace(RECIPE, samples=graph.samples))
    return additive(asked, found)[0], simulate(asked, found).step_seconds


@pytest.mark.parametrize(("samples", "cheaper"), [(8, True), (65536, False)], ids=["few", "many"])
def test_it_is_priced(samples: int, cheaper: bool) -> None:
    """dW by columns moves dY and X, its dual the sum of dW: of few samples the former are less, of many the latter."""
    width = 16384
    graph = linear_graph(samples, width, width)
    other, dual = (plan(own, graph=graph) for own in ({1: {"n": CUT}}, {}))
    sent = [received(lower(graph, p, replace(RECIPE, samples=samples)), graph, on={W, X, Y}) for p in (other, dual)]
    moved = samples * width / 2 + samples * width / 4  # X gathered, dY swapped; of the dual half of dW is sent
    assert sent[0] - sent[1] == moved - width * width / 2
    for own, against in zip(priced(graph, other), priced(graph, dual), strict=True):
        assert (own < against) == cheaper


def test_it_is_said() -> None:
    found = plan({1: {"n": CUT}})
    assert sharding_words(found.stages[0].shardings[LINEAR]) == "b over x (gradient: n over x)"
    row = next(r for r in sharding_rows(GRAPH, found, RECIPE) if r.op == LINEAR)
    assert row.cut == f"b over x; gradient of {W}: n over x"
    assert any("swap gradient of" in words for words in row.backward) and any("gather" in w for w in row.backward)


@pytest.mark.parametrize("backward", [{0: {}}, {1: {}}, {0: {"k": CUT}, 1: {"k": CUT}}], ids=str)
def test_what_the_backward_reads_is_there(backward: dict[int, dict[str, tuple[Cut, ...]]]) -> None:
    """Made in the forward, run again, at rest, or made by the backward before."""
    found = segment(plan(backward, again=True))
    there = {t.name for t in GRAPH.tensors if t.role in ("param", "input")} | {GRAD + GRAPH.loss}
    there |= {v for i in (*found.forward, *found.rerun) for v in i.outputs}
    for i in found.backward:
        assert set(i.inputs) <= there, i
        there |= set(i.outputs)
    assert {GRAD + t.name for t in GRAPH.params()} <= there


COLUMNS = Layout((((M, ()),), ((N, CUT),)))


def apart_at_rest(backward: dict[int, dict[str, tuple[Cut, ...]]]) -> Plan:
    """The gradient of Y rests cut on its columns, Y on its rows."""
    found = plan(backward)
    return replace(found, stages=(replace(found.stages[0], gradients={Y: COLUMNS}),))


def test_a_gradient_that_rests_elsewhere_is_brought_there_once_and_read_from_there() -> None:
    """Both gradients of the product by columns: only what reads Y swaps its part of ∂Y."""
    by_columns = {"n": CUT}
    found = segment(apart_at_rest({0: by_columns, 1: by_columns}))
    home = f"{GRAD}{Y}^"
    moved = [i for i in found.backward if i.on == Y and i.kind != "compute"]
    assert [(i.collective, i.inputs, i.outputs) for i in moved] == [("all_to_all", (f"{GRAD}{Y}@1",), (home,))]
    assert [i.inputs[0] for i in found.backward if i.within and i.kind == "compute"] == [home, home]
    (name,) = (i for i in found.forward if i.on == Y and i.kind == "identity")
    assert (name.inputs, name.outputs) == ((Y,), (f"{Y}@1",))


def test_the_dual_reads_it_as_its_op_made_the_result() -> None:
    found = segment(apart_at_rest({}))
    moved = [(i.collective, i.inputs, i.outputs) for i in found.backward if i.on == Y and i.kind != "compute"]
    home = f"{GRAD}{Y}^"
    assert moved == [
        ("all_to_all", (f"{GRAD}{Y}@1",), (home,)),
        ("all_to_all", (home,), (GRAD + Y,)),
    ]
    (own,) = (i for i in found.backward if i.on == LINEAR)
    assert own.inputs == (GRAD + Y,)


def test_ranks_have_a_value_for_it_to_be_the_gradient_of() -> None:
    found = joined(segment(apart_at_rest({})))
    (home,) = (i for i in found.forward if i.kind == "home")
    assert (home.inputs, home.outputs) == ((Y,), (f"{Y}^",)) and home.after == COLUMNS
    (name,) = (i for i in found.forward if i.on == Y and i.kind == "identity")
    assert name.inputs == (Y, f"{Y}^")


def test_as_the_value_rests_says_nothing_more() -> None:
    found = plan({})
    rows = Layout((((M, CUT),), ((N, ()),)))
    assert segment(replace(found, stages=(replace(found.stages[0], gradients={Y: rows}),))) == segment(found)


def test_it_is_said_where_a_gradient_rests() -> None:
    row = next(r for r in sharding_rows(GRAPH, apart_at_rest({}), RECIPE) if r.op == LINEAR)
    assert row.rests == f"[batch/x, {N}]; gradient [batch, {N}/x]"
