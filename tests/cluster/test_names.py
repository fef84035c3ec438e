"""Names, presets and how clusters are described."""

from __future__ import annotations

import os
import time

import pytest

from meshwright._spelling import distance, nearest
from meshwright.cluster import describe, local, presets, resolve
from meshwright.errors import InputError

FIGURES = {"memory", "bandwidth", "peak", "inside", "nic", "latency"}


def test_h100x64_is_eight_nodes_with_shared_nics() -> None:
    cluster = resolve("h100x64")
    assert (cluster.count, cluster.node_size, len(cluster.levels)) == (64, 8, 2)
    assert cluster.levels[0].uplink == 8 * 50e9
    assert cluster.levels[1].bandwidth == 400e9 / 8
    assert describe(cluster) == "8 nodes of 8 H100-80GB, NVLink 450 GB/s, InfiniBand 50 GB/s per GPU"


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_figure_of_every_preset_has_a_source(name: str) -> None:
    preset = presets()[name]
    assert set(preset.sources) >= FIGURES
    assert all(preset.sources.values())
    assert preset.device.memory > 2**33 and preset.device.bandwidth > 1e11
    assert max(preset.device.peak.values()) > 1e13


def test_presets_hold_what_is_promised() -> None:
    promised = "p100 v100 v100-dgx2 v100-p3 a100 a100-40 h100 h200 b200 b300 gb200 gb300 mi300x mi325x mi355x tpu-v4 tpu-v5p l4 a10g"
    assert set(presets()) >= set(promised.split())


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "h100x65",
            "h100x65: nodes of h100 hold 8, so the count is 1 to 8 or a multiple of 8; nearest are h100x64 and h100x72",
        ),
        (
            "gb200x100",
            "gb200x100: nodes of gb200 hold 72, so the count is 1 to 72 or a multiple of 72; "
            "nearest are gb200x72 and gb200x144",
        ),
        (
            "h10x64",
            'no cluster "h10x64": did you mean h100x64? ("meshwright clusters" lists 23; a file ends in .toml)',
        ),
        ("abacusx4", 'no cluster "abacusx4": "meshwright clusters" lists 23; a file ends in .toml'),
        ("h100", "h100 says no count: write h100x8 for one node"),
        ("missing.toml", 'no cluster file "missing.toml"'),
    ],
)
def test_names_that_cannot_be_are_refused_in_one_sentence(spec: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(spec)
    assert caught.value.message == sentence


def test_a_part_of_a_node_has_no_network() -> None:
    assert len(resolve("a100x4").levels) == 1
    assert len(resolve("a100x16").levels) == 2


def test_local_counts_cores_and_splits_memory() -> None:
    assert resolve("local").count == os.cpu_count()
    four = resolve("localx4")
    assert four.count == 4 and four.types[0].kind == "cpu"
    assert four.types[0].memory == pytest.approx(local(1).types[0].memory / 4)


def test_a_hundred_thousand_devices_cost_no_more_than_eight() -> None:
    presets()
    start = time.process_time()
    cluster = resolve("h100x100000")
    assert cluster.count == 100_000
    assert time.process_time() - start < 0.05
    assert not cluster.device and all(level.size for level in cluster.levels)


def test_distance_counts_edits() -> None:
    assert distance("kitten", "sitting") == 3
    assert distance("", "ab") == 2
    assert nearest("mem", ["memory", "bandwidth"]) == "memory"
    assert nearest("xyz", ["memory", "bandwidth"]) == ""
