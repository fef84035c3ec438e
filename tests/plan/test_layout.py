"""Layout algebra against brute force: every element is where the definition of a cut says."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.plan.layout import (
    axes_of,
    boxes,
    canonical,
    check_layout,
    explicit,
    largest_local_elements,
    largest_local_shape,
    local_shape,
    part,
    replicated,
    shard,
    sizes,
    unshard,
)
from meshwright.plan.model import Cut, Layout

DP, TP = Cut("dp"), Cut("tp")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...], Mesh]:
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    axes = tuple("abc"[: len(lengths)])
    mesh = Mesh(range(prod(lengths)), axes, tuple(lengths))
    free = list(draw(st.permutations(axes)))
    dims, shape = [], []
    for _ in range(draw(st.integers(1, 2))):
        dim = []
        for _ in range(draw(st.integers(1, 3))):
            cuts = []
            while free and draw(st.booleans()):
                axis = free.pop()
                weights = ()
                if draw(st.booleans()):
                    weights = tuple(draw(st.integers(0, 3)) for _ in range(mesh.size(axis)))
                    weights = weights if sum(weights) else ()
                cuts.append(Cut(axis, weights))
            dim.append((draw(st.integers(1, 5)), tuple(cuts)))
        dims.append(tuple(dim))
        shape.append(prod(n for n, _ in dim))
    partial = (free.pop(),) if free and draw(st.booleans()) else ()
    return Layout(tuple(dims), partial), tuple(shape), mesh


def elements(found: list) -> list[tuple[int, ...]]:
    return [i for lo, hi in found for i in product(*(range(a, b) for a, b in zip(lo, hi)))]


def test_blocks_are_ceil_sized_and_the_last_may_be_short_or_empty() -> None:
    assert sizes(10, Cut("a"), 4) == (3, 3, 3, 1)
    assert sizes(3, Cut("a"), 4) == (1, 1, 1, 0)
    assert sizes(4, Cut("a"), 3) == (2, 2, 0)


def test_weighted_parts_end_at_the_rounded_share() -> None:
    assert sizes(10, Cut("a", (3, 7)), 2) == (3, 7)
    assert sizes(7, Cut("a", (1, 1)), 2) == (4, 3)
    assert sizes(5, Cut("a", (1, 1)), 2) == (2, 3)
    assert sizes(9, Cut("a", (5, 0, 4)), 3) == (5, 0, 4)


@given(st.integers(0, 40), st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any))
def test_weights_follow_the_formula_of_the_plan(n: int, weights: list[int]) -> None:
    ends = [round(n * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    got = [sum(part(n, i, len(weights), tuple(weights))) for i in range(len(weights))]
    assert got == ends


@settings(max_examples=300, deadline=None)
@given(cases())
def test_boxes_tile_the_tensor_and_each_element_is_held_once_per_unused_coordinate(case: tuple) -> None:
    layout, shape, mesh = case
    held: Counter[tuple[int, ...]] = Counter()
    largest = 0
    for position in range(len(mesh.devices)):
        coords = mesh.coordinates(position)
        own = elements(boxes(layout, shape, mesh, coords))
        assert len(set(own)) == len(own) == prod(local_shape(layout, shape, mesh, coords))
        largest = max(largest, len(own))
        held.update(own)
    copies = prod(mesh.size(a) for a in mesh.axes if a not in axes_of(layout))
    assert held == dict.fromkeys(product(*map(range, shape)), copies)
    assert largest == largest_local_elements(layout, shape, mesh) == prod(largest_local_shape(layout, shape, mesh))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_canonical_layout_holds_the_same_elements_in_the_same_order(case: tuple) -> None:
    layout, shape, mesh = case
    simple = canonical(explicit(layout, shape), mesh)
    assert canonical(simple, mesh) == simple
    array = np.arange(prod(shape)).reshape(shape)
    for position in range(len(mesh.devices)):
        coords = mesh.coordinates(position)
        assert np.array_equal(shard(array, layout, mesh, coords), shard(array, simple, mesh, coords))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_shards_hold_the_elements_of_their_boxes_and_unshard_gives_the_tensor_back(case: tuple) -> None:
    layout, shape, mesh = case
    array = 1 + np.arange(prod(shape)).reshape(shape)
    parts = [shard(array, layout, mesh, mesh.coordinates(i)) for i in range(len(mesh.devices))]
    assert np.array_equal(unshard(parts, layout, shape, mesh), array)
    if not layout.partial:
        for i, own in enumerate(parts):
            want = sorted(array[e] for e in elements(boxes(layout, shape, mesh, mesh.coordinates(i))))
            assert sorted(own.ravel()) == want


def test_merging_keeps_the_borders_of_a_fused_weight() -> None:
    mesh = Mesh(range(4), ("dp", "tp"), (2, 2))
    fused = Layout((((3, ()), (16, (TP,))),))
    assert canonical(fused, mesh) == fused
    assert canonical(Layout((((3, (TP,)), (16, ())),)), mesh) == Layout((((3, (TP,)), (16, ())),))
    assert canonical(Layout((((4, (TP,)), (16, ())),)), mesh) == Layout((((64, (TP,)),),))
    assert canonical(Layout((((2, (DP,)), (16, (TP,))),)), mesh) == Layout((((32, (DP, TP)),),))
    assert canonical(Layout((((4, (DP,)), (16, (TP,))),)), mesh) == Layout((((4, (DP,)), (16, (TP,))),))


def test_a_minor_cut_gives_one_box_per_piece() -> None:
    mesh = Mesh(range(2), ("tp",), (2,))
    assert boxes(Layout((((3, ()), (4, (TP,))),)), (12,), mesh, {"tp": 1}) == [
        ((2,), (4,)),
        ((6,), (8,)),
        ((10,), (12,)),
    ]


def test_size_zero_stands_for_what_the_others_leave() -> None:
    assert explicit(Layout((((0, (TP,)),), ((3, ()), (0, (TP,))))), (8, 12)) == Layout(
        (((8, (TP,)),), ((3, ()), (4, (TP,))))
    )
    assert explicit(Layout(((), ((0, ()),))), (2, 3)) == replicated((2, 3))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            Layout((((3, ()), (5, (TP,))),)),
            "dim 0 has 12 elements, its sub-dimensions multiply to 3 × 5: they must give 12",
        ),
        (Layout(()), "a layout of 0 dims cannot cut a tensor of shape (12,)"),
        (Layout((((12, (Cut("ep"),)),),)), 'no axis "ep" in this mesh: it has tp'),
        (Layout((((3, (TP,)), (4, (TP,))),)), 'axis "tp" is used twice in one layout: each axis cuts or sums once'),
        (
            Layout((((12, (Cut("tp", (1, 2, 3)),)),),)),
            'weights (1, 2, 3) on axis "tp" of length 2: give 2 numbers, none below 0, one above',
        ),
    ],
)
def test_a_layout_that_does_not_fit_says_what_would(layout: Layout, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_layout(layout, (12,), Mesh(range(2), ("tp",), (2,)))
    assert str(error.value) == message
