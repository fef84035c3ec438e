"""What a plan says of Tofu's decision, and back.

    forward ops         `OpSharding.cuts`
    gradients           `OpSharding.backward`, of products of whole dims; where it is silent the dual of the op is said
    tensors             layouts of activations, storage of parameters and, with them, of their gradients

Nothing is said of the gradients of other ops. Gradients of activations rest as the activations do. Where they do, and a
gradient has as many bytes as what it is of, the dual of a product of two tensors moves no more than another cut: the op and
both its gradients read and make the same three tensors, and to gather one costs as much as to sum and scatter it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..errors import Unsupported
from ..graph.expand import GRAD
from ..graph.ir import Graph
from ..lower.apart import why_not
from ..plan.lookup import layout_of, sharding_of, storage_of
from ..plan.model import Cut, OpSharding, Plan, Stage
from ..plan.problem import Problem
from ._tofu_groups import Coarse, Node
from ._tofu_prices import WHOLE, Way
from ._tofu_search import Decision, Space

Cuts = dict[str, tuple[Cut, ...]]


def forward_of(coarse: Coarse, decision: Decision) -> Decision:
    """Forward ops, and the tensors that are no gradients of activations."""
    return Decision(
        {n: way for n, way in decision.ops.items() if coarse.nodes[n].forward},
        {u: way for u, way in decision.units.items() if coarse.units[u].forward},
    )


def said_of(graph: Graph, space: Space, decision: Decision, factors: Sequence[int]) -> Decision:
    """All that a plan says; of the gradients of products only those that move less than the dual of their op."""
    coarse, own = space.coarse, forward_of(space.coarse, decision)
    ops = dict(own.ops)
    of = {
        coarse.nodes[n].name: [coarse.nodes[n].names[v] if v != WHOLE else "" for v in way]
        for n, way in own.ops.items()
    }
    for n, node in enumerate(coarse.nodes):
        name = next((name for name, _ in gradients(graph, coarse, node)), None)
        if name is None:
            continue
        kinds = {f.name: f.kind for f in graph.ops[graph.position[name]].rule.factors}
        forward = of.get(name, [""] * len(decision.ops[n]))
        dual = tuple(node.names.index(f) if f in node.names else WHOLE for f in forward)
        mine = [node.names[v] for v in decision.ops[n] if v != WHOLE]
        possible = all(kinds[f] == "free" for f in mine) and not any(f and kinds[f] == "halo" for f in forward)
        costs = [space.moved(n, way, decision.units, factors) for way in (decision.ops[n], dual)]
        ops[n] = decision.ops[n] if possible and costs[0] < costs[1] else dual
    return Decision(ops, own.units)


def gradients(graph: Graph, coarse: Coarse, node: Node) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(op, operands whose gradients it makes) of an op of the backward and those of other time steps, if a plan can say how
    it is cut."""
    for name in (node.name, *node.times) if not node.forward else ():
        explicit = coarse.graph.ops[coarse.graph.position[name]]
        if explicit.of not in graph.position:
            continue
        op = graph.ops[graph.position[explicit.of]]
        made = {t.removeprefix(GRAD).partition("#")[0] for t in explicit.outputs}
        if explicit.phase in ("input_grad", "weight_grad"):  # of products of two
            operands: tuple[int, ...] = (int(explicit.phase == "weight_grad"),)
        else:
            operands = tuple(k for k, t in enumerate(op.inputs) if t in made)
        if not why_not(op):
            yield op.name, operands


def cuts_of(node: Node, way: Way, axes: Sequence[str]) -> Cuts:
    return {
        node.names[v]: tuple(Cut(a) for a, own in zip(axes, way, strict=True) if own == v)
        for v in dict.fromkeys(way)
        if v != WHOLE
    }


def resting(coarse: Coarse, units: Mapping[int, Way]) -> dict[int, Way]:
    """Gradients of activations, split as the activations are."""
    found: dict[int, Way] = {}
    for u, unit in enumerate(coarse.units):
        if unit.forward:
            continue
        of = {coarse.unit_of.get(t.removeprefix(GRAD).partition("#")[0], -1) for t in unit.tensors}
        ways = {units[v] for v in of if v in units and coarse.units[v].shape == unit.shape}
        if len(ways) == 1:
            (found[u],) = ways
    return found


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
        for name, operands in gradients(graph, coarse, node):
            own = said(name)
            cuts += [(name, own.backward.get(k, own.cuts)) for k in operands]
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
        held = [t for t in unit.tensors if t in graph.tensor]
        if held:
            splits = {sequence(_at_rest(problem, stage, t), t) for t in held}
            if len(splits) > 1:
                raise Unsupported(f'tofu splits tensors between element-wise ops alike: "{held[0]}" and others are not')
            (units[u],) = splits
    return tuple(n for _, n in axes), Decision(ops, units)


def _at_rest(problem: Problem, stage: Stage, tensor: str) -> list[tuple[int, tuple[Cut, ...]]]:
    """(dim, its cuts) of a tensor at rest: as its layout says, else as it is made or first read, its sums completed."""
    graph = problem.graph
    if graph.tensor[tensor].role == "param":
        kept = storage_of(graph, stage, tensor)
        layout = kept.param if kept is not None else None
        if kept is not None and (kept.grad, kept.state) != (None, None):
            raise Unsupported(f'tofu stores a gradient as its parameter: "{tensor}" has storage of its own for them')
    else:
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
