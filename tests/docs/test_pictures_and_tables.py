"""Pictures and tables of the pages are those that the program gives today, small, and readable without colour."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest
from parts import concepts, errors, schedules
from parts.pages import DOCS, with_table

from meshwright.cost.constants import families


@pytest.mark.parametrize("name", concepts.PICTURES)
def test_pictures_of_concepts_are_up_to_date(name: str) -> None:
    drawn = concepts.PICTURES[name]()
    assert (concepts.FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, "run docs/build.py concepts"
    assert concepts.PICTURES[name]() == drawn
    root = ET.fromstring(drawn)
    assert float(root.attrib["width"]) <= 400 and len(drawn) < 20_000
    words = "".join(root.itertext())
    assert "device" in words or re.search(r"\b0\b.*\b3\b", words, re.DOTALL), (
        "devices are told by words, not by colour alone"
    )
    low = [float(t.attrib["y"]) for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert max(low) < float(root.attrib["height"])
    assert f"concepts/{name}.svg" in (DOCS / "concepts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("picture", schedules.PICTURES, ids=lambda p: p.file)
def test_pictures_of_schedules_are_up_to_date(picture: schedules.Picture) -> None:
    text = (schedules.FOLDER / f"{picture.file}.svg").read_text(encoding="utf-8")
    assert text == schedules.drawing(picture), "run docs/build.py schedules"


def test_the_table_of_schedules_is_up_to_date() -> None:
    text = schedules.PAGE.read_text(encoding="utf-8")
    assert with_table(text, "schedules", schedules.table()) == text, "run docs/build.py schedules"


def test_intervals_and_constants_are_those_that_ship() -> None:
    text = (DOCS / "how-it-decides.md").read_text(encoding="utf-8")
    assert errors.decides(text) == text, "run docs/build.py errors"
    assert set(errors.NAMES) == set(families())


def test_the_tables_of_errors_are_those_that_ship() -> None:
    """Figures of one validation: what README, the page of the truth and every answer say agree."""
    from meshwright.report.error_model import error_model

    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    truth = (DOCS / "truth.md").read_text(encoding="utf-8")
    steps, mean = re.findall(r"([\d,]+) published steps .* ([\d.]+ %) mean error", error_model().provenance)[0]
    assert f"| **mean over sources** | {steps} |" in readme and f"**{mean}**" in readme
    assert f"Steps      {steps} of" in truth and f"Error      {mean} mean over sources" in truth
    for line in errors.intervals():
        if (found := re.fullmatch(r"\| (.+?) \| .* \| (\d+) \| (\d+) \| .*", line)) and "memory" not in line:
            assert re.search(rf"\({found[3]} sources?, {int(found[2]):,} steps?\)", truth), line


def test_how_far_stacks_differ_is_as_it_ships() -> None:
    text = (DOCS / "truth.md").read_text(encoding="utf-8")
    assert with_table(text, "spreads", errors.spreads()) == text, "run docs/build.py errors"


def test_figures_in_sentences_are_those_of_the_table() -> None:
    """What tests/validation expects of a validation stands in the pages as well."""
    expected = json.loads((DOCS.parent / "tests" / "validation" / "expected.json").read_text(encoding="utf-8"))
    parts = {
        part: [{"name": name, **row} for name, row in expected[part].items()] for part in expected if part != "whole"
    }
    answer, compared = {**expected["whole"], **parts}, 0
    for page in errors.PAGES:
        for found in errors.FIGURE.finditer(page.read_text(encoding="utf-8")):
            names = found["path"].split("/")
            if names[0] in expected["whole"] or (names[0] in parts and names[-1] in ("rows", "mape", "median")):
                assert errors.restated(found[0], answer) == found[0], f"{page}: run docs/build.py errors"
                compared += 1
    assert compared >= 10


def test_a_figure_keeps_its_sign_and_digits() -> None:
    answer = {"mape": 9.26, "sources": [{"source": "x", "median": -1234.5}], "rows": {"a": 7}}
    text = "9.9 %<!-- figure: mape -->, -12 %<!-- figure: sources/x/median --> of 1<!-- figure: rows/a -->; 9.9 %"
    made = errors.restated(text, answer)
    assert made.startswith("9.3 %<!-- figure: mape -->, -1,234 %<!-- figure: sources/x/median --> of 7<!-- figure")
    assert made.endswith("; 9.9 %") and errors.restated(made, answer) == made
    with pytest.raises(SystemExit, match="sources/y/mape: there is no y"):
        errors.restated("1 %<!-- figure: sources/y/mape -->", answer)


def test_a_table_is_put_between_its_marks_and_nothing_else_changes() -> None:
    page = "a\n<!-- table: x -->\nold \\1\n<!-- end -->\nb\n<!-- table: y -->\nkept\n<!-- end -->\n"
    made = with_table(page, "x", ["| \\1 |"])
    assert made == page.replace("old \\1", "| \\1 |")
    assert with_table(made, "x", ["| \\1 |"]) == made
