"""The entries of docs/trouble.md, for the test that holds them against every sentence of the source."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .pages import DOCS
from .sentences import HOLE

PAGE = DOCS / "trouble.md"
ENTRY = re.compile(r"^### (?P<title>.+)\n(?P<body>(?:(?!^##).*\n)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    title: str
    patterns: tuple[str, ...]
    """Sentences with "…" for any text."""
    cause: str
    remedy: str

    def covers(self, sentence: str) -> bool:
        return any(matches(pattern, sentence) for pattern in self.patterns)


def matches(pattern: str, sentence: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split(HOLE))), sentence, re.DOTALL) is not None


def entries(text: str) -> list[Entry]:
    found = []
    for entry in ENTRY.finditer(text):
        quoted = " ".join(line[1:] for line in entry["body"].splitlines() if line.startswith(">"))
        said = dict(re.findall(r"\*\*(Cause|Remedy)\.\*\*\s+(.+?)(?=\n\*\*|\n\n|\Z)", entry["body"], re.DOTALL))
        patterns = tuple(re.findall(r"`([^`]+)`", quoted))
        found.append(Entry(entry["title"], patterns, said.get("Cause", ""), said.get("Remedy", "")))
    return found
