"""Which side of each matrix tensor parallelism cuts: what its product sums over (row) or what it makes (column)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from ..layouts.style import TP
from ..lower.atoms import PRODUCTS
from .setup import Setup

_NUMBER = re.compile(r"\.\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Side:
    """One module with a matrix that is cut, for all layers that have it."""

    module: str
    """Its path with * for the number of the layer: "model.layers.*.self_attn.o_proj"."""
    row: bool
    """Cut on what the product sums over, so that its result is a sum; else on what it makes."""
    parts: int
    """Matrices of one size that it holds side by side, each cut alone: the 3 of a fused query, key and value."""
    transposed: bool
    """The matrix is input × output (`Conv1D`), not output × input (`Linear`)."""


def sides_of(setup: Setup) -> tuple[Side, ...]:
    """Matrices that the plan cuts over tp, in order of the model; not tables (embeddings), nor matrices one per expert."""
    expert = setup.expert
    graph, atoms = expert.graph, expert.atoms
    found: dict[str, Side] = {}
    for name, use in expert.uses(setup.point.style).items():
        if len(graph.tensor[name].shape) != 2 or not any(TP in axes for axes in use):
            continue
        for n, operand in atoms.users.get(name, ()):
            node = atoms.nodes[n]
            if graph.ops[node.index].kind not in PRODUCTS or operand == 0:
                continue
            cut = next(k for k, axes in enumerate(use) if TP in axes)
            mapping, first = node.operands[operand], atoms.dims[name][0]
            start = 0 if cut < first else first
            module = _NUMBER.sub(".*", name.rpartition(".")[0])
            found[module] = Side(
                module,
                mapping[cut] in node.summed,
                prod(atoms.size[name][start:cut]),
                mapping[0] in node.summed,
            )
            break
    return tuple(found.values())
