"""Which axes of a mesh cut experts: those that cut a product of activations with one matrix per expert on the experts."""

from __future__ import annotations

from collections.abc import Mapping

from .assign import Assignment
from .atoms import FIXED, PRODUCTS, Atoms, Node
from .parts import axis_of


def expert_atoms(atoms: Atoms, node: Node) -> list[int]:
    """Atoms of a product that all its tensors have, samples aside: its matrices are parameters, one for each."""
    if atoms.folded.graph.ops[node.index].kind not in PRODUCTS:
        return []
    t = node.inputs[-1]
    if not atoms.is_weight(t):
        return []
    every = set(node.operands[0]) & set(node.operands[-1]) & set(node.results[0]) - {FIXED}
    return sorted(a for a in every if not node.samples[a] and node.kind[a] == "free")


def expert_axes(atoms: Atoms, done: Assignment, mesh: Mapping[str, int], skew: float) -> Mapping[str, float]:
    """Axis -> tokens of its busiest member over the mean: `skew`, but no member gets more than all."""
    found: dict[str, float] = {}
    for node, cuts in zip(atoms.nodes, done.cuts):
        for a in expert_atoms(atoms, node):
            found.update((axis_of(x), min(skew, float(mesh[axis_of(x)]))) for x in cuts[a])
    return found
