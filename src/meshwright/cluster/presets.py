"""Known accelerators in their usual nodes, as data with the source of every figure."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ._build import NodeGroup, Wire, build
from ._units import quantity
from .model import Cluster, DeviceType

PEAK_SUFFIX = {"float8": ("float8_e4m3fn", "float8_e5m2")}
"""A format that several dtypes of the graph share."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One kind of node: `node` devices joined by `inside`, with `nics` wires of kind `nic` out of it."""

    name: str
    device: DeviceType
    node: int
    inside: Wire
    nic: Wire
    nics: int

    @property
    def sources(self) -> Mapping[str, str]:
        """Figure -> where it is from."""
        return self.device.sources

    def cluster(self, count: int, *, name: str = "", node: int = 0) -> Cluster:
        """`count` devices in nodes of `node` (0: the usual size); a count that fits one node is part of it.

        `count` must be at most `node`, or a multiple of it.
        """
        size = node or self.node
        inside = min(count, size)
        group = NodeGroup(self.device, inside, count // inside, self.inside, self.nic, self.nics * inside / self.node)
        return build(name or f"{self.name}x{count}", [group])


@cache
def presets() -> Mapping[str, Preset]:
    """All presets by name, vendor by vendor; `local` is made when it is asked for and not among them."""
    found: dict[str, Preset] = {}
    for file in ("nvidia.toml", "amd.toml", "google.toml"):
        text = resources.files(__package__).joinpath("presets", file).read_text(encoding="utf-8")
        for name, row in tomllib.loads(text).items():
            found[name] = _preset(name, row)
    return found


def peaks(table: Mapping[str, str]) -> dict[str, float]:
    """dtype -> FLOP/s; a format shared by several dtypes is entered under each."""
    found = {dtype: quantity(text, "peak") for dtype, text in table.items()}
    for format_, dtypes in PEAK_SUFFIX.items():
        if format_ in found:
            found.update(dict.fromkeys(dtypes, found[format_]))
    return found


def _wire(row: Mapping[str, Any]) -> Wire:
    pair = quantity(row["pair"], "bandwidth") if "pair" in row else 0.0
    return Wire(row["name"], quantity(row["bandwidth"], "bandwidth"), quantity(row["latency"], "latency"), pair)


def _preset(name: str, row: Mapping[str, Any]) -> Preset:
    device = DeviceType(
        name=row["title"],
        kind=row["kind"],
        memory=quantity(row["memory"], "memory"),
        peak=peaks(row["peak"]),
        bandwidth=quantity(row["bandwidth"], "bandwidth"),
        host_bandwidth=quantity(row["host_bandwidth"], "bandwidth"),
        price_per_hour=float(row.get("price_per_hour", 0.0)),
        family=row["family"],
        sources=row["sources"],
    )
    return Preset(name, device, row["node"], _wire(row["inside"]), _wire(row["nic"]), row["nic"]["count"])


LOCAL_SOURCES = {
    "memory": "MemTotal of this machine, divided by its ranks",
    "bandwidth": "assumed: 10 GB/s of memory traffic a core",
    "peak": "assumed: 32 float32 FLOP a cycle (two FMA of eight lanes) at 2.5 GHz; ranks beyond the cores take turns",
    "inside": "measured: gloo all-reduce of 16-64 MiB between 2 ranks of one machine, 0.5 GB/s",
    "latency": "measured: gloo, 0.54 ms for an empty all-reduce of 2 ranks",
}
LOCAL_WIRE = Wire("shared memory", 0.5e9, 0.27e-3)


def local(ranks: int = 0, device: DeviceType | None = None, wire: Wire = LOCAL_WIRE) -> Cluster:
    """This machine as `ranks` CPU devices (0: one a core), read when asked for.

    Args:
        device: one that has a core to itself, as it was measured; None: as assumed.
        wire: between two ranks.
    """
    cores = os.cpu_count() or 1
    count = ranks or cores
    memory = _installed_memory() / count
    if device is None:
        device = DeviceType(
            name="CPU",
            kind="cpu",
            memory=memory,
            peak=dict.fromkeys(("float32", "bfloat16", "float16"), 80e9) | {"float64": 40e9},
            bandwidth=10e9,
            family="cpu",
            sources=LOCAL_SOURCES,
        )
    group = NodeGroup(replace(device, memory=memory), count, 1, wire)
    cluster = build(f"localx{ranks}" if ranks else "local", [group])
    return replace(cluster, at_once=cores if count > cores else 0)


def _installed_memory() -> float:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return float(line.split()[1]) * 1024
    try:
        return float(os.sysconf("SC_PHYS_PAGES")) * float(os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 8.0 * 2**30
