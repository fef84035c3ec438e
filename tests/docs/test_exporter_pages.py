"""docs/exporters says of every target what the target itself says."""

from __future__ import annotations

import pytest
from parts import exporters as pages
from parts.pages import ROOT

from meshwright.export import registry
from meshwright.export.rows import ROWS


def test_every_target_has_a_page_and_a_column() -> None:
    index = (pages.FOLDER / "README.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in registry.names():
        kind = registry.kind(name)
        text = (pages.FOLDER / f"{name}.md").read_text(encoding="utf-8")
        assert f"[{kind.title}]({name}.md)" in index, "run docs/build.py exporters"
        assert f"(docs/exporters/{name}.md)" in readme, "run docs/build.py exporters"
        lost = [c.name for c in registry.load(name).conditions() if f"- {c.name}" not in text]
        assert not lost, f"{name}: {lost}: run docs/build.py exporters"
        assert all(version in text for version in kind.versions)
        assert all(f"| {row.words} |" in text for row in ROWS)
    assert {p.stem for p in pages.FOLDER.glob("*.md")} == {*registry.names(), "README"}
    assert all(f"| {row.words} |" in index for row in ROWS)


@pytest.mark.slow
def test_pages_are_up_to_date() -> None:
    old = [p for p, text in pages.rebuilt().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    names = ", ".join(p.relative_to(ROOT).as_posix() for p in old)
    assert not old, f"{names}: older than what they are made of, run docs/build.py exporters"
