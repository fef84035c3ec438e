"""Pieces of sentences and files that several targets share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .._words import count


def neighbours(n: int, each: int) -> str:
    """The multiples of `each` next to `n`: "960 or 1,024"."""
    below = n // each * each
    return f"{count(below)} or {count(below + each)}" if below else count(each)


def divisors_near(n: int, wanted: int) -> str:
    """Divisors of `n` next to `wanted`: "2 or 4"."""
    found = [d for d in range(1, n + 1) if n % d == 0]
    below, above = [d for d in found if d < wanted], [d for d in found if d > wanted]
    return " or ".join(count(d) for d in (*below[-1:], *above[:1]))


def plain_name(text: str) -> str:
    """A model's name by which it is known whatever stands between its parts: "llama-3.1-8b" and "Llama3.1-8B" are one."""
    return "".join(c for c in text.lower() if c.isalnum())


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1, "a.c": 2} -> {"a": {"b": 1, "c": 2}}."""
    found: dict[str, Any] = {}
    for path, value in options.items():
        *folders, last = path.split(".")
        here = found
        for name in folders:
            here = here.setdefault(name, {})
        here[last] = value
    return found


def line_of(text: str, word: str) -> int:
    """The first line, from 1, that holds a word as a whole; 1 if none does."""
    found = re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", text)
    return text.count("\n", 0, found.start()) + 1 if found else 1
