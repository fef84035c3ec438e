"""The known word that a misspelt one was meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], limit: int = 2) -> str:
    """The known word at the smallest edit distance, at most `limit`, else the only one that `word` begins; "" if there is none."""
    known = list(known)
    scored = sorted((distance(word, k), k) for k in known if abs(len(k) - len(word)) <= limit)
    if scored and scored[0][0] <= limit:
        return scored[0][1]
    begun = [k for k in known if len(word) >= 3 and k.startswith(word)]
    return begun[0] if len(begun) == 1 else ""


def distance(a: str, b: str) -> int:
    """Edit distance (insert, delete, replace)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
