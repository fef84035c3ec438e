"""The clusters that measured rows ran on: presets, with the links that a source states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from ..cluster import Cluster, Preset, presets
from ..cluster._build import NodeGroup, build
from .rows import Row


@cache
def machines() -> Mapping[str, Preset]:
    """Machine of a row -> node; presets, and variants that are no product of their own here."""
    found = dict(presets())
    a100, h100 = found["a100"], found["h100"]
    # Export variants: NVLink at 400 GB/s both ways (data sheets).
    found["a800"] = replace(a100, name="a800", inside=replace(a100.inside, bandwidth=200e9))
    found["h800"] = replace(h100, name="h800", inside=replace(h100.inside, bandwidth=200e9))
    # 96 GB of HBM2e under 500 W, as torchtitan states.
    limited = replace(h100.device, name="H100-96GB", memory=96e9, bandwidth=2400e9, family="h100-500w")
    found["h100-500w"] = replace(h100, name="h100-500w", device=limited)
    return found


def cluster_of(row: Row) -> Cluster:
    """As many devices as the row used, in nodes as large as its own, with its NICs."""
    preset = machines()[row.machine]
    node = min(row.node, row.devices)
    nic = replace(preset.nic, bandwidth=row.nic) if row.nic else preset.nic
    # Where a source states its NICs it does so per device; otherwise a smaller node has its share of the preset's.
    count = node if row.nic else preset.nics * node / preset.node
    group = NodeGroup(preset.device, node, -(-row.devices // node), preset.inside, nic, count)
    return build(f"{row.machine}x{row.devices}", [group])
