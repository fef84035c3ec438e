"""What Tofu counts of a step is what the program of its plan sends: gradients are computed as it decides.

On a prime number of workers, so that nothing is cut twice. The program sends less only where it need not send twice: the
gradient of a result that two gradients of one op read alike, and an operand that a gradient reads as the forward re-cut it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from meshwright.graph.blocks import with_runs
from meshwright.graph.capture import capture
from meshwright.graph.expand import GRAD, expand_training
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.lower import lower
from meshwright.lower.volumes import received
from meshwright.plan.model import Plan
from meshwright.plan.problem import Recipe
from meshwright.plan.validate import validate
from meshwright.planners._tofu_groups import Coarse, coarsened
from meshwright.planners._tofu_plan import activation, held, read
from meshwright.planners._tofu_prices import Way, moved
from meshwright.planners._tofu_search import Decision, Space
from meshwright.planners.tofu import Tofu

from .test_tofu import perceptron, problem


def coarse(graph: Graph) -> Coarse:
    return coarsened(expand_training(graph), graph.samples, elements=True)


def drawn(of: Coarse, workers: int, rng: random.Random) -> Decision:
    """Everything at random: ops and their gradients, where tensors rest and their gradients."""
    space, factors = Space(of), (workers,)
    units = {u: rng.choice(space.of_unit(u, (), factors)) for u in range(len(of.units))}
    ops = {n: rng.choice(space.of_node(n, (), factors)) for n in range(len(of.nodes))}
    return Decision(ops, units)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(16 * 16, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1)).square().mean()


def conv_net() -> Graph:
    with torch.device("meta"):
        return capture(Convolutions().train(), {"x": torch.randn(8, 4, 16, 16)}, 8)


def two_blocks() -> Graph:
    shrink = Shrink(blocks=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=32, seq=8, dropout=0.0)
    module, inputs = resolve("gpt2").build(4, 8, "float32", shrink=shrink)
    return with_runs(capture(module, inputs, 4))


def sent(graph: Graph, plan: Plan, workers: int) -> float:
    """Elements that all ranks receive of anything but the loss."""
    names = {t.name for t in graph.tensors} - {graph.loss}
    return workers * received(lower(graph, plan, Recipe(graph.samples, compute_dtype="float32")), graph, on=names)


def sent_once(of: Coarse, graph: Graph, decision: Decision, workers: int) -> float:
    """Elements that Tofu counts twice and a program sends once."""
    found = 0.0
    at = {node.name: n for n, node in enumerate(of.nodes)}

    def along(n: int, tensor: str) -> tuple[Way, float, float]:
        """(what of a tensor a part of an op reads, elements moved, elements of the tensor)."""
        node = of.nodes[n]
        touch = next(t for t in node.touches if t.unit == of.unit_of[tensor] and not t.write)
        unit = of.units[touch.unit]
        cost = moved(node, touch, unit, [decision.ops[n]], [decision.units[touch.unit]], (workers,))[0, 0]
        (v,) = decision.ops[n]
        dims = tuple(d for d, terms in enumerate(touch.terms) if any(x == v for x, _ in terms))
        return dims, float(cost), float(unit.shape[0] * unit.shape[1])

    for op in graph.ops:
        if op.kind != "linear":
            continue
        x, w = op.inputs
        own = [n for n in (at.get(f"{op.name}:input_grad"), at.get(f"{op.name}:weight_grad")) if n is not None]
        result = [along(n, GRAD + op.outputs[0]) for n in own]
        if len(result) == 2 and result[0][0] == result[1][0]:
            found += result[0][1]
        for gradient, operand in ((f"{op.name}:input_grad", w), (f"{op.name}:weight_grad", x)):
            if gradient in at:
                here, cost, size = along(at[gradient], operand)
                if here and here == along(at[op.name], operand)[0]:  # re-cut, not gathered: that is kept
                    assert cost in (0.0, size * (workers - 1) / workers)
                    found += cost
    return found


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("dims", [(12, 24), (36, 12, 24), (12, 24, 6, 18)], ids=str)
def test_the_program_of_any_decision_sends_what_is_counted(dims: tuple[int, ...], workers: int) -> None:
    graph = perceptron(24, *dims)
    of, asked = coarse(graph), problem(graph, workers)
    planner, rng = Tofu(count="elements"), random.Random(str((dims, workers)))
    apart = elsewhere = 0
    for _ in range(60):
        decision = drawn(of, workers, rng)
        plan = planner._plan(asked, of, decision, (workers,))
        validate(asked, plan)
        assert read(asked, of, plan)[1] == decision
        counted = Space(of).total(decision, (workers,))
        assert sent(graph, plan, workers) == pytest.approx(counted - sent_once(of, graph, decision, workers))
        apart += sum(len(s.backward) for s in plan.stages[0].shardings.values())
        elsewhere += len(plan.stages[0].gradients)
    assert apart >= 30 and elsewhere >= 20


@pytest.mark.parametrize("model", [conv_net, two_blocks], ids=["convolutions", "transformer"])
def test_of_whole_models_it_sends_little_else(model: Callable[[], Graph]) -> None:
    """Windows send their borders once more than is counted, statistics are summed where rows are counted as fetched, and
    what several ops read alike is sent once. A plan says all of the decision."""
    graph = model()
    of, asked = coarse(graph), problem(graph, 2)
    planner, rng = Tofu(count="elements"), random.Random(0)
    for _ in range(8):
        free = drawn(of, 2, rng)
        own = held(graph, of, free)
        decision = Decision({**free.ops, **own.ops}, {**free.units, **own.units})
        plan = planner._plan(asked, of, decision, (2,))
        validate(asked, plan)
        assert read(asked, of, plan)[1] == decision
        counted = Space(of).total(decision, (2,))
        assert 0.85 * counted < sent(graph, plan, 2) < 1.02 * counted


@pytest.mark.parametrize("factors", [(2,), (3,), (2, 2)], ids=str)
def test_the_three_products_of_a_layer_move_alike(factors: tuple[int, ...]) -> None:
    """Cut along the same index, where gradients rest as what they are of: so no cut moves less than the dual of a best one."""
    graph = perceptron(24, 12, 24, 36)
    of = coarse(graph)
    space, rng, compared = Space(of), random.Random(0), 0
    at = {node.name: n for n, node in enumerate(of.nodes)}
    for _ in range(20):
        units = {u: rng.choice(space.of_unit(u, (), factors)) for u in range(len(of.units))}
        for u, unit in enumerate(of.units):
            if not unit.forward:
                units[u] = units[of.unit_of[activation(unit.tensors[0])]]
        for op in graph.ops:
            if op.kind != "linear":
                continue
            own = of.nodes[at[op.name]]
            for way in space.of_node(at[op.name], (), factors):
                forward = space.moved(at[op.name], way, units, factors)
                for n in (at.get(f"{op.name}:input_grad"), at.get(f"{op.name}:weight_grad")):
                    if n is not None:
                        same = tuple(of.nodes[n].names.index(own.names[v]) for v in way)
                        assert space.moved(n, same, units, factors) == forward
                        compared += 1
    assert compared >= 20 * 3 * 3
