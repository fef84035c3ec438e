"""Tofu: bytes counted element by element, the reference tables, ties, coarsening, baselines and properties."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest

from meshwright.cluster import resolve
from meshwright.cost.analytic import Analytic
from meshwright.errors import InputError, Unsupported
from meshwright.graph.expand import expand_training
from meshwright.graph.ir import Graph, Slot
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._tofu_groups import Coarse, Node, Touch, Unit, coarsened, time_steps
from meshwright.planners._tofu_prices import WHOLE, Way, moved, sequences
from meshwright.planners._tofu_search import NOTHING, Decision, Space, exact
from meshwright.planners.tofu import METHODS, Tofu, prime_factors
from meshwright.testing import PlannerConformance
from meshwright.testing.tiny import mlp, problem_of
from reference_cases import reference_cases

from .conv_nets import Net, small_net


class TestConformance(PlannerConformance):
    planner = "tofu"


def perceptron(batch: int, *dims: int) -> Graph:
    """Linear layers without biases or activations under a mean."""
    net = Net(batch)
    x = net.tensor("x", (batch, dims[0]), "input")
    for k, width in enumerate(dims[1:]):
        x = net.linear(f"layer{k}", x, width)
    return net.graph(net.mean("loss", x))


def problem(graph: Graph, workers: int, preset: str = "a100") -> Problem:
    """Any number of workers of a cluster of that or more devices."""
    devices = next(n for n in (1, 2, 4, 8, 16) if n >= workers)
    made = Problem(
        graph,
        resolve(f"{preset}x{devices}"),
        Analytic(precision="float32"),
        Recipe(graph.samples, compute_dtype="float32"),
    )
    return replace(made, limits=replace(made.limits, devices=workers))


def coarse(graph: Graph) -> Coarse:
    return coarsened(expand_training(graph), graph.samples, elements=True)


# ---------------------------------------------------------------- prices


def touch(unit: int, *dims: int, write: bool = False, partial: frozenset[int] = frozenset()) -> Touch:
    """An operand whose dims are index variables themselves."""
    return Touch(unit, write, 1, tuple(((v, 1),) for v in dims), (0,) * len(dims), (0,) * len(dims), partial)


def test_single_matmul() -> None:
    """y (8 × 6) = x (8 × 4) · W (4 × 6) on two workers: rows 24, columns 32, the reduction 48."""
    node = Node("matmul", 0, (8, 6, 4), ("i", "j", "k"), (0, 1, 2), frozenset({2}), (), True)
    ends = (
        (touch(0, 0, 2), (8, 4)),
        (touch(1, 2, 1), (4, 6)),
        (touch(2, 0, 1, write=True, partial=frozenset({2})), (8, 6)),
    )
    found = [
        sum(moved(node, t, Unit(s, [], 0.0, True), [(c,)], [(0,), (1,)], (2,)).min() for t, s in ends) for c in range(3)
    ]
    assert found == [24, 32, 48]


def test_the_table_of_one_step() -> None:
    """Shares of a tensor: its split dim cut 0, another dim a half, none all of it; partial results all of it."""
    node = Node("op", 0, (4, 4, 4), ("i", "j", "k"), (0, 1, 2), frozenset({2}), (), True)
    unit = Unit((4, 4), [], 16.0, True)
    read = moved(node, touch(0, 0, 1), unit, [(0,), (1,), (2,)], [(0,)], (2,))
    made = moved(node, touch(0, 0, 1, write=True, partial=frozenset({2})), unit, [(0,), (1,), (2,)], [(0,)], (2,))
    assert read.ravel().tolist() == [0, 8, 16] and made.ravel().tolist() == [0, 8, 16]


def test_steps_do_not_commute() -> None:
    """The same cuts in another order: blocks of fixed workers overlap otherwise, by half as much again."""
    node = Node("op", 0, (8, 8), ("i", "j"), (0, 1), frozenset(), (), True)
    ji, ij = moved(node, touch(0, 0, 1), Unit((8, 8), [], 64.0, True), [(1, 0), (0, 1)], [(0, 0)], (2, 2)).ravel()
    assert ji == 1.5 * ij == 0.75 * 64


def by_elements(node: Node, t: Touch, shape: tuple[int, ...], op: Way, split: Way, factors: tuple[int, ...]) -> int:
    """The definition, worker by worker and element by element, from nested halves found by repeated cutting."""

    def part(n: int, steps: list[tuple[int, int]]) -> range:
        own = range(n)
        for k, q in steps:
            size = len(own) // k
            own = own[q * size : (q + 1) * size]
        return own

    found = 0
    for worker in product(*(range(k) for k in factors)):
        ranges = [
            part(n, [(k, q) for k, q, c in zip(factors, worker, op, strict=True) if c == v])
            for v, n in enumerate(node.sizes)
        ]
        block = set(
            product(
                *(
                    part(n, [(k, q) for k, q, s in zip(factors, worker, split, strict=True) if s == d])
                    for d, n in enumerate(shape)
                )
            )
        )
        dims = []
        for d, terms in enumerate(t.terms):
            at = {t.first[d] + more for more in range(t.beyond[d] + 1)}
            for v, k in terms:
                at = {a + k * x for a in at for x in ranges[v]}
            low, high = max(0, min(at)), min(shape[d], max(at) + 1)
            dims.append(range(low, high))
        region = set(product(*dims))
        if t.write:
            # Everyone with another part of the sums has a value for each element that is owned here.
            copies = prod(k for k, c in zip(factors, op, strict=True) if c in t.partial)
            found += len(block) * copies - len(block & region)
        else:
            found += len(region - block)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_bytes_are_those_of_counting_elements(seed: int) -> None:
    """Two or three steps, factors 2 and 3, windows with padding, results with partial sums."""
    rng = random.Random(seed)
    factors = rng.choice([(2, 2), (3, 2), (2, 2, 2)])
    node = Node("op", 0, (12, 12, 24), ("i", "j", "k"), (0, 1, 2), frozenset({2}), (), True)
    window = Touch(0, False, 1, (((0, 1),), ((1, 1),)), (0, -1), (0, 2), frozenset())
    t = rng.choice([touch(0, 0, 1), touch(0, 1, 2), window, touch(0, 0, 1, write=True, partial=frozenset({2}))])
    shape = tuple(node.sizes[terms[0][0]] for terms in t.terms)
    ops = sequences(node.sizes, node.options, (), factors)
    splits = sequences(shape, range(2), (), factors)
    table = moved(node, t, Unit(shape, [], 0.0, True), ops, splits, factors)
    for _ in range(8):
        a, b = rng.randrange(len(ops)), rng.randrange(len(splits))
        assert table[a, b] == by_elements(node, t, shape, ops[a], splits[b], factors)


def test_what_does_not_divide_is_no_strategy() -> None:
    assert sequences((3, 8), (0, 1), (), (2, 2)) == [(1, 1)]
    assert sequences((3, 2), (0, 1), (), (2, 2)) == [(1, WHOLE)]
    assert sequences((6,), (0,), (), (3, 2)) == [(0, 0)]


# ---------------------------------------------------------------- reference table

TABLE = reference_cases(
    "tofu",
    "The training step of a perceptron: least elements moved",
    source="enumeration of all plans, apart from this program",
    columns=("batch", "widths", "on 2, 4 and 8 workers"),
    rows=[
        (4096, (64, 64), (8192, 24576, 57344)),
        (128, (128, 16), (4096, 8192, 16384)),
        (512, (512, 256, 4), (265216, 533504, 1063936)),
        (32, (256, 1024, 256), (40960, 122880, 286720)),
    ],
)


@pytest.mark.parametrize(("batch", "dims", "least"), TABLE)
def test_the_training_step_of_a_perceptron(batch: int, dims: tuple[int, ...], least: tuple[int, ...]) -> None:
    """Elements moved on 2, 4 and 8 workers, to the last one; proved over all plans."""
    graph = perceptron(batch, *dims)
    for workers, wanted in zip((2, 4, 8), least, strict=True):
        asked = problem(graph, workers)
        planner = Tofu(count="elements")
        result = planner.plan(asked)
        assert (result.objective, result.bound, result.status, result.unit) == (wanted, wanted, "optimal", "element")
        assert result.plan is not None and planner.objective(asked, result.plan) == wanted
        assert Tofu().plan(asked).objective == 4 * wanted


def every_plan(of: Coarse) -> list[Decision]:
    """All first steps on two workers."""
    space = Space(of)
    units = [space.of_unit(u, (), (2,)) for u in range(len(of.units))]
    ops = [space.of_node(n, (), (2,)) for n in range(len(of.nodes))]
    return [
        Decision(dict(enumerate(choice[: len(ops)])), dict(enumerate(choice[len(ops) :])))
        for choice in product(*ops, *units)
    ]


def test_a_step_is_the_optimum_of_all_plans() -> None:
    of = coarse(perceptron(128, 128, 16))
    space = Space(of)
    assert (
        min(space.total(d, (2,)) for d in every_plan(of))
        == space.total(space.solve(NOTHING, (2,), 0, (1,)), (2,))
        == 4096
    )


def test_ties_go_on_differently() -> None:
    """Six first steps move 4096 elements; the best continuation reaches 8192, the worst 10240."""
    of = coarse(perceptron(128, 128, 16))
    space = Space(of)
    ties = [d for d in every_plan(of) if space.total(d, (2,)) == 4096]
    assert len(ties) == 6
    continued = [space.total(space.solve(d, (2, 2), 1, (1,)), (2, 2)) for d in ties]
    assert (min(continued), max(continued)) == (8192, 10240)
    assert space.total(space.recursion((2, 2)), (2, 2)) == 8192


def tabled(of: Coarse) -> Callable[[Decision], float]:
    """`Space.total` of one step on two workers, from a table for each operand and result."""
    space = Space(of)
    tables = [
        (
            n,
            t.unit,
            {
                (c, s): float(moved(node, t, of.units[t.unit], [c], [s], (2,))[0, 0])
                for c in space.of_node(n, (), (2,))
                for s in space.of_unit(t.unit, (), (2,))
            },
        )
        for n, node in enumerate(of.nodes)
        for t in node.touches
    ]
    return lambda d: sum(table[d.ops[n], d.units[u]] for n, u, table in tables)


def test_ties_of_two_layers() -> None:
    """Of six first steps of 265216 elements, continuations range from 533504 to 664576."""
    of = coarse(perceptron(512, 512, 256, 4))
    space = Space(of)
    price = tabled(of)
    ties = [d for d in every_plan(of) if price(d) == 265216]
    assert len(ties) == 6
    continued = [space.total(space.solve(d, (2, 2), 1, (1,)), (2, 2)) for d in ties]
    assert (min(continued), max(continued)) == (533504, 664576)


def random_perceptron(seed: int) -> Graph:
    rng = random.Random(seed)
    sizes = (8, 16, 32, 64, 128, 256)
    return perceptron(rng.choice(sizes), *(rng.choice(sizes) for _ in range(rng.choice((2, 3)))))


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_the_recursion_meets_the_optimum_on_random_perceptrons(first: int) -> None:
    """And its steps never move less than the ones before; any tie costs at most a quarter more."""
    for seed in range(first, first + 20):
        of = coarse(random_perceptron(seed))
        factors = (2, 2)
        space = Space(of)
        decision = space.recursion(factors)
        total = space.total(decision, factors)
        assert total == space.total(exact(Space(of), factors), factors), seed
        one = space.total(
            Decision({n: w[:1] for n, w in decision.ops.items()}, {u: w[:1] for u, w in decision.units.items()}), (2,)
        )
        assert one <= total - one, seed
        blind = space.total(space.recursion(factors, look_ahead=False), factors)
        assert total <= blind <= 1.25 * total, seed


# ---------------------------------------------------------------- properties and baselines


@pytest.mark.parametrize("seed", range(6))
def test_no_baseline_moves_less(seed: int) -> None:
    graph = small_net() if seed == 0 else random_perceptron(100 + seed)
    asked = problem(graph, 4)
    found = {method: Tofu(method=method).plan(asked).objective for method in METHODS}  # type: ignore[arg-type]
    assert found["tofu"] <= min(found[m] for m in ("icml18", "equalchop", "spartan", "allrow"))
    assert found["exact"] <= found["tofu"]


def test_without_reductions_the_optimum_is_never_lower() -> None:
    for seed in range(10):
        of = coarse(random_perceptron(seed))
        every, fewer = Space(of), Space(of, reduction=False)
        assert every.total(exact(every, (2, 2)), (2, 2)) <= fewer.total(exact(fewer, (2, 2)), (2, 2))


def test_twice_the_batch_scales_the_terms_of_the_batch() -> None:
    """Where W is fetched and its gradient reduced, the batch does not matter; where activations move, it doubles."""
    assert Tofu(method="exact", count="elements").plan(problem(perceptron(8192, 64, 64), 2)).objective == 8192
    narrow = [Tofu(count="elements").plan(problem(perceptron(batch, 512, 512), 2)).objective for batch in (4, 8)]
    assert narrow[1] == 2 * narrow[0]


def test_baselines_split_as_they_say() -> None:
    asked = problem(perceptron(64, 32, 16), 4)
    rows = Tofu(method="allrow").plan(asked).plan
    chop = Tofu(method="equalchop").plan(asked).plan
    assert rows is not None and chop is not None
    for layout in (*rows.stages[0].layouts.values(), *(s.param for s in rows.stages[0].storage.values())):
        assert layout is not None and [cut.axis for cut in layout.dims[0][0][1]] == ["k1", "k2"]
    assert chop.stages[0].mesh.shape == (4,)


# ---------------------------------------------------------------- workers


def test_factors_of_the_workers() -> None:
    assert [prime_factors(n) for n in (1, 2, 6, 8, 12, 30)] == [(), (2,), (3, 2), (2, 2, 2), (3, 2, 2), (5, 3, 2)]


def test_six_workers_and_one() -> None:
    graph = perceptron(96, 48, 12)
    asked = problem(graph, 6)
    result = Tofu().plan(asked)
    assert result.plan is not None and result.status == "optimal"
    stage = result.plan.stages[0]
    assert stage.mesh.shape == (3, 2)
    for name, layout in stage.layouts.items():
        assert prod(stage.mesh.size(c.axis) for dim in layout.dims for _, own in dim for c in own) == 6, name
    alone = Tofu().plan(problem(graph, 1))
    assert alone.objective == 0 and alone.status == "optimal"


def test_everything_is_split_over_all_workers() -> None:
    """A sixteenth of nothing is stored twice; what nothing divides is named."""
    net = Net(8)
    x = net.linear("layer", net.tensor("x", (8, 16), "input"), 16)
    odd = net.tensor("odd", (3,), "param")
    x = net.linear("three", x, 3)
    graph = net.graph(net.mean("loss", net.call("add", "add", (x, odd), (Slot(0), Slot(1)), (8, 3))))
    result = Tofu().plan(problem(graph, 4))
    assert result.plan is not None and isinstance(result.carry, dict)
    assert result.carry["whole"] == ["odd"]
    stage = result.plan.stages[0]
    held = dict(stage.layouts) | {t: s.param for t, s in stage.storage.items()}
    for name, layout in held.items():
        assert layout is not None
        assert sum(len(own) for dim in layout.dims for _, own in dim) == (0 if name == "odd" else 2)


# ---------------------------------------------------------------- coarsening


def named_groups(of: Coarse) -> list[set[str]]:
    return [{of.nodes[n].name.partition("/")[2] for n in group} for group in of.groups]


def test_forward_and_backward_are_one_group() -> None:
    of = coarse(mlp(2))
    assert {"linear", "linear:input_grad", "linear:weight_grad"} in named_groups(of)
    assert {"relu", "relu:backward"} in named_groups(of)
    pairs = [{t for u in own for t in of.units[u].tensors} for own in of.variables]
    assert {"stem.out", "grad:stem.out"} in pairs
    assert {"stem.weight", "grad:stem.weight"} in [set(u.tensors) for u in of.units]  # the update is element-wise


def test_elementwise_chains_are_coalesced_up_to_a_fork() -> None:
    net = Net(8)
    x = net.linear("in", net.tensor("x", (8, 16), "input"), 16)
    y = net.relu("b", net.relu("a", net.linear("mid", x, 16)))
    z = net.relu("c", net.add("sum", y, x))
    of = coarse(net.graph(net.mean("loss", net.linear("out", z, 16))))
    units = [set(u.tensors) for u in of.units]
    assert {"mid.out", "a.out", "b.out", "sum.out", "c.out"} in units
    assert {"in.out"} in units  # two readers
    assert {"grad:in.out", "grad:in.out#0", "grad:in.out#1"} in units
    assert Space(of).total(Space(of).recursion((2, 2)), (2, 2)) > 0


def unrolled(steps: int) -> Graph:
    """h = relu(x_t · U + h · W), the same weights each time."""
    net = Net(16)
    width = 32
    u = net.tensor("U", (width, width), "param")
    w = net.tensor("W", (width, width), "param")
    h = net.linear("start", net.tensor("x", (16, width), "input"), width)
    for t in range(steps):
        a = net.call(
            f"t{t}.u", "linear", (net.tensor(f"x{t}", (16, width), "input"), u), (Slot(0), Slot(1)), (16, width)
        )
        b = net.call(f"t{t}.w", "linear", (h, w), (Slot(0), Slot(1)), (16, width))
        h = net.relu(f"t{t}.act", net.add(f"t{t}.sum", a, b))
    return net.graph(net.mean("loss", h))


def test_time_steps_share_one_strategy() -> None:
    graph = unrolled(4)
    steps = time_steps(expand_training(graph))
    for part in ("u/linear", "w/linear", "sum/add", "act/relu"):
        assert [steps.get(f"t{t}.{part}") for t in range(1, 4)] == [f"t0.{part}"] * 3
    short, long = coarse(graph), coarse(unrolled(8))
    assert len(short.groups) == len(long.groups) and len(short.nodes) == len(long.nodes)
    for workers in (2, 4):
        result = Tofu().plan(problem(graph, workers))
        assert result.plan is not None
        shardings = result.plan.stages[0].shardings
        assert all(shardings[f"t{t}.w/linear"] == shardings["t0.w/linear"] for t in range(4))
        assert Tofu().objective(problem(graph, workers), result.plan) == result.objective


def test_a_graph_that_is_no_chain_is_solved_exactly() -> None:
    """A product of two activations, and a value that skips it: against all first steps of a small one, by sampling."""
    net = Net(4)
    x = net.tensor("x", (4, 8), "input")
    q, k = net.linear("q", x, 8), net.linear("k", x, 8)
    s = net.call(
        "scores", "matmul", (q, net.call("t", "transpose", (k,), (Slot(0), 0, 1), (8, 4))), (Slot(0), Slot(1)), (4, 4)
    )
    y = net.add("skip", net.call("mix", "matmul", (s, q), (Slot(0), Slot(1)), (4, 8)), k)
    of = coarse(net.graph(net.mean("loss", net.linear("out", y, 8))))
    space = Space(of)
    least = space.total(space.solve(NOTHING, (2,), 0, (1,)), (2,))
    rng = random.Random(0)
    units = [space.of_unit(u, (), (2,)) for u in range(len(of.units))]
    ops = [space.of_node(n, (), (2,)) for n in range(len(of.nodes))]
    best, price = np.inf, tabled(of)
    for _ in range(40):  # descend from random plans
        d = Decision({n: rng.choice(w) for n, w in enumerate(ops)}, {u: rng.choice(w) for u, w in enumerate(units)})
        value, moving = price(d), True
        while moving:
            moving = False
            near = [replace(d, ops={**d.ops, n: w}) for n, ways in enumerate(ops) for w in ways]
            near += [replace(d, units={**d.units, u: w}) for u, ways in enumerate(units) for w in ways]
            other = min(near, key=price)
            if price(other) < value:
                d, value, moving = other, price(other), True
        assert value == space.total(d, (2,))
        assert value >= least
        best = min(best, value)
    assert best == least


# ---------------------------------------------------------------- plans


def test_the_plan_says_how_tensors_rest_and_forward_ops_are_cut() -> None:
    asked = problem_of(mlp(2), "a100x4")
    planner = Tofu()
    result = planner.plan(asked)
    assert result.plan is not None and isinstance(result.carry, dict)
    stage = result.plan.stages[0]
    assert stage.mesh.axes == ("k1", "k2")
    assert set(stage.storage) == {t.name for t in asked.graph.params()}
    assert set(result.carry["backward"]) >= {"head/linear:input_grad", "head/linear:weight_grad"}  # type: ignore[call-overload, arg-type]
    assert sum(result.carry["steps"]) == result.objective  # type: ignore[arg-type]
    assert result.carry["looked_ahead"] == 1  # the last step has nothing to look ahead to


def test_replicas_are_priced_by_the_same_definition() -> None:
    """Weights on every worker: nothing is fetched, and each of two gets the other's half of the gradient sums."""
    asked = problem(perceptron(64, 16, 16), 2)
    graph = asked.graph
    plan = Tofu().plan(asked).plan
    assert plan is not None
    batch = {op.name: next(f.name for f in op.rule.factors if f.samples) for op in graph.ops}
    stage = replace(
        plan.stages[0], storage={}, layouts={}, shardings={n: OpSharding({f: (Cut("k1"),)}) for n, f in batch.items()}
    )
    assert Tofu(count="elements").objective(asked, replace(plan, stages=(stage,))) == 2 * 16 * 16


def test_plans_that_it_cannot_price_are_refused() -> None:
    asked = problem(perceptron(64, 16, 16), 2)
    plan = Tofu().plan(asked).plan
    assert plan is not None
    stage = plan.stages[0]

    def refused(changed: Plan, match: str) -> None:
        with pytest.raises(Unsupported, match=match):
            Tofu().objective(asked, changed)

    refused(replace(plan, schedule=Schedule("1f1b", 2)), "one micro-batch")
    uneven = {stage.ops[0]: OpSharding({"n": (Cut("k1", (1, 3)),)})}
    refused(replace(plan, stages=(replace(stage, shardings={**stage.shardings, **uneven}),)), "equal cuts")
    inside = {"x": Layout((((64, ()),), ((4, ()), (4, (Cut("k1"),)))))}
    refused(replace(plan, stages=(replace(stage, layouts={**stage.layouts, **inside}),)), "whole dims")
    with pytest.raises(InputError, match='tofu has no method "greedy"'):
        Tofu(method="greedy")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has none"):
        Tofu().plan(replace(asked, graph=replace(asked.graph, loss="")))
