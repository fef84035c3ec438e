"""The tables of docs/layouts.md are those that its functions give today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_tables_of_volumes_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("docs_layouts", DOCS / "layouts.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = (DOCS / "layouts.md").read_text(encoding="utf-8")
    assert made.rebuilt(text) == text
    assert all(f"| {scheme} |" in text for scheme in made.SCHEMES)
