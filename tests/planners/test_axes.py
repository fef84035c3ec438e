"""Sub-axes behave as the coordinates that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError, Unsupported
from meshwright.planners._axes import Axis, clear_of, common, is_prefix, merged, read_axis, refine, word

SIZES = {"x": 24, "y": 4}


@st.composite
def parts_of_x(draw: st.DrawFn) -> Axis:
    """Of an axis of 16: parts of such axes never cross."""
    pre = draw(st.sampled_from([1, 2, 4, 8]))
    size = draw(st.sampled_from([d for d in (2, 4, 8, 16) if pre * d <= 16]))
    return Axis("x", pre, size)


@given(parts_of_x(), parts_of_x())
def test_axes_that_do_not_overlap_can_cut_independently(a: Axis, b: Axis) -> None:
    """Then, and only then, every pair of their coordinates occurs on some device of x."""
    coordinates = {(q // (16 // a.post) % a.size, q // (16 // b.post) % b.size) for q in range(16)}
    assert a.overlaps(b) == b.overlaps(a) == (len(coordinates) < a.size * b.size)


@given(parts_of_x(), st.lists(parts_of_x(), max_size=3))
def test_what_is_left_clear_is_a_major_part_that_overlaps_nothing(axis: Axis, others: list[Axis]) -> None:
    left = clear_of(axis, others)
    if left is not None:
        assert left.begins(axis) and not any(left.overlaps(o) for o in others)
    elif axis.size > 1:
        assert any(axis.overlaps(o) for o in others)


@given(parts_of_x(), parts_of_x())
def test_a_common_part_begins_both(a: Axis, b: Axis) -> None:
    found = common(a, b)
    if found is not None:
        assert found.begins(a) and found.begins(b)
    if a.pre == b.pre and a.size == b.size:
        assert found == a


@given(parts_of_x())
def test_an_axis_is_read_as_it_is_written(axis: Axis) -> None:
    sizes = {"x": 16}
    assert read_axis(word(axis, sizes), sizes) == axis


def test_neighbours_merge_and_prefixes_may_end_in_a_part() -> None:
    x = Axis("x", 1, 24)
    assert merged([x.first(2), x.after(2)]) == (x,)
    assert merged([x.after(2), x.first(2)]) == (x.after(2), x.first(2))
    assert is_prefix((x.first(2),), (x, Axis("y", 1, 4)))
    assert not is_prefix((x.first(2), Axis("y", 1, 4)), (x, Axis("y", 1, 4)))


@pytest.mark.parametrize("text", ["z", "x:(5)2", "x:(1)0", "x:(2)24", "x:2"])
def test_no_other_axes_are_read(text: str) -> None:
    with pytest.raises(InputError):
        read_axis(text, SIZES)


def test_a_mesh_is_refined_until_parts_are_axes() -> None:
    mesh = Mesh(range(96), ("x", "y"), (24, 4))
    found = refine(mesh, [Axis("x", 1, 2), Axis("x", 6, 4)])
    assert found.mesh.axes == ("x:(1)2", "x:(2)3", "x:(6)4", "y") and found.mesh.shape == (2, 3, 4, 4)
    assert found.mesh.devices == mesh.devices
    assert found.names((Axis("y", 1, 4), Axis("x", 1, 6))) == ("y", "x:(1)2", "x:(2)3")
    assert refine(mesh, []).mesh == mesh


def test_parts_that_cross_are_refused_with_both_named() -> None:
    mesh = Mesh(range(6), ("x",), (6,))
    with pytest.raises(Unsupported, match=r'axis "x" of 6 is used as x:\(1\)2 and as x:\(1\)3'):
        refine(mesh, [Axis("x", 1, 2), Axis("x", 1, 3)])
