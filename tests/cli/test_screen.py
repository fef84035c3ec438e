"""Width, colour, encoding, help, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from in_process import Command

from meshwright.cli._epilogs import EPILOG
from meshwright.cli.options import parse_allow, parse_fix


def in_shell(*args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "meshwright", *args], capture_output=True, env={**os.environ, **env}, timeout=60
    )


@pytest.mark.parametrize("command", ["", *EPILOG])
def test_every_help_ends_with_two_real_examples(meshwright: Command, command: str) -> None:
    args = [] if command in ("", "meshwright") else [command]
    done = meshwright(*args, "--help")
    assert done.code == 0
    examples = [line.strip() for line in done.out.splitlines()[-2:]]
    assert all(e.startswith("meshwright ") for e in examples)


def test_the_version_is_that_of_the_package(meshwright: Command) -> None:
    from importlib.metadata import version

    assert meshwright("--version").out == f"meshwright {version('meshwright')}\n"


def test_columns_sets_the_width(meshwright: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = meshwright("plan", "gpt2", "-c", "a100x8", "--batch", "64", "--seq", "256")
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("env", "option", "colored"),
    [({}, "auto", False), ({"FORCE_COLOR": "1"}, "auto", True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "auto", False),
     ({}, "always", True), ({"FORCE_COLOR": "1"}, "never", False)],
)  # fmt: skip
def test_colour_follows_option_then_environment(
    meshwright: Command, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], option: str, colored: bool
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in meshwright("models", "--color", option).out) == colored


def test_an_output_that_is_not_utf_8_gets_plain_signs() -> None:
    done = in_shell("clusters", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    done.stdout.decode("ascii")
    assert b"8 x InfiniBand" in done.stdout


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m meshwright models | head -n 1", shell=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == b""


def test_fix_and_allow_are_read() -> None:
    assert parse_fix("tp=8,pp=1") == {"tp": 8, "pp": 1}
    assert parse_allow(["recompute=none,full", "schedule=1f1b"]) == {
        "recompute": ("none", "full"), "schedule": ("1f1b",),
    }  # fmt: skip


@pytest.mark.parametrize("command", ["models", "clusters", "planners"])
def test_listings_speak_json(meshwright: Command, command: str) -> None:
    import json

    answer = json.loads(meshwright(command, "--json").out)
    assert answer["schema"] == f"meshwright.{command}/1" and answer[command]


def test_a_page_gives_the_source_of_every_figure(meshwright: Command) -> None:
    page = meshwright("clusters", "h100").out
    for figure in ("memory", "bandwidth", "peak", "inside", "nic"):
        assert f"source of {figure}" in page


@pytest.mark.parametrize("columns", [50, 80, 100])
@pytest.mark.parametrize("command", ["models", "clusters", "planners"])
def test_a_listing_is_wrapped_and_loses_no_word(
    meshwright: Command, monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    wide = meshwright(command).out.split()
    monkeypatch.setenv("COLUMNS", str(columns))
    done = meshwright(command).out
    assert sorted(done.split()) == sorted(wide)
    table = done.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= max(columns, 70)


def test_what_a_planner_lacks_is_listed_and_on_its_page(meshwright: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshwright.planners import registry

    class Half(registry.planners()["gpipe"]):  # type: ignore[misc]
        info = replace(registry.planners()["gpipe"].info, name="half", missing=("no replicas yet", "no schedule"))

    monkeypatch.setattr(registry, "planners", lambda: {"half": Half})
    monkeypatch.setenv("COLUMNS", "200")
    listed = meshwright("planners").out
    assert "unfinished: no replicas yet" in listed and "unfinished: no schedule" in listed
    page = " ".join(meshwright("planners", "half").out.split())
    assert "unfinished no replicas yet; no schedule" in page
