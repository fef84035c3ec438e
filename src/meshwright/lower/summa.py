"""SUMMA: a product whose operands are fetched block by block along the factor that is summed.

Y[m, n] = Σ_t X[m, k_t] · W[k_t, n]        rows m cut over axis r, columns n over axis c, both of length q

    rest       X: m over r, k over c       W: k over r, n over c         nobody ever holds more than blocks
    forward    for t < q: X's block t along c and W's block t along r are broadcast from where they rest; Y += X_t · W_t
    backward   for t < q: W's block t is broadcast along r, dY · W_tᵀ summed along c to member t: its block of dX
               for t < q: X's block t is broadcast along c, X_tᵀ · dY summed along r to member t: its block of dW

(van de Geijn and Watts, 1997; Xu and You, arXiv 2104.05343, Algorithms 1 and 2.) Rows may be cut over further axes in front
of r: then W rests as copies along them, and what each makes of dW is a part of the sum that a step ends with: over a depth
of d this is 2.5D (Wang et al., arXiv 2105.14500). r and c are the minor axes of the cuts of the rows and of the columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Unsupported
from ..graph.ir import Op, Phase
from .atoms import FIXED, PRODUCTS, Node
from .convert import Axes
from .program import Instr

if TYPE_CHECKING:
    from .emit import Emitter

SUMMA = "summa"
"""`OpSharding.variant` of such a product."""
X, W = 0, 1


@dataclass(frozen=True, slots=True)
class Grid:
    """How one product is cut into blocks."""

    rows: str
    """r"""
    columns: str
    """c"""
    steps: int
    """q"""
    atom: int
    """The atom of the summed factor that falls into blocks."""

    def along(self, operand: int) -> str:
        """The axis along which the blocks of an operand lie, and are broadcast."""
        return self.columns if operand == X else self.rows


def grid_of(op: Op, node: Node, cuts: Axes, held: Axes, mesh: Mapping[str, int]) -> Grid | None:
    """The grid of a product under `cuts` (axes per atom, those of length 1 left out); None on a grid of one member.

    `held`: how X rests, so that its blocks stay where they are.

    Raises:
        Unsupported: no product of a matrix, rows or columns that are not cut, a grid that is not square.
    """
    if op.kind not in PRODUCTS or len(node.inputs) != 2 or len(op.rule.operands[W]) != 2 or not node.summed:
        raise Unsupported(
            f'"{op.name}" ({op.kind}) is no product of rows with one matrix, so it cannot run as summa', reason="summa"
        )
    rows = [a for a in node.operands[X] if a != FIXED and a in node.results[0] and a not in node.operands[W]]
    columns = [a for a in node.operands[W] if a != FIXED and a in node.results[0] and a not in node.operands[X]]
    over_rows = [x for a in rows for x in cuts[a]]
    over_columns = [x for a in columns for x in cuts[a]]
    if not over_rows and not over_columns:
        return None
    if not over_rows or not over_columns or any(cuts[a] for a in node.summed):
        raise Unsupported(
            f'"{op.name}" runs as summa, which cuts rows over one axis, columns over another, and not what is summed: it is '
            f"cut over {', '.join(over_rows) or 'none'} and {', '.join(over_columns) or 'none'}",
            reason="summa",
        )
    r, c = over_rows[-1], over_columns[-1]
    if mesh[r] != mesh[c]:
        raise Unsupported(
            f'"{op.name}" runs as summa on {mesh[r]} × {mesh[c]} members ({r} × {c}): the grid must be square',
            reason="summa",
        )
    summed = [a for a in node.operands[X] if a in node.summed]
    resting = [a for a, axes in zip(node.operands[X], held) if a in node.summed and c in axes]
    fit = [a for a in summed if node.size[a] % mesh[c] == 0]
    atom = (resting or fit or [max(summed, key=lambda a: node.size[a])])[0]
    return Grid(r, c, mesh[c], atom)


def blocks(node: Node, grid: Grid, need: list[Axes]) -> list[Axes]:
    """How the operands are read, each block where it rests: `need` says rows and columns alone."""
    return [
        tuple((*axes, grid.along(k)) if a == grid.atom else axes for a, axes in zip(mapping, own))
        for k, (mapping, own) in enumerate(zip(node.operands, need))
    ]


def in_steps(grid: Grid, cuts: Axes) -> Axes:
    """`cuts` with the summed factor as one step sees it."""
    return tuple((*axes, grid.columns) if a == grid.atom else axes for a, axes in enumerate(cuts))


def fetches(emit: Emitter, node: Node, grid: Grid, need: list[Axes]) -> tuple[list[Instr], list[Instr]]:
    """(forward, backward) blocks that come and gradients that go, in order."""
    op = emit.graph.ops[node.index].name

    def panels(phase: Phase, *kinds: tuple[str, int]) -> Iterator[Instr]:
        for t in range(grid.steps):
            for kind, k in kinds:
                nbytes, over = emit.amount(node.inputs[k], need[k])
                yield Instr(
                    "panel", op, phase, collective="broadcast" if kind == "broadcast" else "reduce",
                    axes=(grid.along(k),), dim=t, dim2=k, nbytes=nbytes, samples=over,
                )  # fmt: skip

    backward: list[Instr] = []
    for k, other in ((X, W), (W, X)):
        if node.inputs[k] in emit.atoms.grad:
            backward += panels("backward", ("broadcast", other), ("reduce", k))
    return list(panels("forward", ("broadcast", X), ("broadcast", W))), backward
