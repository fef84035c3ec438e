"""What a light op moves through memory if it runs in the kernel that nothing cut would put it in.

The sum of such prices over ops is a price of each op alone, which `kernels` is not: which conversions split a kernel
depends on how all its ops are cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph.ir import Graph
from ..plan.problem import Recipe
from .assign import Choices
from .choices import unfoldable
from .fold import fold
from .keep import Keeper
from .memo import memo
from .pieces import write
from .program import RAW


@dataclass(frozen=True, slots=True)
class Traffic:
    """Positions of the operands that its kernel reads for it, and of the results that leave its kernel."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Uncut:
    """What lowering says of a graph of which nothing is cut; names are those of representatives."""

    light: Mapping[str, Traffic]
    """Of light ops; views move nothing."""
    kept: frozenset[str]
    """Values that wait for the backward."""


def uncut(graph: Graph, recipe: Recipe) -> Uncut:
    """Every op whole on one device."""
    found: Uncut = memo(graph, ("uncut", recipe.fused, recipe.grad_dtype), lambda: _uncut(graph, recipe))
    return found


def _uncut(graph: Graph, recipe: Recipe) -> Uncut:
    folded = fold(graph, unfoldable(graph))
    choices = Choices({}, {}, {}, frozenset())
    light: dict[str, Traffic] = {}
    kept: set[str] = set()
    for piece in write(graph, folded, choices, {}, recipe, frozenset()).pieces:
        if piece is None:
            continue
        v, of_node = piece.values, piece.kernels.of_node
        paid: set[tuple[int, str]] = set()
        for n in v.nodes:
            node = v.atoms.nodes[n]
            if n not in of_node:
                continue
            name, reads, writes = graph.ops[node.index].name, [], []
            if n not in v.atoms.alias:
                for k, value in enumerate(v.w.used[n]):
                    root = v.root(value)
                    made = v.maker(root)
                    own = made is not None and made.kind == "compute" and of_node.get(v.node_of[made.on]) == of_node[n]
                    if not own and (of_node[n], root) not in paid:
                        paid.add((of_node[n], root))
                        reads.append(k)
                for k, t in enumerate(node.outputs):
                    if {t, t + RAW} & piece.kernels.written:
                        writes.append(k)
            light[name] = Traffic(tuple(reads), tuple(writes))
        keeper = Keeper(v, piece.kernels, {}, frozenset())
        kept.update(v.tensor(value) for value in keeper.leaves if not v.constant(value))
    return Uncut(light, frozenset(kept))
