"""The DTensor form of a layout is the same box of the whole tensor."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

from meshwright.cluster.model import Mesh
from meshwright.execute.saved.dtensors import placements_of
from meshwright.plan.layout import boxes
from meshwright.plan.model import Cut, Layout

AXES, SHAPE = ("dp", "cp", "tp"), (2, 3, 2)
MESH = Mesh(range(12), AXES, SHAPE)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    """Two dims of one to three sub-dimensions, cut over the axes in any order."""
    axes = draw(st.permutations(AXES))
    dims, shape = [], []
    for _ in range(2):
        dim, size = [], 1
        for _ in range(draw(st.integers(1, 3))):
            n = draw(st.sampled_from([1, 2, 3, 4, 6, 12, 13]))
            own = [Cut(axes.pop()) for _ in range(draw(st.integers(0, 2))) if axes]
            dim.append((n, tuple(own)))
            size *= n
        dims.append(tuple(dim))
        shape.append(size)
    return Layout(tuple(dims)), tuple(shape)


@given(layouts())
@settings(max_examples=400, deadline=None)
def test_every_rank_holds_the_box_that_torch_thinks_it_holds(case: tuple[Layout, tuple[int, ...]]) -> None:
    layout, shape = case
    placed = placements_of(layout, shape, MESH)
    for position in range(12):
        coords = MESH.coordinates(position)
        own = boxes(layout, shape, MESH, coords)
        if placed is None:
            continue
        sizes, offsets = _compute_local_shape_and_global_offset(shape, SHAPE, [coords[a] for a in AXES], placed)
        if not own:
            assert 0 in sizes
            continue
        assert len(own) == 1
        lo, hi = own[0]
        assert tuple(offsets) == lo
        assert tuple(sizes) == tuple(b - a for a, b in zip(lo, hi, strict=True))


def test_the_usual_layouts_have_a_form() -> None:
    dp, tp = Cut("dp"), Cut("tp")
    mesh = Mesh(range(4), ("dp", "tp"), (2, 2))
    assert placements_of(Layout((((8, (tp,)),), ((4, ()),))), (8, 4), mesh) == (Replicate(), Shard(0))
    assert placements_of(Layout((((8, (dp, tp)),), ((4, ()),))), (8, 4), mesh) == (Shard(0), Shard(0))
    strided = placements_of(Layout((((8, (tp, dp)),), ((4, ()),))), (8, 4), mesh)
    assert strided is not None
    assert [type(p).__name__ for p in strided] == ["_StridedShard", "Shard"]
    assert strided[0].split_factor == 2  # type: ignore[attr-defined]
    # a fused weight whose three parts are cut each is no box
    assert placements_of(Layout((((3, ()), (8, (tp,))),)), (24,), mesh) is None
