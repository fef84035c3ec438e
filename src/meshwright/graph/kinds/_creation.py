"""Kinds that make tensors from nothing: every factor is free, no gradient flows."""

from __future__ import annotations

from ..ir import Rule
from .call import Call, Kind, keeps_nothing, no_flops
from .space import Space


def _create(call: Call) -> Rule:
    """zeros, full, arange, rand, …"""
    space = Space()
    out = space.dims(call.out)
    return space.rule([[] for _ in call.operands], [out for _ in call.results])


def _like(call: Call) -> Rule:
    """zeros_like, rand_like, …: only the shape of the operand is read."""
    space = Space()
    out = space.dims(call.out)
    return space.rule([out, *([] for _ in call.operands[1:])], [out])


KINDS = tuple(
    Kind(name, rule, no_flops, keeps_nothing, differentiable=False)
    for names, rule in (
        (
            "arange zeros ones full empty rand randn randint scalar_tensor linspace eye tril_indices triu_indices",
            _create,
        ),
        ("zeros_like ones_like full_like empty_like", _like),
    )
    for name in names.split()
)
