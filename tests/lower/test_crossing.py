"""A value goes from one mesh to another: every receiver gets exactly its part, each element once, loads are spread."""

from __future__ import annotations

import itertools
from collections import Counter
from math import prod
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from meshwright.cluster.model import Mesh
from meshwright.lower.crossing import Crossing, Message
from meshwright.plan.layout import shard
from meshwright.plan.model import Cut, Layout

Array = NDArray[Any]


def _mesh(draw: st.DrawFn, names: str, first: int) -> Mesh:
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    axes = tuple(draw(st.permutations(list(names)))[: len(shape)])
    devices = draw(st.permutations(list(range(first, first + prod(shape)))))
    return Mesh(tuple(devices), axes, shape)


def _layout(draw: st.DrawFn, mesh: Mesh, atoms: list[list[int]]) -> Layout:
    flat = [(d, k) for d, dim in enumerate(atoms) for k in range(len(dim))]
    cuts: dict[tuple[int, int], tuple[Cut, ...]] = {}
    for axis in draw(st.permutations(list(mesh.axes))):
        at = draw(st.sampled_from([None, *flat]))
        if at is not None:
            cuts[at] = (*cuts.get(at, ()), Cut(axis))
    return Layout(tuple(tuple((n, cuts.get((d, k), ())) for k, n in enumerate(dim)) for d, dim in enumerate(atoms)))


@st.composite
def crossings(draw: st.DrawFn) -> tuple[tuple[Layout, Layout], tuple[Mesh, Mesh], tuple[int, ...]]:
    atoms = draw(st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=2), min_size=1, max_size=3))
    meshes = _mesh(draw, "xyz", 0), _mesh(draw, "xyzuv", draw(st.sampled_from([0, 3, 30])))
    layouts = _layout(draw, meshes[0], atoms), _layout(draw, meshes[1], atoms)
    return layouts, meshes, tuple(prod(dim) for dim in atoms)


def _taken(x: Array, message: Message) -> Array:
    index = [np.concatenate([np.arange(a, a + n) for a, n in dim]) for dim in message.ranges]
    return x[np.ix_(*index)] if index else x


@settings(deadline=None, max_examples=150)
@given(crossings())
def test_each_receiver_gets_its_part(case: tuple[tuple[Layout, Layout], tuple[Mesh, Mesh], tuple[int, ...]]) -> None:
    layouts, meshes, shape = case
    whole = np.arange(prod(shape)).reshape(shape)
    crossing = Crossing(layouts, meshes)
    parts = [shard(whole, layouts[0], meshes[0], meshes[0].coordinates(p)) for p in range(len(meshes[0].devices))]
    wire = {(p, m.peer): _taken(parts[p], m) for p in range(len(parts)) for m in crossing.sent(p)}
    assert sum(x.size for x in wire.values()) == crossing.elements.sum()
    for position, device in enumerate(meshes[1].devices):
        want = shard(whole, layouts[1], meshes[1], meshes[1].coordinates(position))
        got, times = np.full(want.shape, -1), np.zeros(want.shape, int)
        for m in crossing.received(position):
            x = wire.pop((m.peer, position))
            index = np.ix_(*(np.concatenate([np.arange(a, a + n) for a, n in dim]) for dim in m.ranges))
            assert x.shape == m.shape == got[index].shape
            got[index] = x
            times[index] += 1
            mine = [p for p, d in enumerate(meshes[0].devices) if d == device]
            if mine and m.peer != mine[0]:  # what a device holds itself it does not take from another
                own = layouts[0], meshes[0]
                assert not np.array_equal(shard(whole, *own, own[1].coordinates(m.peer)), parts[mine[0]])
        assert (got == want).all() and (times == 1).all()
    assert not wire, "every message has a receiver"


@settings(deadline=None, max_examples=50)
@given(crossings())
def test_equal_meshes_and_layouts_go_position_by_position(
    case: tuple[tuple[Layout, Layout], tuple[Mesh, Mesh], tuple[int, ...]],
) -> None:
    (layout, _), (mesh, _), _ = case
    far = Mesh(tuple(d + 100 for d in mesh.devices), mesh.axes, mesh.shape)
    crossing = Crossing((layout, layout), (mesh, far))
    assert (crossing.source == crossing.target).all()


def test_replicas_share_the_work() -> None:
    """Four copies, from which four parts are taken: one each; and four takers of one part that two hold: two each."""
    whole, cut = Layout((((8, ()),),)), Layout((((8, (Cut("x"),)),),))
    four, two = Mesh((0, 1, 2, 3), ("x",), (4,)), Mesh((4, 5), ("x",), (2,))
    assert Crossing((whole, cut), (four, Mesh((4, 5, 6, 7), ("x",), (4,)))).source.tolist() == [0, 1, 2, 3]
    assert Counter(Crossing((whole, whole), (two, four)).source.tolist()) == {0: 2, 1: 2}


def test_split_and_concat() -> None:
    """DAPPLE: 12 rows from 3 replicas to 2, by hand."""
    cut = Layout((((12, (Cut("dp"),)),),))
    crossing = Crossing((cut, cut), (Mesh((0, 1, 2), ("dp",), (3,)), Mesh((3, 4), ("dp",), (2,))))
    found = zip(crossing.source.tolist(), crossing.target.tolist(), crossing.elements.tolist())
    assert sorted(found) == [(0, 0, 4), (1, 0, 2), (1, 1, 2), (2, 1, 4)]
    assert crossing.received(1) == [Message(1, (((0, 2),),)), Message(2, (((2, 4),),))]


def test_pieces_grow_with_the_devices_not_with_their_square() -> None:
    cut = Layout((((4096, (Cut("dp"),)),), ((64, ()),)))
    meshes = Mesh(range(1024), ("dp",), (1024,)), Mesh(range(1024, 1024 + 768), ("dp",), (768,))
    crossing = Crossing((cut, cut), meshes)
    assert len(crossing.source) <= 1024 + 768
    per_dim = (x for x in itertools.chain(crossing.sent(5), crossing.received(5)))
    assert all(len(m.ranges[0]) == 1 for m in per_dim)
