"""Graphs as propagation sees them.

by_dims     a tensor program with rules of its own: dims as they are, so that results equal those of Shardy
by_atoms    a captured model: every dim is split at the borders of all reshapes and splits that read it (`lower.atoms`), so
            that a fused QKV weight [3 · heads · width] is cut on its heads, and a reshape never loses an axis

Small operands of element-wise ops are broadcast first, as tensor programs do it, so that a bias does not decide the layout
of an activation; constants are made wherever they are read, so they decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ..graph.ir import Graph, Op
from ..graph.kinds import KINDS, kind_of
from ..lower.atoms import FIXED, Atoms
from ..lower.atoms import Node as AtomNode
from ._propagate import Dims, Factors, Node, OpRole, Values, role_of

SPMD = "spmd."
"""In front of the kinds of a tensor program's ops."""
RETURN = "return"
"""Kind of the ops that name what a program returns: one value under two names."""
_REGROUP = frozenset(
    {
        "view", "reshape", "flatten", "unflatten", "_unsafe_view", "squeeze", "unsqueeze", "transpose", "permute", "t", "mT",
        "numpy_T", "adjoint", "movedim", "moveaxis", "swapaxes", "swapdims",
    }
)  # fmt: skip
_BROADCAST = frozenset({"expand", "expand_as", "broadcast_to", "broadcast_in_dim", "broadcast"})
_SLICE = frozenset({"dynamic_slice", "dynamic_update_slice", "select", "slice_scatter", "select_scatter"})
_NEVER = frozenset(
    {"reduce", "gather", "scatter", "concatenate", "convolution", "sort", "reduce_window", "pad", "slice", "iota"}
)
"""Ops of tensor programs that are not element-wise, whatever their rules look like."""


@dataclass(frozen=True, slots=True)
class Program:
    """A graph's values, and per op how it is partitioned."""

    values: Values
    number: dict[str, int]
    """Tensor -> its value."""
    ops: tuple[Node | None, ...]
    """In the order of the graph (of the folded graph by atoms), with all of their operands; None: not sharded."""


def by_dims(graph: Graph) -> Program:
    """Of a tensor program."""
    number = {t.name: k for k, t in enumerate(graph.tensors)}
    shapes = tuple(t.shape for t in graph.tensors)
    ops: list[Node | None] = []
    for op in graph.ops:
        if not op.rule.factors and op.kind != RETURN:
            ops.append(None)
            continue
        operands, results = (tuple(number[t] for t in ts) for ts in (op.inputs, op.outputs))
        ops.append(Node(op.name, operands, results, Factors.of(op.rule), _role_of_program(op)))
    return Program(Values(tuple(number), shapes, tuple(n for n in ops if n is not None)), number, tuple(ops))


def _role_of_program(op: Op) -> OpRole:
    name = op.kind.removeprefix(SPMD)
    if op.kind == RETURN or name in ("optimization_barrier", "while", "case"):
        return "edge"
    if name in ("reshape", "transpose"):
        return "regroup"
    if name in _BROADCAST:
        return "broadcast"
    if name in _SLICE - {"select"}:
        return "slice"
    rule = op.rule
    same = all(dims == rule.results[0] for dims in (*rule.operands, *rule.results) if dims)
    plain = all(len(dim) == 1 for dim in rule.results[0]) and all(f.kind == "free" for f in rule.factors)
    return "elementwise" if same and plain and name not in _NEVER and not name.startswith("dot") else "other"


def by_atoms(atoms: Atoms, scale: float = 1.0) -> Program:
    """Of a captured model, folded.

    Args:
        scale: samples of a micro-batch over those of the graph.
    """
    graph, folded = atoms.folded.graph, atoms.folded
    number: dict[str, int] = {}
    shapes: list[tuple[int, ...]] = []
    nodes: list[Node] = []

    def value(name: str, shape: tuple[int, ...]) -> int:
        if name not in number:
            number[name] = len(shapes)
            shapes.append(shape)
        return number[name]

    def of(t: str) -> int:
        grow = [scale if s else 1.0 for s in atoms.samples[t]]
        return value(t, tuple(round(n * g) for n, g in zip(atoms.size[t], grow)))

    ops: list[Node | None] = []
    for atom_node in atoms.nodes:
        op = graph.ops[atom_node.index]
        if all(t in atoms.const for t in atom_node.outputs):
            ops.append(None)
            continue
        kept = [k for k, t in enumerate(atom_node.inputs) if t not in atoms.const]
        rule = _rule_of_atoms(op, atom_node, kept, scale)
        operands = tuple(of(atom_node.inputs[k]) for k in kept)
        results = tuple(of(t) for t in atom_node.outputs)
        role = _role_of_kind(op)
        whole = Node(op.name, operands, results, rule, role)
        ops.append(whole)
        if role == "elementwise":
            whole = _broadcast_first(whole, nodes, value)
        nodes.append(whole)
    for read, made in folded.carries:
        entry = folded.name(read)
        if entry in number and made in number and entry != made:
            edge = Factors.identity(shapes[number[made]])
            nodes.append(Node(f"{entry} = {made}", (number[entry],), (number[made],), edge, "edge"))
    return Program(Values(tuple(number), tuple(shapes), tuple(nodes)), number, tuple(ops))


def _rule_of_atoms(op: Op, node: AtomNode, kept: Sequence[int], scale: float) -> Factors:
    roles = tuple(role_of(kind, a in node.summed) for a, kind in enumerate(node.kind))
    sizes = tuple(round(n * scale) if s else n for n, s in zip(node.size, node.samples))

    def dims(mapping: tuple[int, ...]) -> Dims:
        return tuple(() if a == FIXED else (a,) for a in mapping)

    return Factors(sizes, roles, tuple(dims(node.operands[k]) for k in kept), tuple(map(dims, node.results)))


def _role_of_kind(op: Op) -> OpRole:
    kind = kind_of(op.kind)
    if op.kind in _REGROUP:
        return "regroup"
    if op.kind in _BROADCAST:
        return "broadcast"
    if op.kind in _SLICE:
        return "slice"
    return "elementwise" if kind is not None and kind.rule is KINDS["add"].rule else "other"


def _broadcast_first(node: Node, nodes: list[Node], value: Callable[[str, tuple[int, ...]], int]) -> Node:
    """The op with each operand that lacks dims of the result broadcast by a node of its own."""
    rule = node.rule
    out = rule.results[0]
    every = {f for dim in out for f in dim}
    operands, dims = list(node.operands), list(rule.operands)
    for k, own in enumerate(rule.operands):
        have = {f for dim in own for f in dim}
        if not have or have == every:
            continue
        shape = tuple(prod(rule.sizes[f] for f in dim) for dim in out)
        wide = value(f"{node.name} operand {k}", shape)
        spread = Factors(rule.sizes, rule.roles, (own,), (out,))
        nodes.append(Node(f"{node.name} operand {k}", (operands[k],), (wide,), spread, "broadcast"))
        operands[k], dims[k] = wide, out
    changed = Factors(rule.sizes, rule.roles, tuple(dims), rule.results)
    return Node(node.name, tuple(operands), node.results, changed, node.role)
