"""Fitted values in the tables that ship: figures change, everything else stays; what ships is what was fitted."""

from __future__ import annotations

import shutil
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from meshwright.cost import constants
from meshwright.validation.parameters import PARAMETERS, shipped, tables, targets
from meshwright.validation.tables import rewrite, rewritten

TABLE = """# c
[a]
x = 1.0  # why
y = 2.0

[b]
base = "a"    # note
z = 3.0

[c]
base = "b"
"""


def test_figures_change_and_comments_and_order_stay() -> None:
    found = rewritten(TABLE, {"c": {"x": 1.5, "y": 4.0}, "b": {"x": 1.5, "y": 4.0}, "a": {"x": 1.5}})
    assert found == TABLE.replace("x = 1.0", "x = 1.5").replace("z = 3.0\n", "z = 3.0\ny = 4\n")
    assert rewritten(TABLE, {"a": {"x": 1.0}, "b": {"x": 1.0}}) == TABLE


def test_a_section_that_stays_when_its_base_moves_says_so() -> None:
    found = tomllib.loads(rewritten(TABLE, {"a": {"x": 5.0}, "b": {"x": 1.0}, "c": {"x": 1.0}}))
    assert (found["a"]["x"], found["b"]["x"], "x" in found["c"]) == (5.0, 1.0, False)


def test_shipping_puts_every_parameter_where_the_model_reads_it(tmp_path: Path) -> None:
    for file in ("families.toml", "software.toml"):
        with resources.as_file(resources.files(constants).joinpath(file)) as path:
            shutil.copy(path, tmp_path / file)
    values = {name: value * 0.9 for name, value in shipped().items()}
    rewrite(values, tmp_path)
    tables_of = dict(zip(("family", "software"), tables(values)))
    for kind, file in (("family", "families.toml"), ("software", "software.toml")):
        text = tomllib.loads((tmp_path / file).read_text(encoding="utf-8"))
        for parameter in PARAMETERS:
            for name, field in [(n, f) for k, n, f in targets(parameter) if k == kind]:
                where = name
                while field not in text[where]:  # a section over its base over …
                    where = text[where]["base"]
                wanted = getattr(tables_of[kind][name], field)
                assert text[where][field] == pytest.approx(wanted, rel=1e-3), (name, field)
