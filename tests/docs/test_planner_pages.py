"""docs/planners is what docstrings, tags, settings and the tests' own cases give today."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from parts import planners as pages
from parts.pages import ROOT

from reference_cases import reference_cases

LITERATURE = [name for name in pages.own_planners() if name != "grid"]


def test_pages_are_up_to_date() -> None:
    old = [p for p, text in pages.rebuilt().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    names = ", ".join(p.relative_to(ROOT).as_posix() for p in old)
    assert not old, f"{names}: older than what they are made of, run docs/build.py planners"
    known = {f"{name}.md" for name in pages.own_planners()} | {"README.md"}
    assert {p.name for p in pages.FOLDER.glob("*.md")} == known


@pytest.mark.parametrize("name", sorted(pages.own_planners()))
def test_a_page_says_all_that_is_known_of_a_planner(name: str) -> None:
    kind = pages.own_planners()[name]
    text = (pages.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert kind.info.title in text and str(kind.info.year) in text
    assert all(part in text for part in kind.info.missing)
    assert all(f"`{key}`" in text for key in pages.parameters(kind))
    settings = text.partition("## Settings")[2].partition("## Reference")[0]
    lost = [row for row in settings.splitlines() if row.startswith("| `") and row.rstrip().endswith("|  |")]
    assert not lost, f"settings without a word of what they mean: {lost}"


@pytest.mark.parametrize("name", LITERATURE)
def test_methods_of_the_literature_are_held_against_values_of_others(name: str) -> None:
    own = [c for c in pages.cases() if c.planner == name]
    source = Path(pages.inspect.getfile(pages.own_planners()[name])).stem
    assert own or list(pages.held_tests(source)), f"no reference_cases and no test against a source for {name}"


def test_cases_belong_to_planners_and_are_used_by_their_test() -> None:
    declared = 0
    for file in sorted(pages.TESTS.rglob("test_*.py")):
        if file == Path(__file__):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        own = [
            node.targets[0].id
            for node in tree.body
            if isinstance(node, ast.Assign) and "reference_cases(" in ast.unparse(node.value)[:17]
            if isinstance(node.targets[0], ast.Name)
        ]
        loaded = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
        assert all(name in loaded for name in own), f"{file.name} declares cases that no test uses"
        declared += len(own)
    assert declared == len(pages.cases()) > 10
    assert {c.planner for c in pages.cases()} <= set(pages.own_planners())


def test_cases_are_read_as_the_test_has_them() -> None:
    text = (
        "N = [1, 2]\n"
        "X = reference_cases('gpipe', 'few', source='nobody', columns=('a', 'b'), rows=[\n"
        "    (N, [*range(3), 9]), pytest.param('x', 1.5, marks=pytest.mark.slow)])\n"
    )
    (found,) = pages.cases_of(text, "test_x.py")
    assert (found.planner, found.what, found.source, list(found.columns)) == ("gpipe", "few", "nobody", ["a", "b"])
    assert list(found.rows) == [([1, 2], [0, 1, 2, 9]), ("x", 1.5)]


def test_a_row_has_a_value_for_every_column() -> None:
    with pytest.raises(ValueError, match=r"gpipe, few: \(1, 2, 3\) has 3 values for 2 columns"):
        reference_cases("gpipe", "few", source="nobody", columns=("a", "b"), rows=[(1, 2, 3)])
