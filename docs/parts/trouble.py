"""The entries of docs/trouble.md, for the test that holds them against every sentence of the source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from .pages import DOCS
from .sentences import HOLE, Sentence

PAGE = DOCS / "trouble.md"
PLACE = "src/meshwright/"
"""How an entry names a folder of the package."""
ENTRY = re.compile(r"^### (?P<title>.+)\n(?P<body>(?:(?!^##).*\n)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    title: str
    patterns: tuple[str, ...]
    """Sentences with "…" for any text."""
    cause: str
    remedy: str

    places: tuple[str, ...]
    """Folders of the package all of whose sentences of bad or unknown input belong here: readers of files of one kind."""

    def covers(self, said: Sentence) -> bool:
        placed = said.kind in ("InputError", "Unsupported") and said.file.startswith(self.places or ("-",))
        return placed or any(matches(pattern, said.text) for pattern in self.patterns)


def matches(pattern: str, sentence: str) -> bool:
    return _expression(pattern).fullmatch(sentence) is not None


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split(HOLE))), re.DOTALL)


def entries(text: str) -> list[Entry]:
    found = []
    for entry in ENTRY.finditer(text):
        quoted = " ".join(line[1:] for line in entry["body"].splitlines() if line.startswith(">"))
        said = dict(re.findall(r"\*\*(Cause|Remedy)\.\*\*\s+(.+?)(?=\n\*\*|\n\n|\Z)", entry["body"], re.DOTALL))
        spans = re.findall(r"`([^`]+)`", quoted)
        patterns = tuple(s for s in spans if not s.startswith(PLACE))
        places = tuple(s.removeprefix(PLACE) for s in spans if s.startswith(PLACE))
        found.append(Entry(entry["title"], patterns, said.get("Cause", ""), said.get("Remedy", ""), places))
    return found
