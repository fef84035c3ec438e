from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from meshwright.report.error_model import error_model, to_toml

VALIDATED = {
    "steps": 1341, "error": 0.101, "sources": [{}, {}], "pair_error": 0.0821, "pair_order": 0.862, "pairs": 3234, "within": {"h100": 0.1507},
    "steps_by_device": {"h100": {"steps": 128, "sources": 8}},
}  # fmt: skip


def test_the_file_is_made_from_a_validation() -> None:
    table = tomllib.loads(to_toml(VALIDATED))
    assert table["pairs"]["within"] == 0.082
    assert table["family"]["h100"] == {"share": 80, "within": 0.151, "steps": 128, "sources": 8}
    assert table["provenance"].startswith("1,341 published steps of 2 sources")


def test_a_family_with_measured_steps_says_how_far_they_were_off() -> None:
    model = error_model()
    found = model.families["h100"]
    assert model.sentence("h100", "H100") == (
        f"80 % of held-out H100 steps fell within {100 * found.within:.0f} % of the prediction "
        f"({found.sources} sources, {found.steps} steps)."
    )


def test_a_family_without_measured_steps_says_so() -> None:
    assert error_model().within("no-such-chip") is None
    assert error_model().sentence("no-such-chip", "X1").startswith("No measured steps on X1 stand behind these figures")


@pytest.mark.slow
def test_the_shipped_figures_are_those_of_the_cost_model_as_it_is(data_folder: Path) -> None:
    from meshwright.cli.commands.prove import validate_object
    from meshwright.validation import validate

    shipped = tomllib.loads(files("meshwright.report").joinpath("error_model.toml").read_text(encoding="utf-8"))
    now = tomllib.loads(to_toml(validate_object(validate(data_folder))))
    assert shipped["pairs"]["within"] == pytest.approx(now["pairs"]["within"], abs=0.005)
    assert {k: v["within"] for k, v in shipped["family"].items()} == pytest.approx(
        {k: v["within"] for k, v in now["family"].items()}, abs=0.01
    )
