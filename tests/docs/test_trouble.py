"""docs/trouble.md explains every sentence that an error can say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from parts import sentences as source
from parts import trouble
from parts.pages import PACKAGE

MOST = 40
"""Sentences that one pattern may cover; one that covers more says too little of any."""


@pytest.fixture(scope="module")
def said() -> list[source.Sentence]:
    return source.sentences(PACKAGE)


@pytest.fixture(scope="module")
def entries() -> list[trouble.Entry]:
    return trouble.entries(trouble.PAGE.read_text(encoding="utf-8"))


def test_every_sentence_of_an_error_has_an_entry(said: list[source.Sentence], entries: list[trouble.Entry]) -> None:
    lost = [f"  {s.file}: {s.text}" for s in said if not any(e.covers(s) for e in entries)]
    assert not lost, (
        'docs/trouble.md explains no such error: write the sentence as `code`, "…" for what varies, below the ### entry whose cause '
        "and remedy it has, or add an entry with both:\n" + "\n".join(lost)
    )


def test_every_pattern_covers_a_sentence(said: list[source.Sentence], entries: list[trouble.Entry]) -> None:
    texts = {s.text for s in said}
    dead = [f"  {e.title}: {p}" for e in entries for p in e.patterns if not any(trouble.matches(p, t) for t in texts)]
    dead += [f"  {e.title}: {p}" for e in entries for p in e.places if not any(s.file.startswith(p) for s in said)]
    assert not dead, "docs/trouble.md explains what no error says any more: take it out\n" + "\n".join(dead)


def test_no_pattern_is_so_wide_that_it_explains_nothing(
    said: list[source.Sentence], entries: list[trouble.Entry]
) -> None:
    texts = {s.text for s in said}
    for entry in entries:
        for pattern in entry.patterns:
            assert source.letters(pattern) >= source.FIXED, (entry.title, pattern)
            assert sum(trouble.matches(pattern, t) for t in texts) <= MOST, (entry.title, pattern)


def test_every_entry_says_cause_and_remedy(entries: list[trouble.Entry]) -> None:
    assert len(entries) > 40
    for entry in entries:
        assert len(entry.cause.split()) >= 5 and len(entry.remedy.split()) >= 4, entry.title
        assert entry.patterns, entry.title


def test_sentences_are_found_behind_names_choices_and_helpers(tmp_path: Path) -> None:
    (tmp_path / "errors.py").write_text(
        "class MeshwrightError(Exception): ...\nclass InputError(MeshwrightError): ...\nclass Lost(InputError): ...\n"
    )
    (tmp_path / "words.py").write_text(
        "TEXT = 'a constant of the module'\n"
        "def why(flag, x):\n"
        "    if flag:\n        return f'the value {x} is returned'\n    return None\n"
        "def fault(text):\n    raise InputError(f'{text}')\n"
        "def use(x, near):\n"
        "    problem = f'a local name {x}'\n"
        "    if x: raise InputError(problem)\n"
        "    if near: raise errors.Lost(TEXT)\n"
        "    fault('passed to a helper')\n"
        "    reasons = []\n"
        "    reasons.append(f'appended with {near}')\n"
        "    raise InputError(why(True, x) or reasons[0])\n"
        "def choice(x):\n"
        "    raise InputError('begins ' + ('like this' if x else 'like that') + f', ends {x}')\n"
    )
    found = {s.text: s.kind for s in source.sentences(tmp_path)}
    assert found == {
        "a local name …": "InputError",
        "a constant of the module": "Lost",
        "passed to a helper": "InputError",
        "the value … is returned": "InputError",
        "appended with …": "InputError",
        "begins like this, ends …": "InputError",
        "begins like that, ends …": "InputError",
    }


def test_every_raise_with_words_of_its_own_is_read(said: list[source.Sentence]) -> None:
    """What is not found hands on the words of another error, of the system or of Python."""
    kinds = {s.kind for s in said}
    assert {"InputError", "Unsupported", "Infeasible", "CaptureError", "ExecutionError"} <= kinds
    found = {s.file for s in said}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and call.args and getattr(call.func, "id", "") in kinds:
                texts = [
                    n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                ]
                own = sum(map(source.letters, texts))
                assert f"{name}:{call.lineno}" in found or own < source.FIXED, (
                    f"{name}:{call.lineno}: {ast.unparse(call)}"
                )
