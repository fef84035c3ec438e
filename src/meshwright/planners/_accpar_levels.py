"""AccPar's decision at one level of the array: a type for each layer, and how much of it each half does.

Equal halves (`Elements`): the elements that they exchange are least.
Unequal halves (`Seconds`): each layer is divided so that both take equally long, and the sum of these times is least. A half with
the share a computes a · FLOPs / c and receives what its sums and the conversion of F and E make of a (`between`), at b bytes/s:

    a · N / c₁ + w · (S + 2a(1 − a)X + (1 − a)M) / b₁  =  (1 − a) · N / c₂ + w · (S + 2a(1 − a)X + a M) / b₂

which is linear if b₁ = b₂ and quadratic otherwise. Without a root between 0 and 1 one half is given nothing of the layer, and
`clipped` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..cost.accpar_elements import COPIES, CROSSED, MISSING, TYPES, between, inside
from ..graph.ir import Floats
from ..solvers.cost_graph import CostGraph, Found
from ..solvers.elimination import eliminate
from ._accpar_net import Net, Sizes


class Price(Protocol):
    """What one level costs, over all TYPES."""

    def alone(self, layer: int) -> Floats:
        """float64[TYPES] of a layer that no other precedes."""

    def after(self, layer: int) -> Floats:
        """float64[TYPES, TYPES] of a layer with the tensors between it and the one right before, [before, layer]."""

    def also(self, layer: int) -> Floats:
        """float64[TYPES, TYPES] of the tensors of one more edge to a layer."""


@dataclass(frozen=True)
class Elements:
    """Equal halves: exchanged elements."""

    sizes: Sizes

    def alone(self, layer: int) -> Floats:
        s = self.sizes
        return inside(s.weights[layer], s.inputs[layer], s.outputs[layer])

    def after(self, layer: int) -> Floats:
        return self.alone(layer)[None, :] + self.also(layer)

    def also(self, layer: int) -> Floats:
        return between(float(self.sizes.inputs[layer]))


@dataclass(frozen=True)
class Seconds:
    """Two halves of their own speed, (FLOP/s, bytes/s) each; the shares are chosen, or one is given for all layers."""

    sizes: Sizes
    first: tuple[float, float]
    second: tuple[float, float]
    element_bytes: float
    share: float | None = None

    def alone(self, layer: int) -> Floats:
        found: Floats = self.times(layer, self.shares(layer, 0.0), 0.0)[0]
        return found

    def after(self, layer: int) -> Floats:
        return self.times(layer, self.shares(layer))

    def also(self, layer: int) -> Floats:
        return self.passing(layer, self.by_speed)

    @property
    def by_speed(self) -> float:
        """The share that balances compute alone."""
        return self.share if self.share is not None else self.first[0] / (self.first[0] + self.second[0])

    def times(self, layer: int, share: Floats | float, converted: float = 1.0) -> Floats:
        """[before, layer]: of the slower half, given the first one's share; `converted` 0: nothing precedes the layer."""
        flops, sums = self._work(layer)
        F = converted * self.sizes.inputs[layer]
        own = np.asarray(share, np.float64)
        both = []
        for a, (speed, wire) in ((own, self.first), (1.0 - own, self.second)):
            passed = F * (CROSSED * a * (1.0 - a) + MISSING * (1.0 - a))
            # Of a copy each half does all.
            part = np.where(np.arange(TYPES) == COPIES, 1.0, a)
            both.append(part * flops / speed + self.element_bytes * (sums[None, :] + passed) / wire)
        return np.asarray(np.maximum(*both))

    def passing(self, layer: int, share: float) -> Floats:
        """[before, layer]: seconds of the conversion of F and E alone."""
        F = float(self.sizes.inputs[layer])
        mine, theirs = between(F, share) / self.first[1], between(F, 1.0 - share) / self.second[1]
        return np.asarray(self.element_bytes * np.maximum(mine, theirs))

    def shares(self, layer: int, converted: float = 1.0) -> Floats:
        """[before, layer]: the first half's share of the layer that makes both equally slow."""
        if self.share is not None:
            return np.full((TYPES, TYPES), self.share)
        return self.balance(layer, converted)[0]

    def balance(self, layer: int, converted: float = 1.0) -> tuple[Floats, NDArray[np.bool_]]:
        """([before, layer] the share, whether it had to be clipped)."""
        flops, sums = self._work(layer)
        if flops == 0.0:  # a join: it is divided as the layers around it would be
            return np.full((TYPES, TYPES), self.by_speed), np.zeros((TYPES, TYPES), bool)
        (c1, b1), (c2, b2) = self.first, self.second
        w = self.element_bytes
        F = w * converted * self.sizes.inputs[layer]
        crossed, missing = F * CROSSED, F * MISSING
        kept = w * np.broadcast_to(sums[None, :], (TYPES, TYPES))
        # seconds of the first half less those of the second, as square · a² + line · a + rest
        square = crossed * (1 / b2 - 1 / b1)
        line = flops / c1 + flops / c2 - square - missing * (1 / b1 + 1 / b2)
        rest = (kept + missing) / b1 - flops / c2 - kept / b2
        share, none = _root(square, line, rest)
        copied = np.arange(TYPES) == COPIES  # whatever its share, each half does all
        return np.where(copied, self.by_speed, share), none & ~copied

    def _work(self, layer: int) -> tuple[float, Floats]:
        s = self.sizes
        return float(s.flops[layer]), inside(s.weights[layer], s.inputs[layer], s.outputs[layer])


def _root(square: Floats, line: Floats, rest: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The root of square · x² + line · x + rest in [0, 1], else the end where its value is nearer to 0."""
    with np.errstate(all="ignore"):
        inner = line * line - 4 * square * rest
        q = -(line + np.where(line < 0, -1.0, 1.0) * np.sqrt(np.maximum(inner, 0.0))) / 2
        roots = np.stack([np.where(q != 0, rest / q, np.nan), np.where(square != 0, q / square, np.nan)])
        roots = np.where((roots >= 0) & (roots <= 1) & (inner >= 0), roots, np.nan)
    none = np.isnan(roots).all(axis=0)
    ends = np.where(np.abs(rest) <= np.abs(square + line + rest), 0.0, 1.0)
    found = np.where(none, ends, np.where(np.isnan(roots[0]), roots[1], roots[0]))
    return found, none


@dataclass(frozen=True)
class Slower:
    """Pairs of several speeds that decide alike: each layer waits for the slowest."""

    of: tuple[Price, ...]

    def alone(self, layer: int) -> Floats:
        return np.asarray(np.maximum.reduce([price.alone(layer) for price in self.of]))

    def after(self, layer: int) -> Floats:
        return np.asarray(np.maximum.reduce([price.after(layer) for price in self.of]))

    def also(self, layer: int) -> Floats:
        return np.asarray(np.maximum.reduce([price.also(layer) for price in self.of]))


def tables(net: Net, price: Price, allowed: Sequence[tuple[int, ...]]) -> CostGraph:
    """The level as a cost graph: an option per allowed type."""
    unary: list[Floats] = []
    edges: list[tuple[int, int]] = []
    pairs: list[Floats] = []
    for v, before in enumerate(net.reads):
        own = list(allowed[v])
        unary.append(price.alone(v)[own] if not before else np.zeros(len(own)))
        for k, u in enumerate(before):
            table = price.after(v) if k == 0 else price.also(v)
            edges.append((u, v))
            pairs.append(np.ascontiguousarray(table[np.ix_(list(allowed[u]), own)]))
    return CostGraph(tuple(unary), tuple(edges), tuple(pairs))


def best(net: Net, price: Price, allowed: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], Found]:
    """The types of one level that cost least, exactly, on any network."""
    found = eliminate(tables(net, price, allowed))
    return tuple(allowed[v][c] for v, c in enumerate(found.choice)), found


def cost(net: Net, price: Price, types: Sequence[int]) -> float:
    """What given types of one level cost."""
    return tables(net, price, [(t,) for t in types]).cost((0,) * len(net))
