"""Measured rows: what is read, what is refused and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.validation.machines import cluster_of
from meshwright.validation.rows import read

HEADER = (
    "id,source,model,family,layers,hidden,heads,kv_heads,ffn,vocab,experts,seq_len,accel,devices,devices_per_node,"
    "precision,dp,zero,tp,pp,vpp,cp,ep,seq_par,mbs,gbs,recompute,offload,other,status,step_time_s,model_tflops_per_dev,mem_gib"
)
GOOD = [
    "r1",
    "vtrain-single",
    "gpt-x",
    "gpt",
    "24",
    "1024",
    "16",
    "16",
    "4096",
    "50257",
    "",
    "1024",
    "A100-SXM",
    "8",
    "8",
    "fp16",
    "2",
    "0",
    "2",
    "2",
    "",
    "1",
    "",
    "0",
    "4",
    "32",
    "full",
    "",
    "",
    "ok",
    "0.25",
    "",
    "",
]


def _file(folder: Path, *rows: list[str]) -> Path:
    (folder / "measured").mkdir()
    text = "\n".join([HEADER, *(",".join(row) for row in rows)])
    (folder / "measured" / "x.csv").write_text(text)
    return folder


def _but(**changes: str) -> list[str]:
    names = HEADER.split(",")
    row = list(GOOD)
    for name, value in changes.items():
        row[names.index(name)] = value
    return row


def test_a_row_becomes_settings(tmp_path: Path) -> None:
    table = read(_file(tmp_path, GOOD))
    assert not table.refused
    row = table.rows[0]
    assert (row.dp, row.tp, row.pp, row.micro_batch, row.batch, row.seconds) == (2, 2, 2, 4, 32, 0.25)
    assert row.model.vocab == 50432  # 50,257 padded to a multiple of 128 · tp
    assert (row.software, row.recompute, row.precision) == ("unfused-2022", "full", "float16")
    cluster = cluster_of(row)
    assert (cluster.count, cluster.types[0].name) == (8, "A100-80GB")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "moe"}, "a kind of model that no shape says: moe"),
        ({"accel": "Abacus-1"}, "device Abacus-1"),
        ({"accel": "RTX-3090+Titan-RTX"}, "devices of several kinds in one run"),
        ({"source": "nowhere"}, "nowhere: how its software ran is not stated"),
        (
            {"cp": "2", "dp": "1", "tp": "2", "pp": "2", "heads": "7", "hidden": "896"},
            "a ring of context parallelism over more parts than heads",
        ),
        ({"precision": ""}, "precision not stated"),
        ({"offload": "0.1"}, "activations offloaded to the host"),
        ({"other": "layers=12; layers=11"}, "layers of the stages do not add up"),
        ({"dp": "4"}, "degrees do not multiply to the devices"),
        ({"gbs": "33"}, "the batch does not split over replicas and micro-batches"),
        ({"step_time_s": ""}, "no step time"),
        ({"hidden": ""}, "no hidden"),
        ({"precision": "int4"}, "precision int4"),
        ({"other": "LoRA"}, "low-rank adaptation of unknown rank"),
        ({"vpp": "3", "gbs": "24"}, "interleaving needs a multiple of pp micro-batches"),
    ],
)
def test_what_a_plan_cannot_say_is_counted_by_reason(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    table = read(_file(tmp_path, _but(**changes)))
    assert not table.rows
    assert not table.failed
    assert table.refused == {reason: ["r1"]}


@pytest.mark.parametrize(
    ("other", "layers"),
    [
        ("layers=11 dp=1; layers=13 dp=1", (11, 13)),  # Mist
        ("layers per stage [12, 14] (embedding and head count as layers)", (11, 13)),  # Sailor
        ("stage boundaries over module indices: [0, 14, 30]", (11, 13)),  # AMP
        ("", ()),
    ],
)
def test_uneven_stages_are_read_as_each_source_counts(tmp_path: Path, other: str, layers: tuple[int, ...]) -> None:
    row = read(_file(tmp_path, _but(other=f'"{other}"'))).rows[0]
    assert row.layers == layers


@pytest.mark.parametrize(
    ("precision", "other", "expected"),
    [
        ("mxfp8", "", ("float8_e4m3fn", "block")),
        ("nvfp4", "", ("float4", "block")),
        ("fp8-cs", "", ("float8_e4m3fn", "current")),
        ("fp8", "rowwise", ("float8_e4m3fn", "row")),
        ("fp8", "", ("float8_e4m3fn", "delayed")),
        ("tf32", "", ("tfloat32", "")),
    ],
)
def test_low_precision_says_how_it_is_scaled(
    tmp_path: Path, precision: str, other: str, expected: tuple[str, str]
) -> None:
    row = read(_file(tmp_path, _but(precision=precision, other=other))).rows[0]
    assert (row.precision, row.scaling) == expected


def test_flops_that_count_hidden_scores_become_seconds(tmp_path: Path) -> None:
    """GPT of 24 layers, hidden 1,024, 1,024 tokens, by the formula of Narayanan et al. (SC'21, section 5.1, without recompute)."""
    claimed = _but(source="megatron-core-h100", recompute="", step_time_s="", model_tflops_per_dev="100", vocab="51200")
    row = read(_file(tmp_path, claimed)).rows[0]
    flops = 72 * 32 * 1024 * 24 * 1024**2 * (1 + 1024 / (6 * 1024) + 51200 / (12 * 24 * 1024))
    assert row.seconds == pytest.approx(flops / (8 * 100e12))


def test_nvlink_domains_hold_many_hosts(tmp_path: Path) -> None:
    of = {"devices_per_node": "4", "tp": "1", "pp": "2"}
    for n, (devices, domain) in enumerate({"128": 64, "72": 72, "8": 8}.items()):
        folder = tmp_path / str(n)
        folder.mkdir()
        dp = int(devices) // 2
        row = read(
            _file(folder, _but(**of, accel="GB200", devices=devices, dp=str(dp), mbs="1", gbs=str(2 * dp)))
        ).rows[0]
        cluster = cluster_of(row)
        assert (cluster.count, cluster.node_size) == (int(devices), domain)


def test_nodes_of_two_kinds_are_one_cluster(tmp_path: Path) -> None:
    mixed = _but(accel="3 nodes V100-16GB + 1 node T4", devices="16", devices_per_node="4", dp="4")
    row = read(_file(tmp_path, mixed)).rows[0]
    cluster = cluster_of(row)
    assert [cluster.type_of(d).name for d in (0, 3, 4, 15)] == ["T4-16GB", "T4-16GB", "V100-16GB", "V100-16GB"]
    assert row.flags == ("noisy",)


def test_duplicates_stand_once(tmp_path: Path) -> None:
    table = read(_file(tmp_path, GOOD, _but(id="r2"), _but(id="r3", step_time_s="0.26")))
    assert [r.id for r in table.rows] == ["r1", "r3"]
    assert table.refused == {"the same settings and time as another row": ["r2"]}


def test_a_step_that_ran_out_of_memory_stands_apart(tmp_path: Path) -> None:
    table = read(_file(tmp_path, GOOD, _but(id="r2", status="oom", step_time_s="", mbs="8")))
    assert [r.id for r in table.rows] == ["r1"]
    assert [(r.id, r.status, r.seconds) for r in table.failed] == [("r2", "oom", 0.0)]


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no measured rows in .*: give a folder of CSV files"):
        read(tmp_path)


def test_the_public_rows_are_many_and_of_many_machines(data_folder: Path) -> None:
    table = read(data_folder)
    assert len(table.rows) >= 1300
    assert {"a100", "h100", "v100"} <= set(Counter(r.device for r in table.rows))
    assert len({r.source for r in table.rows}) >= 17
    assert all(r.seconds > 0 and r.dp * r.ep * r.tp * r.pp * r.cp == r.devices for r in table.rows)
    assert all(r.seconds == 0 for r in table.failed)
