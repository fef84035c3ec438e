"""LSTM and GRU: the batch is free, time and width stay whole."""

from __future__ import annotations

from math import prod

from ..ir import Rule, Slot
from .call import Call, Kind, Saved
from .space import Space


def _layers(call: Call) -> tuple[list[int], list[int], bool]:
    """Operand numbers of the states and of the weights; whether the batch comes first."""
    states = call.args[1]
    first = [a.index for a in (states if isinstance(states, tuple) else (states,)) if isinstance(a, Slot)]
    weights = call.args[2] if isinstance(call.args[2], tuple) else ()
    return first, [a.index for a in weights if isinstance(a, Slot)], bool(call.get(8, "batch_first", False))


def _recurrent(call: Call) -> Rule:
    """input[batch, time, width] (or [time, batch, width]), states[layers, batch, width] and the weights of all layers."""
    space = Space()
    states, _, batch_first = _layers(call)
    shape = call.shape(0)
    at = 0 if batch_first else 1
    batch = space.factor("batch", shape[at])
    time, width = space.fixed("time", shape[1 - at]), space.fixed("width", shape[2])
    sequence = [batch, time] if batch_first else [time, batch]
    operands = [[*sequence, width]]
    for i in range(1, len(call.operands)):
        own = call.shape(i)
        if i in states:
            operands.append([space.fixed(f"layers{i}", own[0]), batch, space.fixed(f"state{i}", own[2])])
        else:
            operands.append(space.dims(own, f"w{i}_", range(len(own))))
    results = [[*sequence, space.fixed("out", call.out[2])]]
    for i, spec in enumerate(call.results[1:]):
        results.append([space.fixed(f"last{i}", spec.shape[0]), batch, space.fixed(f"last_width{i}", spec.shape[2])])
    return space.rule(operands, results)


def _flops(call: Call) -> float:
    """Two products a step and layer, each over a whole weight matrix."""
    _, weights, _ = _layers(call)
    steps = call.shape(0)[0] * call.shape(0)[1]
    return float(steps * sum(2 * prod(call.shape(i)) for i in weights if len(call.shape(i)) == 2))


def _saved(call: Call) -> Saved:
    """What torch's fused cells keep: per step of every layer the gates (four of an LSTM, three of a GRU), and the cell, or
    the candidate's share of the last state; besides the input of every layer and the result.
    """
    states, weights, _ = _layers(call)
    steps = call.shape(0)[0] * call.shape(0)[1]
    matrices = [call.shape(i) for i in weights if len(call.shape(i)) == 2]
    gates = sum(shape[0] for shape in matrices) / 2
    share = 5 / 4 if call.kind == "lstm" else 4 / 3
    between = call.out[2] * (call.shape(states[0])[0] // (call.out[2] // call.shape(states[0])[2]) - 1)
    return Saved(
        operands=(0, *states), results=(0,), extra=float(steps * (gates * share + between) * call.operands[0].item)
    )


KINDS = (
    Kind("lstm", _recurrent, _flops, _saved, light=False),
    Kind("gru", _recurrent, _flops, _saved, light=False),
)
