"""Texts that others wrote, parsed: whatever is wrong with one is its parser's own error, which callers expect, and no other.

The parsers of the standard library raise ValueError for whole numbers of more than 4,300 digits, and RecursionError or
MemoryError for brackets in brackets without end. A mark of the byte order at the start of a file is no part of its text.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
import warnings
from typing import Any

ENCODING = "utf-8-sig"
"""UTF-8 with or without the mark that some editors begin files with."""
_DEEP = "brackets in brackets without end"
_LONG = "a whole number of more than 4,300 digits"
_DIGITS = re.compile(r"\d{4301,}")
_DEEPEST = 200
"""Levels of a syntax tree: a fifth of what Python recurses, since unparsing takes several calls a level."""


def parsed_json(text: str, **hooks: Any) -> Any:
    """As json.loads. Raises json.JSONDecodeError only, and what the hooks raise."""
    try:
        return json.loads(text, **hooks)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError(_DEEP, text, 0) from None
    except ValueError:
        place = _DIGITS.search(text)
        raise json.JSONDecodeError(_LONG, text, place.start() if place else 0) from None


def parsed_toml(text: str) -> dict[str, Any]:
    """As tomllib.loads. Raises tomllib.TOMLDecodeError only."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise tomllib.TOMLDecodeError(f"{_DEEP} (at line 1, column 1)") from None
    except ValueError:
        place = _DIGITS.search(text)
        line = text.count("\n", 0, place.start()) + 1 if place else 1
        raise tomllib.TOMLDecodeError(f"{_LONG} (at line {line}, column 1)") from None


def parsed_python(text: str) -> ast.Module:
    """As ast.parse. Raises SyntaxError only; of what is nested deeper than those who walk a tree can go, too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a text that is only read
            tree = ast.parse(text)
    except SyntaxError:
        raise
    except (RecursionError, MemoryError):
        raise SyntaxError(_DEEP, ("", 1, 1, "")) from None
    except ValueError as error:  # a character that no source may hold
        raise SyntaxError(str(error), ("", 1, 1, "")) from None
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tree
    raise SyntaxError(_DEEP, ("", 1, 1, ""))
