"""Dispatch of tokens to experts and back: groups of tokens can be cut, and the width; experts and rows of a group are whole.

Experts are cut between the two: from groups to experts is an all-to-all, as from experts back to groups.
"""

from __future__ import annotations

from ..ir import Rule
from .call import Call, Kind, Saved, no_flops
from .space import Space


def _dispatch(call: Call) -> Rule:
    """hidden[groups · tokens, width], index and weights[groups · tokens, chosen] -> x[experts, groups · rows, width], weight."""
    count, width = call.shape(0)
    experts, tokens, rows = (call.integer(3 + i, name) for i, name in enumerate(("experts", "tokens", "rows")))
    space = Space()
    group, token = space.factor("groups", count // tokens), space.fixed("tokens", tokens)
    features, chosen = space.factor("width", width), space.fixed("chosen", call.shape(1)[1])
    many, row = space.fixed("experts", experts), space.fixed("rows", rows)
    choice = [(*group, *token), chosen]
    room = [many, (*group, *row)]
    return space.rule([[(*group, *token), features], choice, choice], [[*room, features], room])


def _combine(call: Call) -> Rule:
    """y[experts, groups · rows, width] and index[groups · tokens, chosen] -> [groups · tokens, width]."""
    experts, _, width = call.shape(0)
    tokens, rows = call.integer(2, "tokens"), call.integer(3, "rows")
    count, chosen = call.shape(1)
    space = Space()
    group, token = space.factor("groups", count // tokens), space.fixed("tokens", tokens)
    features = space.factor("width", width)
    many, row = space.fixed("experts", experts), space.fixed("rows", rows)
    operands = [[many, (*group, *row), features], [(*group, *token), space.fixed("chosen", chosen)]]
    return space.rule(operands, [[(*group, *token), features]])


def _index(call: Call) -> Saved:
    """Where each token went is found again from the choices."""
    return Saved(operands=(1,))


KINDS = (
    Kind("moe_dispatch", _dispatch, no_flops, _index, light=False),
    Kind("moe_combine", _combine, no_flops, _index, light=False),
)
