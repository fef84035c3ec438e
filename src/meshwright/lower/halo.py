"""Cut windows: rows of its neighbours that a part of a convolution or pool reads besides its own, exchanged explicitly.

    own rows      |......|......|......|        a dim of 18 over 3 members
    reads      00|......:..                     lower = 2, upper = 2: each member gets the last 2 rows of the one below
              ..:......|..                      and the first 2 of the one above; at both ends it pads, as the op itself
             ..:......|00                       would have done

The exchange is one instruction of kind "halo" per cut window dim, behind all other conversions of the operand; its dual
sends the gradients of what was received back, where they are added. A roll along a cut dim is such a window, too: it reads
rows of one neighbour, the first part those of the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from ..errors import Unsupported
from ..graph.ir import Op
from ..plan.layout import part
from .atoms import Node
from .convert import Axes, local_size
from .program import GRAD, Instr

if TYPE_CHECKING:
    from .emit import Emitter, Written

DATA = 0
"""The operand that windows slide over."""
WRAP = "wrap"
"""Each end is the neighbour of the other: a shift, which reads rows of one neighbour alone."""


@dataclass(frozen=True, slots=True)
class Window:
    """One cut window dim of one op."""

    dim: int
    """Of the data."""
    axes: tuple[str, ...]
    """Major first: neighbours are neighbours in the order of parts."""
    lower: int
    upper: int
    """Rows of the neighbour below, above."""


def windows(op: Op, node: Node, cuts: Axes) -> list[Window]:
    """What `op` reads of its neighbours under `cuts`."""
    found = []
    for d, names in enumerate(op.rule.operands[DATA]):
        for a, f in enumerate(node.factor):
            factor = op.rule.factors[f]
            if factor.kind == "halo" and factor.name in names and cuts[a]:
                found.append(Window(d, cuts[a], *factor.halo))
    return found


def major(node: Node, factor: int) -> int | None:
    """The only atom of a window that may be cut: its parts are rows in a row; None if the op sees the dim whole."""
    first = node.factor.index(factor)
    return first if node.kind[first] == "halo" else None


def why_whole(op: Op, node: Node, atom: int, axes: tuple[str, ...], mesh: Mapping[str, int]) -> str:
    """Why a window cannot be cut over `axes`, as the end of a sentence; "" if it can.

    Only direct neighbours exchange rows, so every part must have as many as its neighbours read.
    """
    factor = op.rule.factors[node.factor[atom]]
    rows = next(s for s, names in _dims(op) if factor.name in names) // node.size[atom]
    parts = [node.size[atom]]
    for axis in axes:
        parts = [part(n, i, mesh[axis])[1] for n in parts for i in range(mesh[axis])]
    least = min(parts) * rows
    if least < max(*factor.halo, 1):
        return f"in {len(parts)} parts, of which the least has {least} rows: it needs {max(factor.halo)} of a neighbour"
    return ""


def _dims(op: Op) -> list[tuple[int, tuple[str, ...]]]:
    """(size, factors) of the dims of the data."""
    size = {f.name: f.size for f in op.rule.factors}
    return [(prod(size[name] for name in names), names) for names in op.rule.operands[DATA]]


def check(op: Op, node: Node, cuts: Axes, mesh: Mapping[str, int]) -> None:
    """Raises Unsupported for a cut of a window that no exchange with both neighbours serves."""
    for a, axes in enumerate(cuts):
        if axes and node.kind[a] == "halo" and (why := why_whole(op, node, a, axes, mesh)):
            name = op.rule.factors[node.factor[a]].name
            raise Unsupported(f'window "{name}" of "{op.name}" cannot be cut {why}', reason="halo")


def widened(emit: Emitter, w: Written, cache: dict[object, str], n: int, value: str) -> str:
    """The data of node n with the rows of its neighbours."""
    node = emit.atoms.nodes[n]
    op, t = emit.graph.ops[node.index], node.inputs[DATA]
    need = emit.done.need[n][DATA]
    grad = t in emit.atoms.grad and (n, DATA) not in emit.done.apart
    more = [0] * len(emit.graph.tensor[t].shape)
    for x in windows(op, node, emit.done.cuts[n]):
        key = ("halo", value, x.dim, x.axes, x.lower, x.upper, _fill(op), grad)
        if key not in cache:
            rows = _exchange(emit, w, node, need, x, value, more)
            cache[key] = name = rows.outputs[0]
            w.maker[name] = len(w.forward)
            w.level[name] = w.level.get(value, 0) + 1
            w.forward.append(rows)
            if grad:
                w.backward.append(returned(rows))
        value = cache[key]
        more[x.dim] = x.lower + x.upper
    return value


def exchanges(emit: Emitter, w: Written, node: Node, need: Axes, cuts: Axes, value: str) -> list[Instr]:
    """What brings the rows of its neighbours to `value`, the data of a node as `need` says, under `cuts`."""
    found: list[Instr] = []
    more = [0] * len(emit.graph.tensor[node.inputs[DATA]].shape)
    for x in windows(emit.graph.ops[node.index], node, cuts):
        found.append(_exchange(emit, w, node, need, x, value, more))
        value = found[-1].outputs[0]
        more[x.dim] = x.lower + x.upper
    return found


def returned(instr: Instr) -> Instr:
    """The dual of an exchange."""
    (source,), (target,) = instr.inputs, instr.outputs
    return replace(instr, phase="backward", inputs=(GRAD + target,), outputs=(GRAD + source,))


def _exchange(emit: Emitter, w: Written, node: Node, need: Axes, x: Window, value: str, more: Sequence[int]) -> Instr:
    """Of one window. `more`: rows that each dim has got already."""
    t = node.inputs[DATA]
    layout, rows, name = emit.layout(t, need), _local(emit, t, need, x.dim), emit.fresh(t)
    total, over = emit.amount(t, need)
    sent = x.lower + x.upper if prod(emit.mesh[a] for a in x.axes) > 2 else max(x.lower, x.upper)
    w.base[name] = (t, need)
    w.wider[name] = w.wider.get(value, 1.0) * (rows + x.lower + x.upper) / rows
    return Instr(
        "halo", t, "forward", (value,), (name,), "permute", x.axes, x.dim, before=layout, after=layout,
        sizes=(x.lower, x.upper, *more), nbytes=total * w.wider.get(value, 1.0) * sent / rows, samples=over,
        op=_fill(emit.graph.ops[node.index]),
    )  # fmt: skip


def _fill(op: Op) -> str:
    """What both ends read beyond the dim."""
    if op.kind == "roll":
        return WRAP
    return "lowest" if op.kind.startswith("max_pool") else "zero"


def _local(emit: Emitter, t: str, need: Axes, dim: int) -> int:
    """Largest local size of one dim."""
    first = sum(emit.atoms.dims[t][:dim])
    n = 1
    for k in range(first, first + emit.atoms.dims[t][dim]):
        n *= local_size(emit.atoms.size[t][k], need[k], emit.mesh)
    return n
