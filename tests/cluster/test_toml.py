"""Cluster files: what they say becomes levels; every fault is a sentence with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshwright.cluster import describe, resolve
from meshwright.cluster._units import BadQuantity, quantity
from meshwright.cluster.toml import parse
from meshwright.errors import InputError

MIXED = """schema = 1
name = "mixed"
[device.h100]
[device.odd]
memory = "40 GiB"
bandwidth = "1 TB/s"
peak = { bf16 = "100 TFLOP/s", fp8 = "200 TFLOP/s" }

[link.nvlink]
bandwidth = "450 GB/s"
latency = "3.4 us"
[link.pcie]
bandwidth = "30 GB/s"
[link.ib]
bandwidth = "400 Gb/s"
latency = "14 us"
[[node]]
device = "h100"
devices = 8
count = 2
link = "nvlink"
uplink = "ib"
[[node]]
device = "odd"
devices = 2
count = 3
link = "pcie"
uplink = "ib"
uplinks = 1
[[connection]]
src = 0
dst = 16
link = "pcie"
"""


def _faults(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(text, "cluster.toml")
    return caught.value.message.split("\n")


def test_equal_nodes_give_sized_levels() -> None:
    text = MIXED[: MIXED.index("[[connection]]")]
    start = text.index('[[node]]\ndevice = "odd"')
    cluster = parse(text[:start], "c.toml")
    assert [(lv.name, lv.size, lv.uplink) for lv in cluster.levels] == [("nvlink", 8, 4e11), ("ib", 16, 0.0)]
    assert cluster.homogeneous and cluster.types[0].memory == resolve("h100x8").types[0].memory


def test_unequal_nodes_keep_their_own_links_and_uplinks() -> None:
    cluster = parse(MIXED, "c.toml")
    assert describe(cluster) == "16 H100-80GB + 6 odd, pcie 30 GB/s, nvlink 450 GB/s, ib 50 GB/s per GPU"
    assert [cluster.type_of(d).name for d in (0, 15, 16, 21)] == ["H100-80GB", "H100-80GB", "odd", "odd"]
    assert cluster.component(0, 16) == cluster.component(0, 17) != cluster.component(0, 18)
    assert cluster.component(1, 0) == cluster.component(1, 7) != cluster.component(1, 8)
    assert len({cluster.component(2, d) for d in range(22)}) == 1
    assert cluster.link_between[0, 16].bandwidth == 30e9


def test_outer_levels_group_nodes() -> None:
    racks = MIXED[: MIXED.index("[[node]]")] + (
        '[[node]]\ndevice = "h100"\ndevices = 8\ncount = 6\nlink = "nvlink"\nuplink = "ib"\n'
        '[[level]]\nname = "rack"\nnodes = 2\nlink = "ib"\nuplink = "800 Gb/s"\n[[level]]\nname = "spine"\nlink = "ib"\n'
    )
    cluster = parse(racks, "c.toml")
    assert [(lv.name, lv.size, lv.uplink) for lv in cluster.levels] == [
        ("nvlink", 8, 4e11),
        ("rack", 16, 1e11),
        ("spine", 48, 0.0),
    ]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            '"400 Gb/s"',
            '"400gbs"',
            'cluster.toml:15: link.ib.bandwidth = "400gbs" has no unit I know: '
            'write "400 Gb/s" (bits) or "50 GB/s" (bytes)',
        ),
        ("memory =", "mem =", 'cluster.toml:5: no field "mem" in [device.odd]: did you mean "memory"?'),
        (
            "uplinks =",
            "zzz =",
            'cluster.toml:29: no field "zzz" in [[node]] number 2: '
            "fields are device, devices, link, count, uplink, uplinks",
        ),
        (
            '"14 us"',
            '"inf us"',
            'cluster.toml:16: link.ib.latency = "inf us" is not finite: write "10 us" or "0.5 ms"',
        ),
        (
            '"40 GiB"',
            '"0 GiB"',
            'cluster.toml:5: device.odd.memory = "0 GiB" is not above 0: '
            'write "80 GiB" (2^30 bytes) or "80 GB" (10^9 bytes)',
        ),
        ("devices = 2", "devices = 0", "cluster.toml:25: node.1.devices = 0 must be at least 1"),
        ("count = 3", "count = 1.5", "cluster.toml:26: node.1.count = 1.5 must be a whole number"),
        (
            'link = "nvlink"',
            'link = "nvlnk"',
            'cluster.toml:21: node.0.link = "nvlnk" names no [link.…] of this file: did you mean "nvlink"?',
        ),
        ("dst = 16", "dst = 22", "cluster.toml:32: connection.0.dst = 22 is no device: there are 0 to 21"),
        ('bandwidth = "1 TB/s"\n', "", 'cluster.toml:4: [device.odd] has no "bandwidth", and odd is no preset'),
        ("schema = 1", "schema = 2", "cluster.toml:1: schema = 2 must be 1"),
        ("devices = 8\n", "devices =\n", "cluster.toml:19: no TOML: invalid value"),
        (
            'uplink = "ib"\n[[node]]',
            "[[node]]",
            'cluster.toml:17: [[node]] number 1 has no "uplink", so its devices reach no other node',
        ),
    ],
)
def test_a_fault_is_one_sentence_with_its_line(old: str, new: str, sentence: str) -> None:
    assert old in MIXED
    assert _faults(MIXED.replace(old, new, 1)) == [sentence]


def test_all_faults_are_listed_and_ten_at_most() -> None:
    several = MIXED.replace('"400 Gb/s"', '"400gbs"').replace("devices = 2", "devices = 0").replace("memory =", "mem =")
    assert [f.split(":")[1] for f in _faults(several)] == ["5", "15", "25"]
    many = MIXED + "".join(f'[link.l{i}]\nbandwidth = "{i}"\n' for i in range(12))
    found = _faults(many)
    assert len(found) == 11 and found[-1] == "and 2 more"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as text"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("400 Gb/s", "bandwidth", 50e9),
        ("50GB/s", "bandwidth", 50e9),
        ("80 GiB", "memory", 80 * 2**30),
        ("10 us", "latency", 1e-5),
        ("0.5 ms", "latency", 5e-4),
        ("989 TFLOP/s", "peak", 989e12),
        ("1.5e3 MB/s", "bandwidth", 1.5e9),
    ],
)
def test_quantities_say_bits_and_bytes_apart(text: str, kind: str, value: float) -> None:
    assert quantity(text, kind) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["", "GB/s", "5", "-3 GB/s", "nan GB/s", "5 parsecs", 7, None, True])
def test_no_quantity_without_number_and_unit(text: object) -> None:
    with pytest.raises(BadQuantity):
        quantity(text, "bandwidth")
