"""Whatever is wrong with a text, its parser says so in its own way."""

from __future__ import annotations

import json
import tomllib

import pytest

from meshwright._parsed import parsed_json, parsed_python, parsed_toml

DEEP = "[" * 100_000
DIGITS = "9" * 5_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "[1, " + DIGITS + "]", "", "{", "nul", "[1,]"])
def test_json(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        parsed_json(text)
    assert 0 <= raised.value.pos <= len(text)


@pytest.mark.parametrize("text", [f"a = {DEEP}", f"a = 1\nb = {DIGITS}", "a =", "a = 1\na = 2", "[x"])
def test_toml(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        parsed_toml(text)


@pytest.mark.parametrize(
    "text",
    [
        f"x = {'(' * 5_000}",
        f"x = {'-' * 50_000}1",
        "x = a" + ".a" * 5_000,
        f"x = {DIGITS}",
        "x = 'a\0b'",
        "x = (",
        "def",
    ],
)
def test_python(text: str) -> None:
    with pytest.raises(SyntaxError) as raised:
        parsed_python(text)
    assert raised.value.msg


def test_the_place_of_a_long_number_is_told() -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        parsed_json(f'{{"a": 1,\n "b": {DIGITS}}}')
    assert raised.value.lineno == 2
    with pytest.raises(tomllib.TOMLDecodeError, match="line 2"):
        parsed_toml(f"a = 1\nb = {DIGITS}")


def test_what_is_right_is_read() -> None:
    assert parsed_json('{"a": [1, 2.5]}') == {"a": [1, 2.5]}
    assert parsed_toml("a = [1]") == {"a": [1]}
    assert len(parsed_python("x = 1\ny = f(x)").body) == 2
