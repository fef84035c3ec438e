"""Captured graphs on disk, so that a model is traced once.

The key says everything that a graph depends on: the configuration or the user's source text, batch, sequence, dtype,
scaling, and the versions of torch, transformers and this package. Nothing is ever looked up by a file's time or name.
A folder that cannot be written, and a file that cannot be read, cost a second capture and nothing else.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import InputError
from .ir import Graph
from .zoo import Shrink

_PACKAGES = ("torch", "transformers", "meshwright")


def folder() -> Path:
    """MESHWRIGHT_CACHE, else the user's cache folder of the platform."""
    if chosen := os.environ.get("MESHWRIGHT_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "meshwright"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "meshwright" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshwright"


def key(identity: Mapping[str, object], batch: int, seq: int, dtype: str, shrink: Shrink | None) -> str:
    """Hexadecimal digest of all that the captured graph depends on."""
    asked = {"batch": batch, "seq": seq, "dtype": dtype, "shrink": asdict(shrink) if shrink else None}
    return _digest({"model": identity, "asked": asked, "versions": versions()})


def facts_key(identity: Mapping[str, object]) -> str:
    return _digest({"model": identity, "facts": 1, "versions": versions()})


def versions() -> Mapping[str, str]:
    """Of the packages that shape a graph, without importing them; this package's own sources count as one more."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "sources": _own_sources()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def _own_sources() -> str:
    """Digest of this folder: a change of a rule between two releases must not meet graphs of the rule before."""
    content = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        content.update(file.name.encode() + file.read_bytes())
    return content.hexdigest()


def load(key: str) -> Graph | None:
    """The graph saved under this key; None if there is none, or none that can be read."""
    from .serial import from_json

    try:
        with gzip.open(_graph_file(key)) as file:
            return from_json(json.loads(file.read()))
    except (OSError, EOFError, ValueError, zlib.error, InputError, TypeError, AttributeError):
        return None


def save(key: str, graph: Graph) -> None:
    from .serial import dumps

    _write(_graph_file(key), gzip.compress(dumps(graph).encode(), compresslevel=1, mtime=0))


def load_facts(key: str) -> dict[str, int] | None:
    try:
        found = json.loads((folder() / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and all(isinstance(v, int) for v in found.values()) else None


def save_facts(key: str, facts: Mapping[str, int]) -> None:
    _write(folder() / f"{key}.json", json.dumps(dict(facts)).encode())


def _graph_file(key: str) -> Path:
    return folder() / f"{key}.graph.json.gz"


def _write(path: Path, data: bytes) -> None:
    """Written aside and renamed, so that a reader sees a whole file or none."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(aside, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(aside)


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
