"""Plans whose two halves are cut differently below the first level: a graph with every layer written twice, a stage for each half.

    conv1   type I, shares 0.3 and 0.7        ─▶   conv1@0  30 % of the samples       stage 0 on the first kind
                                                   conv1@1  70 % of the samples       stage 1 on the second

Each part says its type and its share; what passes between the parts is the exchange of the first level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cluster.model import Mesh
from ..cost.accpar_elements import TYPE_I, TYPE_II, TYPE_III
from ..errors import Unsupported
from ..graph.ir import Factor, Graph, Op, Tensor
from ..graph.serial import digest_of
from ..plan.model import Cut, OpSharding, Plan, Schedule, Stage
from ..plan.problem import Problem
from ._accpar_net import Net
from ._accpar_problem import FACTORS, Array

_LETTER = {kind: name for name, kind in FACTORS.items()}


def split_plan(
    problem: Problem,
    net: Net,
    array: Array,
    top: Sequence[int],
    shares: Sequence[float],
    below: Sequence[Sequence[Sequence[int]]],
) -> Plan:
    """The plan of a description.

    Args:
        top: types of the first level, which `shares` divide.
        below: per level after it, per half, the type of each layer.
    """
    graph = _split(problem.graph, top, shares)
    stages = []
    count = len(array.devices) // 2
    axes = array.mesh.axes[1:]
    for half in (0, 1):
        shardings = {}
        for v, name in enumerate(net.names):
            cuts: dict[str, tuple[Cut, ...]] = {}
            for axis, level in zip(axes, below):
                letter = _LETTER[level[half][v]]
                cuts[letter] = (*cuts.get(letter, ()), Cut(axis))
            shardings[part_of(name, half)] = OpSharding(cuts)
        mesh = Mesh(array.devices[half * count : (half + 1) * count], axes, (2,) * len(axes))
        stages.append(Stage(tuple(part_of(name, half) for name in net.names), mesh, shardings))
    return Plan(problem.graph.digest, problem.recipe.samples, tuple(stages), Schedule(), rewritten=graph)


def split_decided(net: Net, plan: Plan) -> tuple[tuple[int, ...], list[float], list[list[tuple[int, ...]]]]:
    """(types of the first level, shares, per level below, per half the types) of such a plan.

    Raises:
        Unsupported: another rewritten plan.
    """
    graph = plan.rewritten
    names = [{part_of(name, half) for name in net.names} for half in (0, 1)]
    sound = graph is not None and len(plan.stages) == 2 and all(op.name in names[0] | names[1] for op in graph.ops)
    if graph is None or not sound or any(set(s.ops) != own for s, own in zip(plan.stages, names)):
        raise Unsupported("accpar prices rewritten plans of two stages, each with its part of every layer")
    said = [dict(graph.ops[graph.position[part_of(name, 0)]].kwargs) for name in net.names]
    top = tuple(int(kept["type"]) for kept in said)  # type: ignore[arg-type]
    shares = [float(kept["share"]) for kept in said]  # type: ignore[arg-type]
    below: list[list[tuple[int, ...]]] = []
    for axis in plan.stages[0].mesh.axes:
        halves = []
        for half, stage in enumerate(plan.stages):
            own = []
            for name in net.names:
                cuts = stage.shardings[part_of(name, half)].cuts
                letter = next((f for f, on in cuts.items() if any(cut.axis == axis for cut in on)), "")
                if letter not in FACTORS:
                    raise Unsupported(
                        f"layer {name} is not cut over axis {axis}: accpar cuts every layer at every level"
                    )
                own.append(FACTORS[letter])
            halves.append(tuple(own))
        below.append(halves)
    return top, shares, below


def part_of(name: str, half: int) -> str:
    """The name of one half's part of a layer."""
    return f"{name}@{half}"


def _split(graph: Graph, top: Sequence[int], shares: Sequence[float]) -> Graph:
    ops: list[Op] = []
    # Which rows or columns of what it reads a part takes, no dim says: shapes stay unknown.
    tensors = [replace(t, shape=()) for t in graph.tensors if t.role == "input"]
    for op, kind, share in zip(graph.ops, top, shares):
        for half, mine in ((0, share), (1, 1.0 - share)):
            cut = _LETTER[kind]
            factors = tuple(
                Factor(f.name, max(1, round(f.size * mine)) if f.name == cut else f.size, samples=f.samples)
                for f in op.rule.factors
            )
            size = {f.name: f.size for f in factors}
            weight, out = (graph.tensor[name] for name in (op.inputs[-1], op.outputs[0]))
            rows = mine if kind == TYPE_I else 1.0
            tensors.append(
                Tensor(
                    part_of(weight.name, half), weight.nbytes * (mine if kind in (TYPE_II, TYPE_III) else 1.0),
                    (size["k"], size["n"]), weight.dtype, "param",
                )
            )  # fmt: skip
            columns = mine if kind == TYPE_III else 1.0
            tensors.append(Tensor(part_of(out.name, half), out.nbytes * rows * columns, (), out.dtype))
            read = [n for name in op.inputs[:-1] for n in _parts(graph, name)]
            inputs = (*read, part_of(weight.name, half))
            operands = (*(op.rule.operands[0],) * len(read), op.rule.operands[-1])
            rule = replace(op.rule, factors=factors, operands=operands)
            kept = (*op.kwargs, ("half", half), ("type", kind), ("share", mine))
            name = part_of(op.name, half)
            ops.append(
                replace(
                    op, name=name, inputs=inputs, outputs=(part_of(out.name, half),), saved=(), rule=rule, kwargs=kept
                )
            )
    ends = tuple(part_of(name, half) for name in graph.outputs for half in (0, 1))
    made = replace(
        graph, ops=tuple(ops), tensors=tuple(tensors), outputs=ends, loss=part_of(graph.loss, 1), runs=(), digest=""
    )
    return replace(made, digest=digest_of(made))


def _parts(graph: Graph, name: str) -> tuple[str, ...]:
    return (name,) if graph.tensor[name].role == "input" else (part_of(name, 0), part_of(name, 1))
