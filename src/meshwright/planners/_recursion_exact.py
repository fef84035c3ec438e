"""The least volume of all rounds together: every operator's sequences of cuts as options of one cost graph, solved exactly.

A sequence prices its own rounds; a tensor between two operators costs, in each round in which their ends are cut otherwise, 16
times its elements as the reader has them then.
"""

from __future__ import annotations

import numpy as np

from ..errors import Unsupported
from ..graph.ir import Floats, Ints
from ..solvers.cost_graph import CostGraph, Found
from ..solvers.elimination import eliminate
from ._recursion import MOVED, NOTHING, Operators, State

MOST = 1100
"""Sequences of one operator: 4 cuts in each of 5 rounds are 1,024."""


def least(ops: Operators, rounds: int) -> tuple[list[Ints], Found]:
    """(slot of each operator in each round, value).

    Raises:
        Unsupported: more than `MOST` sequences of cuts of one operator.
    """
    options = [_sequences(ops, v, rounds) for v in range(len(ops))]
    tables: list[Floats] = []
    for u, v in ops.edges:
        made, read, elements = options[u].makes, options[v].reads, options[v].read
        table = np.zeros((len(made), len(read)))
        for r in range(rounds):
            table += np.where(made[:, None, r] != read[None, :, r], MOVED * elements[None, :, r], 0.0)
        tables.append(table)
    found = eliminate(CostGraph(tuple(o.price for o in options), ops.edges, tuple(tables)))
    slots = [np.array([options[v].slots[c, r] for v, c in enumerate(found.choice)]) for r in range(rounds)]
    return slots, found


class _Options:
    """Of one operator: int64[sequences, rounds] slots and what they cut; elements read in each round; volumes."""

    def __init__(self, slots: Ints, makes: Ints, reads: Ints, read: Floats, price: Floats) -> None:
        self.slots, self.makes, self.reads, self.read, self.price = slots, makes, reads, read, price


def _sequences(ops: Operators, v: int, rounds: int) -> _Options:
    one = _alone(ops, v)
    states: list[tuple[State, list[int], float, list[float]]] = [(State.first(one), [], 0.0, [])]
    for _ in range(rounds):
        longer = []
        for state, slots, price, read in states:
            volumes = state.volumes()[0]
            for s in range(NOTHING + 1):
                if np.isfinite(volumes[s]):
                    chosen = np.array([s])
                    longer.append(
                        (state.halved(chosen), [*slots, s], price + state.price(chosen), [*read, float(state.read[0])])
                    )
        states = longer
        if len(states) > MOST:
            raise Unsupported(
                f"the exact optimum of {rounds} rounds has over {MOST:,} sequences of cuts for one operator: ask for it on at "
                "most 32 devices"
            )
    taken = np.array([s for _, s, _, _ in states], np.int64).reshape(len(states), rounds)
    return _Options(
        taken,
        one.makes[0][taken],
        one.reads[0][taken],
        np.array([r for *_, r in states]).reshape(len(states), rounds),
        np.array([p for _, _, p, _ in states]),
    )


def _alone(ops: Operators, v: int) -> Operators:
    at = slice(v, v + 1)
    return Operators(
        ops.kind[at], ops.size[at], ops.read_rest[at], ops.made_rest[at], ops.kernel[at], (), ops.fed[at],
        ops.coefficient, ops.no_cut, ops.exclusive, ops.enabled, ops.known,
    )  # fmt: skip
