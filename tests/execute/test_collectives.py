"""Each conversion gives every rank the part that its layout after the conversion describes, also where parts are uneven."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from execute.conftest import Pools
from execute.jobs import Move
from meshwright.cluster.model import Mesh
from meshwright.lower.program import Instr
from meshwright.plan.model import Cut, Layout

MESH = Mesh(range(4), ("x", "y"), (2, 2))
BACKWARDS = Mesh((3, 1, 2, 0), ("x", "y"), (2, 2))


def _layout(sizes: tuple[tuple[int, ...], ...], cuts: list[tuple[str, ...]], partial: tuple[str, ...] = ()) -> Layout:
    flat = iter(cuts)
    return Layout(tuple(tuple((n, tuple(Cut(a) for a in next(flat))) for n in dim) for dim in sizes), partial)


def _moves(sizes: tuple[tuple[int, ...], ...], mesh: Mesh, seed: int) -> list[Move]:
    """Every kind along every axis and sub-dimension, the other axis anywhere."""
    rng = random.Random(seed)
    count = sum(len(d) for d in sizes)
    shape = [int(torch.tensor(d).prod()) for d in sizes]
    whole = torch.randint(-50, 50, shape).to(torch.float32)
    found = []
    for axis, atom in itertools.product(("x", "y"), range(count)):
        other = "y" if axis == "x" else "x"
        base: list[tuple[str, ...]] = [()] * count
        place = rng.randrange(count + 1)
        if place < count:
            base[place] = (other,)
        cut = [*base]
        cut[atom] = (*cut[atom], axis)
        atom2 = (atom + 1) % count
        turned = [*base]
        turned[atom2] = (*turned[atom2], axis)
        a, b, c = _layout(sizes, base), _layout(sizes, cut), _layout(sizes, turned)
        partial = _layout(sizes, base, (axis,))
        for kind, collective, before, after, d2 in (
            ("slice", None, a, b, -1),
            ("collective", "all_gather", b, a, -1),
            ("collective", "all_reduce", partial, a, -1),
            ("collective", "reduce_scatter", partial, b, -1),
            ("collective", "all_to_all", b, c, atom2),
        ):
            instr = Instr(kind, "t", "forward", ("t",), ("u",), collective, (axis,), atom, d2, before, after)  # type: ignore[arg-type]
            found.append(Move(mesh, instr, whole))
    return found


@pytest.mark.parametrize("mesh", (MESH, BACKWARDS), ids=("in order", "backwards"))
@pytest.mark.parametrize("sizes", (((8,), (4, 6)), ((5,), (3, 7)), ((3,), (1, 2), (9,))), ids=str)
def test_every_conversion_gives_the_part_its_layout_describes(
    sizes: tuple[tuple[int, ...], ...], mesh: Mesh, pools: Pools
) -> None:
    moves = _moves(sizes, mesh, 0)
    for rank, answers in enumerate(pools(4).run("execute.jobs:moved", moves)):
        wrong = [
            (m.instr.collective or m.instr.kind, m.instr.axes, m.instr.dim, got)
            for m, (ok, got) in zip(moves, answers, strict=True)
            if not ok
        ]
        assert wrong == [], rank


def test_a_pad_is_the_own_part_among_zeros(pools: Pools) -> None:
    """The dual of a slice: summed over all ranks it is the whole again."""
    whole = torch.arange(35.0).reshape(5, 7)
    before, after = _layout(((5,), (7,)), [("x",), ()]), _layout(((5,), (7,)), [(), ()])
    from meshwright.execute.ops.site import own_part
    from meshwright.execute.ranks.collectives import apply
    from meshwright.execute.ranks.mesh_groups import Groups, MeshView

    total = torch.zeros_like(whole)
    for rank in (0, 2):
        view = MeshView(MESH, rank, {d: d for d in range(4)}, Groups())
        pad = Instr("pad", "t", "backward", ("t",), ("u",), None, ("x",), 0, -1, before, after)
        total += apply(pad, own_part(whole, before, view), whole.shape, view)
    assert torch.equal(total, whole)
