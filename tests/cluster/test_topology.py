"""How groups lie on levels: the short cut over strides against counting every device."""

from __future__ import annotations

from collections import Counter
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster import Cluster, GroupShape, Level, Mesh, group_shape
from meshwright.cluster.topology import _regular


def _counted(cluster: Cluster, mesh: Mesh, axes: tuple[str, ...], at_zero: tuple[str, ...]) -> GroupShape:
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, device in enumerate(mesh.devices):
        at = mesh.coordinates(position)
        if any(at[a] for a in at_zero if a not in axes):
            continue
        groups.setdefault(tuple(at[a] for a in mesh.axes if a not in axes), []).append(device)
    spans, inside, sharing, crowd = [], [], [], []
    for k, level in enumerate(cluster.levels):
        joins = {c for c, n in Counter(level.member).items() if n > 1}
        per_group = [Counter(cluster.component(k, d) for d in g) for g in groups.values()]
        meet = Counter(c for counts in per_group for c in counts if level.size or c in joins)
        members = Counter(cluster.component(k, d) for g in groups.values() for d in g)
        spans.append(max(len(c) for c in per_group))
        inside.append(min(min(c.values()) for c in per_group))
        sharing.append(max(meet.values(), default=0))
        crowd.append(max((n for c, n in members.items() if level.size or c in joins), default=0))
    size = len(next(iter(groups.values())))
    return GroupShape(size, tuple(spans), tuple(inside), tuple(sharing), tuple(crowd))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Cluster, Mesh, tuple[str, ...], tuple[str, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    names = tuple("xyz"[: len(shape)])
    total = prod(shape)
    node = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    levels = [Level("node", node, 1.0), Level("rack", node * draw(st.integers(1, 4)), 1.0), Level("all", 10**6, 1.0)]
    if draw(st.booleans()):
        start, step = draw(st.sampled_from([0, 0, node, 1, 3])), draw(st.sampled_from([1, 1, 2]))
        devices: range | tuple[int, ...] = range(start, start + step * total, step)
    else:
        devices = tuple(draw(st.permutations(range(total))))
    count = max(devices) + 1
    if draw(st.booleans()):
        member = tuple(sorted(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))))
        levels.insert(1, Level("uneven", 0, 1.0, member=member))
    axes = tuple(a for a in names if draw(st.booleans()))
    at_zero = tuple(a for a in names if draw(st.sampled_from([True, False, False, False])))
    return Cluster("c", (), count, (), tuple(levels)), Mesh(devices, names, shape), axes, at_zero


@given(_cases())
@settings(max_examples=400, deadline=None)
def test_groups_equal_brute_force_over_all_devices(
    case: tuple[Cluster, Mesh, tuple[str, ...], tuple[str, ...]],
) -> None:
    cluster, mesh, axes, at_zero = case
    assert group_shape(cluster, mesh, axes, at_zero) == _counted(cluster, mesh, axes, at_zero)


def test_aligned_meshes_take_the_short_cut() -> None:
    cluster = Cluster("c", (), 64, (), (Level("node", 8, 1.0), Level("all", 64, 1.0)))
    mesh = Mesh(range(64), ("dp", "tp"), (16, 4))
    assert _regular(cluster, mesh) == (8, 64)
    assert group_shape(cluster, mesh, ("dp",)) == GroupShape(16, (8, 1), (2, 16), (4, 4), (8, 64))
    assert group_shape(cluster, mesh, ("tp",)) == GroupShape(4, (1, 1), (4, 4), (2, 16), (8, 64))
    straddling = Mesh(range(4, 16), ("tp",), (12,))
    assert _regular(cluster, straddling) is None
