"""Where a model is trained: devices, a tree of levels, links, and the mesh that a stage lays its axes on.

Units: bytes, bytes/s, FLOP/s, seconds. Nothing here walks over all devices for a regular cluster: device lists are
`range` objects wherever they are regular.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal

MOST_DEVICES = 1_000_000
"""Of a cluster that may be stated: some ten times the largest that train one model."""


@dataclass(frozen=True, slots=True)
class DeviceType:
    name: str
    kind: Literal["gpu", "cpu", "tpu", "xpu"]
    memory: float
    """Bytes installed."""
    peak: Mapping[str, float]
    """dtype -> dense FLOP/s, e.g. {"bfloat16": 989e12}."""
    bandwidth: float
    """Bytes/s of its own memory."""
    host_bandwidth: float = 0.0
    """Bytes/s to its host's memory, each way."""
    price_per_hour: float = 0.0
    family: str = ""
    """Key of the efficiency constants of the analytic cost model: "a100", "h100", "v100", "blackwell", …"""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Field -> where the figure is from."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the tree, innermost first. A transfer between two devices pays the lowest level they share."""

    name: str
    size: int
    """Devices in one component, contiguous: component of device d = d // size. 0 = see `member`."""
    bandwidth: float
    """Bytes/s of one member's connection inside a component, one way."""
    latency: float = 0.0
    uplink: float = 0.0
    """Bytes/s of a whole component to the next level, shared by all inside (NICs); 0 = unshared."""
    member: Sequence[int] = ()
    """Per device: its component, where components are not contiguous or not equal."""
    pair: float = 0.0
    """Bytes/s one way between two members where pairs are wired directly (n members reach (n − 1) · pair); 0 = switched."""


@dataclass(frozen=True, slots=True)
class Link:
    """Explicit directed link; overrides the tree for this pair."""

    src: int
    dst: int
    bandwidth: float
    latency: float = 0.0


@dataclass(frozen=True)
class Cluster:
    name: str
    types: tuple[DeviceType, ...]
    count: int
    """Number of devices."""
    device: Sequence[int] = ()
    """Per device: index into types; () = all of types[0]."""
    levels: tuple[Level, ...] = ()
    links: tuple[Link, ...] = ()
    host: Sequence[int] = ()
    """Per device: the CPU device whose memory it can swap to; () = none."""
    at_once: int = 0
    """Devices that can work at full speed at the same time, where they share the cores of one machine; 0 = all."""

    def type_of(self, device: int) -> DeviceType:
        return self.types[self.device[device] if self.device else 0]

    def turns(self, devices: int) -> float:
        """How much longer work takes that so many devices do at the same time."""
        return max(1.0, devices / self.at_once) if self.at_once else 1.0

    @property
    def homogeneous(self) -> bool:
        return len(self.types) == 1

    @property
    def price_per_hour(self) -> float | None:
        """Money for an hour of all devices; None where the price of any is not known."""
        used = Counter(self.device) if self.device else {0: self.count}
        if not self.types or any(self.types[t].price_per_hour <= 0 for t in used):
            return None
        return sum(n * self.types[t].price_per_hour for t, n in used.items())

    def priced(self, price: float) -> Cluster:
        """With another price of a device and hour, of all devices."""
        types = (replace(t, price_per_hour=price, sources={**t.sources, "price_per_hour": "given"}) for t in self.types)
        return replace(self, types=tuple(types))

    def component(self, level: int, device: int) -> int:
        """The component of `device` at `levels[level]`."""
        lv = self.levels[level]
        return device // lv.size if lv.size else lv.member[device]

    @cached_property
    def link_between(self) -> Mapping[tuple[int, int], Link]:
        """(from, to) -> the explicit link of this pair."""
        return {(link.src, link.dst): link for link in self.links}

    @cached_property
    def node_size(self) -> int:
        """Devices of the innermost component of several devices that holds device 0 (a node); all if there is no level."""
        for lv in self.levels:
            size = lv.size if lv.size else sum(1 for m in lv.member if m == lv.member[0])
            if size > 1 or lv.size:
                return size
        return self.count if not self.levels else 1


@dataclass(frozen=True, slots=True)
class Mesh:
    """Array of devices with named axes, row major. A device may repeat (several parts on one device)."""

    devices: Sequence[int]
    """A `range` where regular."""
    axes: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if prod(self.shape) != len(self.devices) or len(self.axes) != len(self.shape):
            raise ValueError(f"mesh axes {self.axes} of shape {self.shape} do not hold {len(self.devices)} devices")

    def size(self, axis: str) -> int:
        """Length of an axis; 1 for an axis that this mesh has not."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def stride(self, axis: str) -> int:
        """Distance, in positions of `devices`, of two neighbours along `axis`."""
        return prod(self.shape[self.axes.index(axis) + 1 :])

    def coordinates(self, position: int) -> dict[str, int]:
        """Of the device at a position of `devices`."""
        found = {}
        for axis, n in zip(reversed(self.axes), reversed(self.shape), strict=True):
            position, found[axis] = divmod(position, n)
        return found
