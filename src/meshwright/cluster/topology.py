"""How the groups of a mesh lie on the levels of a cluster: who shares a node, and how many groups share an uplink.

A regular mesh (a `range` of devices whose axes nest with the levels) needs only its first group and its strides; any
other mesh is counted device by device, once, never pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from .model import Cluster, Mesh

if TYPE_CHECKING:  # numpy takes longer to load than a shell may wait for a completed name
    import numpy as np
    from numpy.typing import NDArray

Ints: TypeAlias = "NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class GroupShape:
    """All groups along some axes of one mesh, at their worst. Tuples have one entry per level, innermost first."""

    size: int
    """Members of a group."""
    spans: tuple[int, ...]
    """Most components of the level that one group touches."""
    inside: tuple[int, ...]
    """Fewest members that a group has in a component it touches."""
    sharing: tuple[int, ...]
    """Most groups that meet in one component, each with some member in it; 0 if none meets (see `crowd`)."""
    crowd: tuple[int, ...]
    """Most members, of all groups, in one component. Components of unequal nodes that join nothing count as none."""


def group_shape(cluster: Cluster, mesh: Mesh, axes: Sequence[str], at_zero: Sequence[str] = ()) -> GroupShape:
    """Of the groups along `axes`; only members with coordinate 0 on `at_zero` take part.

    Raises:
        KeyError: an axis that the mesh has not.
    """
    for axis in (*axes, *at_zero):
        if axis not in mesh.axes:
            raise KeyError(f"mesh has axes {mesh.axes}, not {axis!r}")
    along = [axis in axes for axis in mesh.axes]
    lengths = [1 if axis in at_zero and axis not in axes else n for axis, n in zip(mesh.axes, mesh.shape, strict=True)]
    size = prod(n for n, used in zip(lengths, along, strict=True) if used)
    regular = _regular(cluster, mesh) if not at_zero else None
    if regular is not None:
        return _from_strides(cluster, mesh, along, size, regular)
    return _from_devices(cluster, mesh, along, size, at_zero, axes)


def _regular(cluster: Cluster, mesh: Mesh) -> tuple[int, ...] | None:
    """Positions of `mesh.devices` per component of each level, if all components hold equal boxes of the mesh; else None."""
    if not isinstance(mesh.devices, range) or mesh.devices.step <= 0:
        return None
    start, step, total = mesh.devices.start, mesh.devices.step, len(mesh.devices)
    found = []
    for level in cluster.levels:
        if not level.size:
            return None
        if start % level.size + step * (total - 1) < level.size:
            found.append(total)
            continue
        if start % level.size or level.size % step:
            return None
        inner, block = level.size // step, 1
        for n in reversed(mesh.shape):
            if inner % (block * n) == 0:
                block *= n
            elif inner % block == 0 and n % (inner // block) == 0:
                block = inner
                break
            else:
                return None
        if block != inner:
            return None
        found.append(inner)
    return tuple(found)


def _from_strides(cluster: Cluster, mesh: Mesh, along: list[bool], size: int, inner: tuple[int, ...]) -> GroupShape:
    spans, inside, sharing = [], [], []
    for positions in inner:
        members, block = 1, 1
        for n, used in zip(reversed(mesh.shape), reversed(along), strict=True):
            part = min(n, positions // block)
            if used:
                members *= part
            block *= n
            if block >= positions:
                break
        spans.append(size // members)
        inside.append(members)
        sharing.append(positions // members)
    return GroupShape(size, tuple(spans), tuple(inside), tuple(sharing), inner)


def _from_devices(
    cluster: Cluster, mesh: Mesh, along: list[bool], size: int, at_zero: Sequence[str], axes: Sequence[str]
) -> GroupShape:
    import numpy as np

    grid = np.asarray(mesh.devices, dtype=np.int64).reshape(mesh.shape)
    for k, axis in enumerate(mesh.axes):
        if axis in at_zero and axis not in axes:
            grid = grid.take([0], axis=k)
    other = [k for k, used in enumerate(along) if not used]
    used_axes = [k for k, used in enumerate(along) if used]
    members = grid.transpose([*other, *used_axes]).reshape(-1, size)
    group = np.repeat(np.arange(len(members)), size)
    spans, inside, sharing, crowd = [], [], [], []
    for level in cluster.levels:
        component = _components(level.size, level.member, members.reshape(-1))
        # One number per (group, component) pair that occurs, with how many members stand behind it.
        pair, count = np.unique(group * (component.max() + 1) + component, return_counts=True)
        where = pair % (component.max() + 1)
        joins = np.ones(component.max() + 1, dtype=bool)
        if not level.size:
            joins = np.bincount(np.asarray(level.member), minlength=len(joins))[: len(joins)] > 1
        spans.append(int(np.bincount(pair // (component.max() + 1)).max()))
        inside.append(int(count.min()))
        sharing.append(int((np.bincount(where) * joins).max()))
        crowd.append(int((np.bincount(component) * joins).max()))
    return GroupShape(size, tuple(spans), tuple(inside), tuple(sharing), tuple(crowd))


def _components(size: int, member: Sequence[int], devices: Ints) -> Ints:
    if size:
        return devices // size
    import numpy as np

    return np.asarray(member, dtype=np.int64)[devices]


def shared_level(cluster: Cluster, a: int, b: int) -> int:
    """Index of the lowest level at which two devices share a component; −1 if none does."""
    for k in range(len(cluster.levels)):
        if cluster.component(k, a) == cluster.component(k, b):
            return k
    return -1


def way_out(cluster: Cluster, device: int, level: int) -> float:
    """Bytes/s by which a device leaves its component of `level`: the least uplink up to there; inf if none binds.

    The uplink of a component of unequal nodes counts only where it joins several devices.
    """
    found = float("inf")
    for lv in cluster.levels[: level + 1]:
        alone = not lv.size and lv.member[device] not in (
            lv.member[device - 1] if device else None,
            lv.member[device + 1] if device + 1 < len(lv.member) else None,
        )
        if lv.uplink and not alone:
            found = min(found, lv.uplink)
    return found
