"""The command calibrate: files of steps, their faults, and the profile that plans use afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import Command

STEPS = """schema = 1
[common]
model = "gpt2"
cluster = "h100x8"
batch = 128
[[step]]
dp = 8
micro_batch = 8
step_seconds = 0.30
memory = "40 GiB"
[[step]]
dp = 4
tp = 2
step_seconds = 0.50
[[step]]
dp = 2
tp = 4
micro_batch = 4
step_seconds = 0.55
"""


def test_three_steps_become_a_profile_that_simulate_uses(meshwright: Command, tmp_path: Path) -> None:
    Path("steps.toml").write_text(STEPS, encoding="utf-8")
    done = meshwright("calibrate", "--from-steps", "steps.toml", "-o", "./ours.toml", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["schema"] == "meshwright.calibrate/1" and len(found["steps"]) == 3
    assert found["steps"][0]["measured_bytes"] == 40 * 2**30
    first = found["steps"][0]
    layout = ("simulate", "gpt2", "-c", "h100x8", "--batch", "128", "--dp", "8", "--micro-batch", "8", "--json")
    plain = json.loads(meshwright(*layout).out)["candidates"][0]["step_s"]
    own = json.loads(meshwright(*layout, "--profile", "./ours.toml").out)["candidates"][0]["step_s"]
    assert plain == pytest.approx(first["before_s"]) and own == pytest.approx(first["after_s"], rel=1e-4)
    assert abs(own - 0.30) < abs(plain - 0.30)


def test_a_plan_remembers_its_profile(meshwright: Command) -> None:
    Path("steps.toml").write_text(STEPS, encoding="utf-8")
    assert meshwright("calibrate", "--from-steps", "steps.toml", "-o", "./ours.toml", "-q").code == 0
    done = meshwright(
        "plan", "gpt2", "-c", "h100x8", "--batch", "128", "--profile", "./ours.toml", "-o", "out/folder", "-q", "--json"
    )
    assert done.code == 0, done.err
    assert 'profile = "../../ours.toml"' in Path("out/folder/problem.toml").read_text(encoding="utf-8")
    shown = meshwright("simulate", "out/folder", "--json")
    assert json.loads(shown.out)["candidates"][0]["step_s"] == pytest.approx(
        json.loads(done.out)["candidates"][0]["step_s"], rel=1e-6
    )


WHOSE = 'the profile "ours"'


def test_no_interval_of_the_constants_that_ship_stands_beside_what_others_predict(meshwright: Command) -> None:
    Path("ours.toml").write_text(
        'schema = 1\nname = "ours"\ngeneration = "modern"\n[family.h100]\ngemm_16 = 0.6\n', encoding="utf-8"
    )
    asked = ("gpt2", "-c", "h100x8", "--batch", "64", "--tokens", "1e9", "--profile", "./ours.toml")
    done = meshwright("plan", *asked, "-o", "own")
    assert f"No interval: seconds are predicted by the constants of {WHOSE}" in " ".join(done.out.split())
    assert "steps lie" not in done.out and "held-out" not in done.out
    html = Path("own/report.html").read_text(encoding="utf-8")
    assert "No interval: seconds are predicted by" in html and "% interval" not in html
    answer = json.loads(meshwright("show", "own", "--json").out)
    assert answer["error_model"]["others"] == {"step": WHOSE}
    assert (answer["error_model"]["low"], answer["error_model"]["steps"]) == (None, 0)
    assert {c["step_low_s"] for c in answer["candidates"]} == {None}
    assert answer["candidates"][0]["memory_low_bytes"] is not None
    found = json.loads(
        meshwright(
            "compare", *asked[:5], "--profile", "./ours.toml", "--planners", "grid,megatron", "-o", "both", "--json"
        ).out
    )
    assert found["error_model"]["others"] == {"step": WHOSE}
    assert {p["step_high_s"] for p in found["planners"]} == {None}
    shipped = json.loads(meshwright("plan", *asked[:5], "-o", "shipped", "--json").out)
    assert shipped["error_model"]["others"] == {} and shipped["candidates"][0]["step_low_s"] > 0


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("dp = 8", "db = 8", 'steps.toml:7: no field "db" in [[step]]: did you mean "dp"?'),
        (
            "step_seconds = 0.50",
            "step_seconds = -1.0",
            "steps.toml:14: step_seconds = -1.0: input should be greater than 0",
        ),
        ("step_seconds = 0.50\n", "", 'steps.toml:11: [[step]] has no "step_seconds"'),
        ('"40 GiB"', '"40"', 'steps.toml:10: memory = "40" has no unit i know'),
        ('model = "gpt2"\n', "", 'steps.toml: [[step]] number 1 has no "model", and [common] has none either'),
        (
            "dp = 8",
            "dp = 16",
            "steps.toml: [[step]] number 1: dp 16 = 16 devices, which does not divide the 8 of h100x8",
        ),
        (
            "schema = 1",
            'schema = 1\nsoftware = "modem"',
            'steps.toml:2: no software generation "modem": did you mean "modern"?',
        ),
        ("schema = 1", "schema = 1 1", "steps.toml: not TOML"),
    ],
)
def test_faults_of_a_file_are_said_with_their_line(meshwright: Command, old: str, new: str, sentence: str) -> None:
    Path("steps.toml").write_text(STEPS.replace(old, new, 1), encoding="utf-8")
    done = meshwright("calibrate", "--from-steps", "steps.toml", "-o", "./ours.toml")
    assert done.code == 2
    assert sentence in done.err
    assert not Path("ours.toml").exists()


def test_a_file_that_is_not_there(meshwright: Command) -> None:
    done = meshwright("calibrate", "--from-steps", "none.toml")
    assert (done.code, done.err) == (2, "meshwright: no file none.toml: docs/calibrate.md shows one with three steps\n")


def test_the_steps_are_not_overwritten(meshwright: Command) -> None:
    Path("steps.toml").write_text(STEPS, encoding="utf-8")
    done = meshwright("calibrate", "--from-steps", "steps.toml", "-o", "./steps.toml")
    assert done.code == 2 and "--out ./steps.toml is the file of the steps" in done.err


def test_a_profile_that_nobody_made(meshwright: Command) -> None:
    done = meshwright("simulate", "gpt2", "-c", "h100x8", "--dp", "8", "--profile", "ours")
    assert done.code == 2
    assert '"meshwright calibrate" writes one' in done.err
