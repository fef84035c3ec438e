"""Reading JSON fields with errors that name file and field."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Hashable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from math import inf
from pathlib import Path
from sys import float_info
from typing import Any, TypeVar

from .._parsed import ENCODING, parsed_json
from ..errors import InputError

LARGEST, LARGEST_WHOLE = float_info.max, 1 << 53
"""Numbers, and whole numbers that floats tell apart."""
MOST = 1_000_000
"""Devices, or micro-batches of a step, that a problem may state."""
V = TypeVar("V", bound=Hashable)


def load(path: Path) -> Any:
    """The JSON document of a file, which may be compressed with xz or gzip.

    Raises:
        InputError: no such file, or no JSON.
    """
    try:
        content = path.read_bytes()
        content = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)(content)
        return parsed_json(content.decode(ENCODING))
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is no {path.suffix[1:]} file: {error}", where=str(path)) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text: {error.reason} at byte {error.start}", where=str(path)) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: no JSON, {error.msg}", where=str(path)) from error


class Fields:
    """One JSON object at `where` of `file`; every access checks the type."""

    def __init__(self, value: Any, file: str, where: str = "") -> None:
        if not isinstance(value, Mapping):
            raise InputError(f"{file}: {where or 'the document'} is {_shown(value)}, wanted an object", where=where)
        self.value, self.file, self.where = value, file, where

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number, not negative."""
        found = self._get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= LARGEST:
            raise self.wrong(name, found, "a finite number of 0 or more")
        return float(found)

    def whole(self, name: str, least: int = 0) -> int:
        """A whole number of at least `least`; 8.0 is one."""
        found = self._get(name, None)
        if isinstance(found, bool) or not isinstance(found, int | float) or found != found // 1 or found < least:
            raise self.wrong(name, found, f"a whole number of {least} or more")
        if found > LARGEST_WHOLE:
            raise self.wrong(name, found, "a whole number below 2^53")
        return int(found)

    def ident(self, name: str) -> int:
        """A whole number that names something; may be negative."""
        found = self._get(name, None)
        if isinstance(found, bool) or not isinstance(found, int):
            raise self.wrong(name, found, "a whole number")
        return found

    def flag(self, name: str, default: bool | None = None) -> bool:
        """true, false, 0 or 1."""
        found = self._get(name, default)
        if found not in (0, 1, True, False):
            raise self.wrong(name, found, "true or false")
        return bool(found)

    def text(self, name: str, default: str | None = None) -> str:
        found = self._get(name, default)
        if not isinstance(found, str):
            raise self.wrong(name, found, "a text")
        return found

    def rows(self, name: str) -> list[Fields]:
        """A list of objects."""
        found = self._get(name, None)
        if not isinstance(found, list):
            raise self.wrong(name, found, "a list")
        return [Fields(value, self.file, f"{self._at(name)}[{i}]") for i, value in enumerate(found)]

    def nested(self, name: str, default: Mapping[str, Any] | None = None) -> Fields:
        return Fields(self._get(name, default), self.file, self._at(name))

    def wrong(self, name: str, found: object, wanted: str) -> InputError:
        return InputError(
            f"{self.file}: {self._at(name)} is {_shown(found)}, wanted {wanted}", where=f"{self.file}: {self._at(name)}"
        )

    def _get(self, name: str, default: Any) -> Any:
        if name in self.value:
            return self.value[name]
        if default is None:
            raise InputError(f"{self.file}: {self._at(name)} is missing", where=f"{self.file}: {self._at(name)}")
        return default

    def _at(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "…"


def says(document: Mapping[str, Any], head: Iterable[str], of_nodes: Iterable[str]) -> bool:
    """Has a document any of a format's own fields, at its top or in any of its nodes? What it lacks is the reader's to say."""
    if any(name in document for name in head):
        return True
    nodes = document.get("nodes")
    wanted = set(of_nodes)
    return isinstance(nodes, list) and any(isinstance(node, Mapping) and wanted & set(node) for node in nodes)


def in_order(nodes: Iterable[V], edges: Iterable[tuple[V, V]], file: str) -> list[V]:
    """Topological order, the earliest in the file first among those that are ready.

    Raises:
        InputError: a cycle; names some of its nodes.
    """
    listed = list(nodes)
    place = {v: i for i, v in enumerate(listed)}
    after: dict[V, list[V]] = {v: [] for v in listed}
    waits = dict.fromkeys(listed, 0)
    for a, b in edges:
        after[a].append(b)
        waits[b] += 1
    ready = [place[v] for v in listed if not waits[v]]
    heapify(ready)
    found: list[V] = []
    while ready:
        v = listed[heappop(ready)]
        found.append(v)
        for b in after[v]:
            waits[b] -= 1
            if not waits[b]:
                heappush(ready, place[b])
    if len(found) < len(listed):
        cycle = _cycle(after, next(v for v in listed if waits[v]), {v for v in listed if waits[v]})
        raise InputError(f"{file}: edges form a cycle, {' → '.join(map(str, cycle))}: a graph of data has none")
    return found


def one_piece(nodes: Iterable[V], joined: Iterable[tuple[V, V]], file: str) -> None:
    """Refuse a graph in several pieces; nodes that must share a device count as joined.

    Raises:
        InputError: names some nodes of a smaller piece.
    """
    near: dict[V, list[V]] = {v: [] for v in nodes}
    for a, b in joined:
        near[a].append(b)
        near[b].append(a)
    found: list[list[V]] = []
    seen: set[V] = set()
    for start in near:
        if start in seen:
            continue
        seen.add(start)
        piece = [start]
        for v in piece:
            piece += (fresh := [w for w in dict.fromkeys(near[v]) if w not in seen])
            seen.update(fresh)
        found.append(piece)
    if len(found) > 1:
        found.sort(key=len, reverse=True)
        apart = [str(v) for v in found[1]]
        names = ", ".join(apart[:5]) + (f" and {len(apart) - 5} more" if len(apart) > 5 else "")
        word = f"node {names} is" if len(apart) == 1 else f"nodes {names} are"
        raise InputError(
            f"{file}: edges leave the graph in {len(found)} pieces, {word} joined with none of the largest: a model is in one",
            where=f"{file}: edges",
        )


def overrides_checked(
    file: str,
    *,
    devices: int | None = None,
    memory: float | None = None,
    bandwidth: float | None = None,
    micro_batches: int | None = None,
) -> None:
    """Refuse settings that no problem can have.

    Raises:
        InputError: names the setting.
    """
    for name, count in (("devices", devices), ("micro_batches", micro_batches)):
        if count is not None and count < 1:
            raise InputError(f"{file}: {name} is {count}, wanted a whole number of 1 or more", where=name)
        if count is not None and count > MOST:
            raise InputError(f"{file}: {name} is {count:,}, wanted at most {MOST:,}", where=name)
    if memory is not None and not memory > 0:
        raise InputError(f"{file}: memory is {memory:g}, wanted bytes above 0", where="memory")
    if bandwidth is not None and not 0 < bandwidth < inf:
        raise InputError(f"{file}: bandwidth is {bandwidth:g}, wanted finite bytes/s above 0", where="bandwidth")


def _cycle(after: Mapping[V, list[V]], start: V, left: set[V]) -> list[V]:
    """A cycle among nodes each of which waits for another of them."""
    before: dict[V, V] = {b: a for a in left for b in after[a] if b in left}
    path = [start]
    while before[path[-1]] not in path:
        path.append(before[path[-1]])
    at = path.index(before[path[-1]])
    return [path[at], *reversed(path[at:])]


def nodes_by_id(top: Fields, file: str) -> dict[int, Fields]:
    """The rows of "nodes", each under an id of its own.

    Raises:
        InputError: an id that stands twice, or no nodes.
    """
    nodes: dict[int, Fields] = {}
    for node in top.rows("nodes"):
        if nodes.setdefault(node.ident("id"), node) is not node:
            raise node.wrong("id", node.value["id"], "an id of its own")
    if not nodes:
        raise InputError(f"{file}: nodes is empty: a graph has at least one")
    return nodes
