"""Tofu's search of many equal layers: looked at once, told step by step, and stopped with what it has."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from meshwright.graph.ir import Graph, Slot
from meshwright.planners import _run, _tofu_alike, _tofu_search
from meshwright.planners._tofu_alike import Outline
from meshwright.planners._tofu_groups import Coarse, Node
from meshwright.planners._tofu_prices import Way, moved, sequences
from meshwright.planners._tofu_search import Decision, Space, greedy
from meshwright.planners.tofu import METHODS, Tofu

from .conv_nets import Net, small_net
from .test_tofu import coarse, perceptron, problem, unrolled


def layers(count: int) -> Graph:
    """x + relu(x · U) · (x · W) again and again; the product in the middle is between three groups of tensors."""
    net = Net(64)
    x = net.linear("first", net.tensor("x", (64, 16), "input"), 64)
    for k in range(count):
        left, right = net.relu(f"act{k}", net.linear(f"left{k}", x, 64)), net.linear(f"right{k}", x, 64)
        x = net.add(f"sum{k}", net.call(f"mix{k}", "matmul", (left, right), (Slot(0), Slot(1)), (64, 64)), x)
    return net.graph(net.mean("loss", net.linear("last", x, 16)))


@dataclass
class Count:
    """Calls of a function, which it passes on."""

    calls: dict[str, int] = field(default_factory=dict)

    def of(self, name: str, function: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object) -> object:
            self.calls[name] = self.calls.get(name, 0) + 1
            return function(*args)

        return counted


def calls(monkeypatch: pytest.MonkeyPatch, of: Coarse, search: Callable[[Space], Decision]) -> dict[str, int]:
    count = Count()
    with monkeypatch.context() as patch:
        patch.setattr(_tofu_alike, "moved", count.of("prices", moved))
        patch.setattr(_tofu_alike, "sequences", count.of("ways", sequences))
        patch.setattr(_tofu_search._Step, "touched", count.of("tables", _tofu_search._Step.touched))
        space = Space(of)
        decision = search(space)
        for steps in (1, 2, 3):
            space.total(
                Decision(
                    {n: way[:steps] for n, way in decision.ops.items()},
                    {u: way[:steps] for u, way in decision.units.items()},
                ),
                (2, 2, 2)[:steps],
            )
    return count.calls


@pytest.mark.parametrize("search", [lambda s: s.recursion((2, 2, 2)), lambda s: greedy(s, (2, 2, 2))])
def test_more_equal_layers_are_no_more_work(
    monkeypatch: pytest.MonkeyPatch, search: Callable[[Space], Decision]
) -> None:
    few, many = (calls(monkeypatch, coarse(layers(n)), search) for n in (6, 24))
    assert few == many


def test_groups_between_tensors_are_those_of_the_definition() -> None:
    """Ends of a group of ops: the groups of tensors that it and some other touch."""
    for graph in (layers(3), perceptron(64, 32, 16, 8), unrolled(3)):
        of = coarse(graph)
        touched = [{of.variable_of[t.unit] for n in group for t in of.nodes[n].touches} for group in of.groups]
        outline = Outline(of)
        ends = [
            tuple(sorted(v for v in own if any(v in other for h, other in enumerate(touched) if h != g)))
            for g, own in enumerate(touched)
        ]
        assert [group.ends for group in outline.groups] == ends
        assert [group.apart for group in outline.groups] == [len(e) > 2 for e in ends]
        apart = [own for own, e in zip(touched, ends, strict=True) if len(e) > 2]
        assert outline.shared == sorted(set().union(*ends, *apart))


@pytest.mark.parametrize("graph", [layers(3), perceptron(64, 32, 16, 16, 16, 8), unrolled(3), small_net()])
def test_nothing_alike_gives_the_same_plan(monkeypatch: pytest.MonkeyPatch, graph: Graph) -> None:
    """Every op and group looked at on its own."""
    look = _tofu_alike._look
    of, factors = coarse(graph), (2, 2)
    searches: list[Callable[[Space], Decision]] = [
        lambda s: s.recursion(factors), lambda s: s.recursion(factors, look_ahead=False), lambda s: greedy(s, factors),
    ]  # fmt: skip
    for reduction in (True, False):
        shared = [search(Space(of, reduction)) for search in searches]
        with monkeypatch.context() as patch:
            patch.setattr(_tofu_alike, "_look", lambda *args: (object(), look(*args)[1]))
            alone = [search(Space(of, reduction)) for search in searches]
        assert shared == alone


def test_the_price_of_a_plan_is_that_of_its_ops() -> None:
    """Drawn plans, priced op by op by the direct definition."""
    of, rng, factors = coarse(layers(3)), random.Random(0), (2, 2)
    space = Space(of)
    for _ in range(20):
        units = {u: rng.choice(space.of_unit(u, (), factors)) for u in range(len(of.units))}
        ops = {n: rng.choice(space.of_node(n, (), factors)) for n in range(len(of.nodes))}
        direct = sum(
            float(moved(node, t, of.units[t.unit], [ops[n]], [units[t.unit]], factors)[0, 0])
            for n, node in enumerate(of.nodes)
            for t in node.touches
        )
        assert space.total(Decision(ops, units), factors) == direct


def least(of: Coarse, node: Node, fixed: dict[int, Way], factors: tuple[int, ...]) -> float:
    """Bytes of an op for those of its tensors that are split already, by the direct definition."""
    ways = sequences(node.sizes, node.options, (), factors)
    own = [t for t in node.touches if t.unit in fixed]
    costs = [moved(node, t, of.units[t.unit], ways, [fixed[t.unit]], factors)[:, 0] for t in own]
    return float(min(sum(rows) for rows in zip(*costs, strict=True)))


@pytest.mark.parametrize("graph", [layers(2), perceptron(64, 32, 16, 16, 8)])
def test_greedy_splits_each_tensor_where_its_ops_then_move_least(graph: Graph) -> None:
    of, factors = coarse(graph), (2, 2)
    splits: dict[int, Way] = {}
    for step in (1, 2):
        fixed: dict[int, Way] = {}
        for u in sorted(range(len(of.units)), key=lambda u: (not of.units[u].forward, -of.units[u].nbytes, u)):
            readers = [node for node in of.nodes if any(t.unit == u for t in node.touches)]
            costs: dict[Way, float] = {}
            shape = of.units[u].shape
            for way in sequences(shape, range(len(shape)), splits.get(u, ()), factors[:step]):
                fixed[u] = way
                costs[way] = sum(least(of, node, fixed, factors[:step]) for node in readers)
            fixed[u] = min(costs, key=costs.__getitem__)
        splits = fixed
    assert greedy(Space(of), factors).units == splits


@pytest.mark.parametrize("method", METHODS)
def test_progress_counts_the_steps(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(_run, "EVERY", 0.0)
    told: list[tuple[int, int]] = []
    Tofu(method=method).plan(  # type: ignore[arg-type]
        problem(perceptron(64, 32, 16), 8), progress=lambda phase, done, total, best: told.append((done, total))
    )
    done = [d for d, _ in told]
    assert len({total for _, total in told}) == 1 and done == sorted(done)
    assert done[0] == 0 and done[-1] == told[0][1] and len(set(done)) >= min(3, 1 + told[0][1])


def test_ctrl_c_while_a_plan_is_proved_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "EVERY", 0.0)
    asked = problem(perceptron(64, 32, 16), 8)

    def pressed(phase: str, done: int, total: int, best: float) -> None:
        if best < float("inf"):
            raise KeyboardInterrupt

    result, whole = Tofu().plan(asked, progress=pressed), Tofu().plan(asked)
    assert (result.status, result.reason) == ("budget", "stopped by Ctrl-C")
    assert result.plan == whole.plan and result.objective == whole.objective and result.bound is None
