"""Line numbers of keys in a TOML text, which the standard parser does not give."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TABLE = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")

Path = tuple[str | int, ...]


def positions(text: str) -> Mapping[Path, int]:
    """Path of each table and key (("link", "ib", "bandwidth"), ("node", 0, "count")) -> its line, from 1."""
    found: dict[Path, int] = {(): 1}
    counts: dict[Path, int] = {}
    table: Path = ()
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            if quote in line:
                quote = ""
            continue
        if header := _TABLE.fullmatch(line):
            table = _header(header[2], header[1] == "[[", counts)
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            for stop in range(1, len(_parts(key[1])) + 1):
                found.setdefault(table + _parts(key[1])[:stop], number)
            rest = line[key.end() :]
            for mark in ('"""', "'''"):
                if rest.count(mark) == 1:
                    quote = mark
    return found


def line_of(found: Mapping[Path, int], path: Path) -> int:
    """Of the key, or of the closest table around it."""
    while path not in found:
        path = path[:-1]
    return found[path]


def _parts(dotted: str) -> Path:
    return tuple(p.strip("\"'") for p in _PART.findall(dotted))


def _header(dotted: str, array: bool, counts: dict[Path, int]) -> Path:
    path: Path = ()
    parts = _parts(dotted)
    for k, part in enumerate(parts):
        path += (part,)
        if array and k == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path += (counts[path],)
    return path
