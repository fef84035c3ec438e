"""One level as the original AccPar program decides it (linghaosong/AccPar, MIT): a chain, with shortcuts by tracing back.

At a layer with a shortcut the price of each candidate for the layer before grows by the shortcut's: between the type to which
that candidate's own best predecessors lead back and the layer's type, with the roles of the two exchanged. The first candidate,
type I, enters the comparison without it as well, and wins ties.
"""

from __future__ import annotations

from ..cost.accpar_elements import TYPE_I, TYPE_II, TYPE_III
from ..errors import Unsupported
from ._accpar_levels import Elements
from ._accpar_net import Net

_TYPES = (TYPE_I, TYPE_II, TYPE_III)


def code_level(net: Net) -> tuple[tuple[int, ...], float]:
    """(types, the value that the program prints for them).

    Raises:
        Unsupported: neither a chain nor one with shortcuts that join it.
    """
    price = Elements(net.sizes)
    reads = net.reads
    value = [[float(price.alone(0)[t]) for t in _TYPES]]
    trace = [[*_TYPES]]
    for layer in range(1, len(net)):
        before = reads[layer]
        if not before or before[0] != layer - 1 or len(before) > 2:
            raise Unsupported(
                f"layer {net.names[layer]} does not read the one before it, perhaps with one shortcut: the original program "
                "knows no other networks, method=accpar does"
            )
        alone, passed = price.alone(layer), price.also(layer)
        value.append([])
        trace.append([])
        for own in _TYPES:
            least, least_before = value[layer - 1][TYPE_I] + float(passed[TYPE_I, own]), TYPE_I
            for candidate in _TYPES:
                found = value[layer - 1][candidate] + float(passed[candidate, own])
                if len(before) == 2:
                    far = candidate
                    for k in range(layer - 1, before[1], -1):
                        far = trace[k][far]
                    found += float(passed[own, far])
                if found < least:
                    least, least_before = found, candidate
            value[layer].append(float(alone[own]) + least)
            trace[layer].append(least_before)
    last = min(_TYPES, key=lambda t: value[-1][t])
    types = [last]
    for layer in range(len(net) - 1, 0, -1):
        types.append(trace[layer][types[-1]])
    return tuple(reversed(types)), value[-1][last]
