"""Tokens to the rows of their experts and back, as two operators of torch, so that a graph says a dispatch as one op each.

Tokens stand in groups of `tokens` in a row; in each, every expert has `rows` rows, filled in order of arrival. A token that
finds no row goes to a row that nobody reads. Groups know nothing of each other, so samples, and parts of a sequence, can
be cut (the local groups of Lepikhin et al., arXiv 2006.16668, §2.2).

    hidden[groups · tokens, width]   ─ moe_dispatch ─▶   x[experts, groups · rows, width], weight[experts, groups · rows]
    y[experts, groups · rows, width] ─ moe_combine  ─▶   [groups · tokens, width], the sum over a token's experts
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor, library
from torch.nn import functional


def sizes_of(factor: float, chosen: int, experts: int, positions: int) -> tuple[int, int]:
    """(tokens, rows) of a group: room for `factor` times the even share, in the shortest groups that have it exactly and
    fill a sequence of `positions`; else a sequence is a group, with its room rounded up."""
    tokens = experts // gcd(experts, chosen)
    rows = factor * tokens * chosen / experts
    if positions % tokens or rows != int(rows):
        tokens = positions
        rows = factor * tokens * chosen / experts
    return tokens, max(1, -int(-rows // 1))


def _slots(index: Tensor, experts: int, tokens: int, rows: int) -> Tensor:
    """[groups · tokens, chosen]: row of the flat buffer [experts · groups · rows] of every choice; its end = no room."""
    count, chosen = index.shape
    groups = count // tokens
    expert = index.reshape(groups, tokens * chosen)
    one = functional.one_hot(expert, experts)
    place = ((torch.cumsum(one, 1) - 1) * one).sum(2)
    group = torch.arange(groups, device=index.device).unsqueeze(1)
    slot = torch.where(place < rows, (expert * groups + group) * rows + place, experts * groups * rows)
    return slot.reshape(count, chosen)


def _filled(values: Tensor, slot: Tensor, total: int) -> Tensor:
    """[total, …]: values[k] in row slot[k], zeros where none is."""
    buffer = values.new_zeros((total + 1, *values.shape[1:]))
    return buffer.index_copy(0, slot.reshape(-1), values)[:total]


def _read(buffer: Tensor, slot: Tensor) -> Tensor:
    """[*slot.shape, …]: rows of a buffer, zeros for slots behind its end."""
    padded = torch.cat([buffer, buffer.new_zeros((1, *buffer.shape[1:]))])
    return padded[slot]


@library.custom_op("meshwright::moe_dispatch", mutates_args=())
def moe_dispatch(
    hidden: Tensor, index: Tensor, weights: Tensor, experts: int, tokens: int, rows: int
) -> tuple[Tensor, Tensor]:
    """hidden[tokens, width]; index and weights[tokens, chosen] -> rows of the experts, and the weight of each row."""
    count, chosen = index.shape
    width, room = hidden.shape[1], count // tokens * rows
    slot = _slots(index, experts, tokens, rows)
    copies = hidden.unsqueeze(1).expand(count, chosen, width).reshape(count * chosen, width)
    x = _filled(copies, slot, experts * room).view(experts, room, width)
    return x, _filled(weights.reshape(-1), slot, experts * room).view(experts, room)


@moe_dispatch.register_fake
def _(hidden: Tensor, index: Tensor, weights: Tensor, experts: int, tokens: int, rows: int) -> tuple[Tensor, Tensor]:
    room = index.shape[0] // tokens * rows
    return hidden.new_empty((experts, room, hidden.shape[1])), weights.new_empty((experts, room))


@library.custom_op("meshwright::moe_combine", mutates_args=())
def moe_combine(y: Tensor, index: Tensor, tokens: int, rows: int) -> Tensor:
    """y[experts, rows of all groups, width] -> [tokens, width]: the sum of the rows of a token."""
    experts, room, width = y.shape
    return _read(y.reshape(experts * room, width), _slots(index, experts, tokens, rows)).sum(1)


@moe_combine.register_fake
def _(y: Tensor, index: Tensor, tokens: int, rows: int) -> Tensor:
    return y.new_empty((index.shape[0], y.shape[2]))


def _keep_dispatch(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, index, _, experts, tokens, rows = inputs
    ctx.save_for_backward(index)
    ctx.sizes = experts, tokens, rows


def _dispatch_backward(ctx: Any, of_x: Tensor, of_weight: Tensor) -> tuple[Tensor | None, ...]:
    (index,) = ctx.saved_tensors
    _, tokens, rows = ctx.sizes
    slot = _slots(index, *ctx.sizes)
    return moe_combine(of_x, index, tokens, rows), None, _read(of_weight.reshape(-1), slot), None, None, None


def _keep_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, index, tokens, rows = inputs
    ctx.save_for_backward(index)
    ctx.sizes = y.shape[0], tokens, rows


def _combine_backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor | None, ...]:
    (index,) = ctx.saved_tensors
    no_weights = of_sum.new_zeros(index.shape)
    return moe_dispatch(of_sum, index, no_weights, *ctx.sizes)[0], None, None, None


moe_dispatch.register_autograd(_dispatch_backward, setup_context=_keep_dispatch)
moe_combine.register_autograd(_combine_backward, setup_context=_keep_combine)
