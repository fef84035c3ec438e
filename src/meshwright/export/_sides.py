"""Where tensor parallelism cuts each matrix: what its product sums over (row) or what it makes (column), as one or in parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from ..layouts.style import TP
from ..lower.atoms import PRODUCTS
from .setup import Setup

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a parameter is cut over tp."""

    dim: int
    atom: int
    """The one that is cut, of all that the parameter has (`lower.atoms`)."""
    parts: int
    """Pieces of one size that lie side by side along the dim, each cut alone: the 3 of a fused query, key and value."""


@dataclass(frozen=True, slots=True)
class Side:
    """One module with a matrix that is cut, for all layers that have it."""

    module: str
    """Its path with * for the number of the layer: "model.layers.*.self_attn.o_proj"."""
    row: bool
    """Cut on what the product sums over, so that its result is a sum; else on what it makes."""
    parts: int
    """As in `Cut`."""
    transposed: bool
    """The matrix is input × output (`Conv1D`), not output × input (`Linear`)."""


def pattern(path: str) -> str:
    """ "model.layers.0.mlp" -> "model.layers.*.mlp"."""
    return _NUMBER.sub(".*", path)


def cut_of(setup: Setup, parameter: str) -> Cut | None:
    """Where the plan cuts a parameter over tp; None where it does not."""
    expert = setup.expert
    use = expert.uses(setup.point.style).get(parameter, ())
    atom = next((k for k, axes in enumerate(use) if TP in axes), -1)
    if atom < 0:
        return None
    dims, sizes = expert.atoms.dims[parameter], expert.atoms.size[parameter]
    dim = next(d for d in range(len(dims)) if atom < sum(dims[: d + 1]))
    return Cut(dim, atom, prod(sizes[sum(dims[:dim]) : atom]))


def side_of(setup: Setup, parameter: str) -> Side | None:
    """Of a matrix that the plan cuts over tp and that activations are multiplied with; None for all else."""
    graph, atoms = setup.expert.graph, setup.expert.atoms
    cut = cut_of(setup, parameter)
    if cut is None or len(graph.tensor[parameter].shape) != 2:
        return None
    for n, operand in atoms.users.get(parameter, ()):
        node = atoms.nodes[n]
        if graph.ops[node.index].kind in PRODUCTS and operand != 0:
            mapping = node.operands[operand]
            module = pattern(parameter.rpartition(".")[0])
            return Side(module, mapping[cut.atom] in node.summed, cut.parts, mapping[0] in node.summed)
    return None


def sides_of(setup: Setup) -> tuple[Side, ...]:
    """Matrices that the plan cuts over tp, in order of the model; not tables (embeddings), nor matrices one per expert."""
    sides = (side_of(setup, name) for name in setup.expert.uses(setup.point.style))
    return tuple({side.module: side for side in sides if side is not None}.values())
