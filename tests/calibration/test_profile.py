"""Profiles on disk: written whole, read as they were, refused when damaged; what they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshwright.calibration import Machine, Measured, Profile, load, save
from meshwright.calibration.folder import file_of
from meshwright.calibration.profile import Local, to_toml
from meshwright.cluster.model import DeviceType
from meshwright.cost.constants import family, generation
from meshwright.errors import InputError
from meshwright.request import Request
from meshwright.stated import cluster_of, profile_of

CPU = DeviceType("CPU", "cpu", 1e9, {"float32": 9e10}, 2e10, family="cpu")
PROFILE = Profile(
    "local",
    "eager",
    Machine('AMD "EPYC"', "2.13.0", 4, 1, 2),
    Local(CPU, 4, 2, 7e8, 1e-4),
    {"cpu": {"gemm_32": 0.7, "sms": 1}},
    {"eager": {"fixed": 0.001}},
    {"product float32 8x8x8": Measured(1e-6, 0.9e-6, 1.2e-6, 11, 1.1e-6)},
    "measured",
)


def test_a_profile_comes_back_as_it_was_written(tmp_path: Path) -> None:
    save(PROFILE, tmp_path / "folder" / "local.toml")
    found = load(tmp_path / "folder" / "local.toml")
    assert to_toml(found) == to_toml(PROFILE)
    assert found.measured == PROFILE.measured and found.machine == PROFILE.machine
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["local.toml"]


def test_a_profile_changes_the_constants_that_it_names_and_no_others() -> None:
    assert PROFILE.family_table()["cpu"].gemm_32 == 0.7
    assert PROFILE.family_table()["cpu"].memory == family("cpu").memory
    assert isinstance(PROFILE.family_table()["cpu"].sms, int)
    assert PROFILE.generation().fixed == 0.001 and PROFILE.generation("modern") == generation("modern")
    assert PROFILE.cost("float32").software.fixed == 0.001


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("schema = 1", "schema = 2", "schema is 2, not 1"),
        ("gemm_32 = 0.7", "gemm_33 = 0.7", 'no constant "gemm_33" in cpu'),
        ("gemm_32 = 0.7", "gemm_32 = -1.0", "cpu.gemm_32 is -1.0, which is no positive number"),
        ("[family.cpu]", "[family.cpx]", '"cpx" is none of a100'),
        ("name = ", "nome = ", "KeyError: 'name'"),
    ],
)
def test_a_damaged_profile_says_what_is_wrong(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    file = tmp_path / "local.toml"
    file.write_text(to_toml(PROFILE).replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match="is no profile") as raised:
        load(file)
    assert sentence in raised.value.message


def test_a_profile_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='"meshwright calibrate" writes one'):
        load(tmp_path / "none.toml")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save(PROFILE, tmp_path / "file" / "local.toml")


def test_the_machine_that_was_measured_is_what_local_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWRIGHT_PROFILES", str(tmp_path))
    assert profile_of(Request("gpt2", "localx4")) is None
    save(PROFILE, file_of("local"))
    request = Request("gpt2", "localx4")
    found = profile_of(request)
    assert found is not None
    cluster = cluster_of(request, found)
    assert cluster.count == 4 and cluster.types[0].peak == CPU.peak
    assert cluster.levels[0].bandwidth == 7e8 and cluster.levels[0].latency == 1e-4
    cores = os.cpu_count() or 1
    assert cluster.at_once == (cores if cores < 4 else 0)
    assert profile_of(Request("gpt2", "h100x8")) is None


def test_a_profile_by_name_prices_any_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWRIGHT_PROFILES", str(tmp_path))
    save(Profile("ours", "modern", families={"h100": {"gemm_16": 0.5}}), file_of("ours"))
    found = profile_of(Request("gpt2", "h100x8", profile="ours"))
    assert found is not None and found.family_table()["h100"].gemm_16 == 0.5
    assert cluster_of(Request("gpt2", "h100x8", profile="ours"), found).count == 8
