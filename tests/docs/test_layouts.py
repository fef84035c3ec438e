"""The tables of docs/layouts.md are those that its functions give today."""

from __future__ import annotations

from parts import layouts


def test_the_tables_of_volumes_are_up_to_date() -> None:
    text = layouts.PAGE.read_text(encoding="utf-8")
    assert layouts.rebuilt(text) == text
    assert all(f"| {scheme} |" in text for scheme in layouts.SCHEMES)
