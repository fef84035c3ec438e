"""What a plan says of Tofu's decision, and back.

    forward ops                     `OpSharding.cuts`
    gradient ops                    `OpSharding.backward`; where it is silent the dual of the op is said
    tensors                         layouts of activations, storage of parameters and, with them, of their gradients
    gradients of activations        `Stage.gradients`; where it is silent they rest as the activations do

Of what is made of parameters alone, a transposed weight, gradients are those of a weight: cut as the op is, resting as it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..errors import Unsupported
from ..graph.expand import GRAD
from ..graph.ir import Graph, Op
from ..lower.apart import alone
from ..plan.lookup import gradient_of, layout_of, sharding_of, storage_of
from ..plan.model import Cut, Layout, OpSharding, Plan, Stage
from ..plan.problem import Problem
from ._tofu_groups import Coarse, Node
from ._tofu_prices import WHOLE, Way
from ._tofu_search import Decision

Cuts = dict[str, tuple[Cut, ...]]


def held(graph: Graph, coarse: Coarse, decision: Decision) -> Decision:
    """Of a decision what a plan holds it to: gradients of weights that ops have made, and of products that compute all of
    their gradients at once, are cut as their op; gradients rest as what is made of weights."""
    weights = made_of_weights(graph)
    at = {name: n for n, node in enumerate(coarse.nodes) if node.forward for name in (node.name, *node.times)}
    ops: dict[int, Way] = {}
    for n, node in enumerate(coarse.nodes):
        own = list(gradients(graph, coarse, node))
        for op, _ in own:
            if set(op.outputs) <= weights or (node_phase(coarse, node) != "backward" and not alone(op)):
                ops[n] = dual(coarse, node, at.get(op.name), decision)
    units: dict[int, Way] = {}
    for u, unit in enumerate(coarse.units):
        own_of = [t for t in map(activation, unit.tensors) if t in weights] if not unit.forward else []
        ways = {decision.units[coarse.unit_of[t]] for t in own_of if t in coarse.unit_of}
        if len(ways) == 1:
            (units[u],) = ways
    return Decision(ops, units)


def made_of_weights(graph: Graph) -> frozenset[str]:
    """Parameters, buffers, and what is made of these and of nothing alone."""
    found = {t.name for t in graph.tensors if t.role in ("param", "buffer")}
    for op in graph.ops:
        if op.phase == "forward" and all(t in found for t in op.inputs):
            found.update(op.outputs)
    return frozenset(found)


def activation(gradient: str) -> str:
    """The tensor that a gradient, or a part of it, is of."""
    return gradient.removeprefix(GRAD).partition("#")[0]


def node_phase(coarse: Coarse, node: Node) -> str:
    return coarse.graph.ops[coarse.graph.position[node.name]].phase


def dual(coarse: Coarse, node: Node, forward: int | None, decision: Decision) -> Way:
    """A gradient op cut as the op that it is of, where that is counted."""
    if forward is None:
        return decision.ops[coarse.nodes.index(node)]
    names = coarse.nodes[forward].names
    cut = ("" if v == WHOLE else names[v] for v in decision.ops[forward])
    return tuple(node.names.index(f) if f in node.names else WHOLE for f in cut)


def gradients(graph: Graph, coarse: Coarse, node: Node) -> Iterator[tuple[Op, tuple[int, ...]]]:
    """(op, operands whose gradients it makes) of an op of the backward and those of other time steps."""
    for name in (node.name, *node.times) if not node.forward else ():
        explicit = coarse.graph.ops[coarse.graph.position[name]]
        if explicit.of not in graph.position:
            continue
        op = graph.ops[graph.position[explicit.of]]
        made = {activation(t) for t in explicit.outputs}
        if explicit.phase in ("input_grad", "weight_grad"):  # of products of two
            yield op, (int(explicit.phase == "weight_grad"),)
        else:
            yield op, tuple(k for k, t in enumerate(op.inputs) if t in made)


def cuts_of(node: Node, way: Way, axes: Sequence[str]) -> Cuts:
    return {
        node.names[v]: tuple(Cut(a) for a, own in zip(axes, way, strict=True) if own == v)
        for v in dict.fromkeys(way)
        if v != WHOLE
    }


def read(problem: Problem, coarse: Coarse, plan: Plan) -> tuple[tuple[int, ...], Decision]:
    """(factors, what it says of each step) of a plan."""
    graph = problem.graph
    if len(plan.stages) != 1 or plan.schedule.micro_batches != 1:
        raise Unsupported("tofu prices plans of one stage and one micro-batch")
    stage = plan.stages[0]
    if stage.recompute or stage.deal:
        raise Unsupported("tofu prices plans without recomputation")
    axes = [(a, n) for a, n in zip(stage.mesh.axes, stage.mesh.shape, strict=True) if n > 1]
    names = [a for a, _ in axes]

    def sequence(cuts: Sequence[tuple[int, tuple[Cut, ...]]], what: str) -> Way:
        found = [WHOLE] * len(names)
        for place, own in cuts:
            order = [names.index(cut.axis) for cut in own if cut.axis in names]
            if any(cut.weights for cut in own) or order != sorted(order):
                raise Unsupported(
                    f'tofu prices equal cuts, nested in the order of the mesh\'s axes: "{what}" has others'
                )
            for i in order:
                found[i] = place
        return tuple(found)

    def said(op: str) -> OpSharding:
        return sharding_of(graph, stage, graph.position[op]) or OpSharding()

    ops: dict[int, Way] = {}
    for n, node in enumerate(coarse.nodes):
        cuts: list[tuple[str, Mapping[str, tuple[Cut, ...]]]] = [
            (name, said(name).cuts) for name in (node.name, *node.times) if node.forward
        ]
        for op, operands in gradients(graph, coarse, node):
            own = said(op.name)
            cuts += [(op.name, own.backward.get(k, own.cuts)) for k in operands]
        ways = {
            sequence([(node.names.index(f), cut) for f, cut in one.items() if f in node.names], name)
            for name, one in cuts
        }
        if len(ways) > 1:
            raise Unsupported(
                f'tofu cuts all time steps alike, and what one op makes of gradients: "{node.name}" is cut in {len(ways)} ways'
            )
        ops.update((n, way) for way in ways)
    units: dict[int, Way] = {}
    for u, unit in enumerate(coarse.units):
        own_of = list(dict.fromkeys(t if unit.forward else activation(t) for t in unit.tensors))
        known = [t for t in own_of if t in graph.tensor]
        splits = {sequence(_at_rest(problem, stage, t, gradient=not unit.forward), t) for t in known}
        if len(splits) > 1:
            what = "tensors" if unit.forward else "gradients"
            raise Unsupported(
                f'tofu splits {what} between element-wise ops alike: those of "{known[0]}" and others are not'
            )
        if splits:
            (units[u],) = splits
    return tuple(n for _, n in axes), Decision(ops, units)


def _at_rest(problem: Problem, stage: Stage, tensor: str, *, gradient: bool) -> list[tuple[int, tuple[Cut, ...]]]:
    """(dim, its cuts) of a tensor at rest, or of its gradient: as its layout says, else as it is made or first read, its
    sums completed."""
    graph = problem.graph
    layout: Layout | None = gradient_of(graph, stage, tensor) if gradient else None
    if graph.tensor[tensor].role == "param":
        kept = storage_of(graph, stage, tensor)
        layout = kept.param if kept is not None else None
        if kept is not None and (kept.grad, kept.state) != (None, None):
            raise Unsupported(f'tofu stores a gradient as its parameter: "{tensor}" has storage of its own for them')
    elif layout is None:
        layout = layout_of(graph, stage, tensor)
    if layout is not None:
        if any(
            cuts and size not in (0, graph.tensor[tensor].shape[d])
            for d, dim in enumerate(layout.dims)
            for size, cuts in dim
        ):
            raise Unsupported(f'tofu splits whole dims: "{tensor}" is split inside one')
        return [(d, tuple(cut for _, cuts in dim for cut in cuts)) for d, dim in enumerate(layout.dims)]
    made = graph.producer.get(tensor)
    if made is not None:
        op, dims = graph.ops[made], graph.ops[made].rule.results[graph.ops[made].outputs.index(tensor)]
    else:
        made, k = graph.consumers[tensor][0]
        op, dims = graph.ops[made], graph.ops[made].rule.operands[k]
    sharding = sharding_of(graph, stage, made)
    cuts = sharding.cuts if sharding is not None else {}
    found = []
    for d, names in enumerate(dims):
        cut = [name for name in names if cuts.get(name)]
        if cut and (len(cut) > 1 or cut[0] != names[0]):
            raise Unsupported(f'tofu splits whole dims: "{tensor}" is made split inside one by "{op.name}"')
        found += [(d, cuts[name]) for name in cut]
    return found
