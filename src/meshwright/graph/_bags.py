"""Bags of equal length as plain look-ups: bags of a list of ids stay whole, the ids of an embedding can be cut."""

from __future__ import annotations

from torch.fx import Node

from ._builder import Builder, Form, reshape_to
from .ir import Slot
from .kinds import Spec

SUM = 0
"""Of the modes of an embedding bag, in torch's enumeration."""


def length_of_bags(node: Node, builder: Builder, form: Form, operands: list[str]) -> int:
    """Ids in every bag, if all have as many, are summed, and nothing but the sums is read; otherwise 0.

    torch writes ids[bags, length] as one list of ids and the offsets arange(0, bags · length, length).
    """
    look = form.look()
    special = (look.get(3, "scale_grad_by_freq"), look.get(5, "sparse"), look.get(7, "include_last_offset"))
    if len(operands) != 3 or look.integer(4, "mode") != SUM or any(special) or look.get(8, "padding_idx") is not None:
        return 0
    if any(user.args[1] != 0 and user.users for user in node.users):
        return 0
    made = next((op for op in reversed(builder.ops) if operands[2] in op.outputs), None)
    if made is None or made.kind != "arange":
        return 0
    numbers = [a for a in made.args if isinstance(a, int)]
    start, end, step = (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    ids = builder.spec(operands[1]).elements
    bags = builder.spec(operands[2]).elements
    return step if (start, end) == (0, ids) and bags * step == ids else 0


def look_up(node: Node, builder: Builder, operands: list[str], length: int) -> list[str]:
    """The sums of rows[bags, length, width] over each bag."""
    table, ids = builder.spec(operands[0]), builder.spec(operands[1])
    rows, width = ids.elements, table.shape[1]
    form = Form("embedding", "aten.embedding.default", (Slot(0), Slot(1)))
    made = builder.emit(node, form, operands[:2], [Spec((rows, width), table.dtype)])
    if length == 1:
        return made
    shape = (rows // length, length, width)
    made = builder.emit(node, reshape_to(shape), made, [Spec(shape, table.dtype)])
    total = Form("sum", "aten.sum.dim_IntList", (Slot(0), (1,)))
    return builder.emit(node, total, made, [Spec((rows // length, width), table.dtype)])
