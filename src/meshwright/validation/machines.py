"""The clusters that measured rows ran on: presets, with the links that a source states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from ..cluster import Cluster, Preset, presets
from ..cluster._build import NodeGroup, build
from .columns import Refused

if TYPE_CHECKING:
    from .rows import Row

ACCELERATORS = (
    ("V100-SXM3", "v100-dgx2"), ("V100-SXM2-16", "v100-p3"), ("V100", "v100"), ("A100-SXM-40", "a100-40"), ("A100", "a100"),
    ("A800", "a800"), ("H100-96", "h100-500w"), ("H100", "h100"), ("H800", "h800"), ("H200-NVL", "h200-nvl"), ("H200", "h200"),
    ("B200", "b200"), ("B300", "b300"), ("GB200", "gb200"), ("GB300", "gb300"), ("L4", "l4"), ("T4", "t4"), ("GH200", "gh200"),
    ("MI300X", "mi300x"), ("MI325X", "mi325x"), ("MI350X", "mi350x"), ("MI355X", "mi355x"), ("TPU-v4", "tpu-v4"), ("TPU-v5p", "tpu-v5p"),
)  # fmt: skip
"""Beginning of the accelerator's name -> machine."""

DOMAINS = frozenset({"gb200", "gb300"})
"""Whose NVLink joins the devices of many hosts; of a domain's 72 as many are taken as divide the run evenly."""

MIXED = {"3 nodes V100-16GB + 1 node T4": "t4-and-v100"}
"""Runs on nodes of several kinds -> machine."""


def machine_of(accelerator: str) -> str:
    """Key of `machines()` for the name that a row gives.

    Raises:
        Refused: no such machine here, or several kinds of device in one run.
    """
    if accelerator in MIXED:
        return MIXED[accelerator]
    if "+" in accelerator or "node" in accelerator:
        raise Refused("devices of several kinds in one run")
    found = next((machine for start, machine in ACCELERATORS if accelerator.startswith(start)), "")
    if not found:
        raise Refused(f"device {accelerator or 'not stated'}")
    return found


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
    # PCIe boards of the same chip under 600 W: NVLink bridges join four (data sheet).
    found["h200-nvl"] = replace(found["h200"], name="h200-nvl", node=4)
    # AMP's mixed nodes count as what sets their pace.
    found["t4-and-v100"] = replace(found["t4"], name="t4-and-v100")
    return found


def _t4_and_v100() -> Cluster:
    """AMP's mixed nodes: one g4dn.12xlarge, three p3.8xlarge (4 devices, 10 Gb/s out). The T4 stand first: where the stages
    of a pipeline are uneven the first ones have fewest blocks.
    """
    t4, v100 = machines()["t4"], machines()["v100-p3"]
    slow = replace(v100.nic, bandwidth=1.25e9)
    return build(
        "t4-and-v100x16",
        [NodeGroup(t4.device, 4, 1, t4.inside, t4.nic, 1), NodeGroup(v100.device, 4, 3, v100.inside, slow, 1)],
    )


def cluster_of(row: Row) -> Cluster:
    """As many devices as the row used, in nodes as large as its own, with its NICs."""
    return _cluster(row.machine, row.devices, row.node, row.nic)


@cache
def _cluster(machine: str, devices: int, node: int, bandwidth: float) -> Cluster:
    """`node`: devices of a node; `bandwidth`: of a device's own NIC, 0 = as the preset's."""
    if machine == "t4-and-v100":
        return _t4_and_v100()
    preset = machines()[machine]
    node = min(node, devices)
    if machine in DOMAINS:
        node = max(n for n in range(1, preset.node + 1) if devices % n == 0)
    nic = replace(preset.nic, bandwidth=bandwidth) if bandwidth else preset.nic
    # Where a source states its NICs it does so per device; otherwise a smaller node has its share of the preset's.
    count = node if bandwidth else preset.nics * node / preset.node
    group = NodeGroup(preset.device, node, -(-devices // node), preset.inside, nic, count)
    return build(f"{machine}x{devices}", [group])
