"""Captured graphs of measured models that ship with the package, so that predicting their steps needs no capture.

`data/graphs.jsonl.xz` holds one graph a line under a key of everything that its capture is asked for. What is not there is
captured, through the cache on disk. The file is written by `python -m meshwright.validation ship FOLDER`; a slow test
captures all of it again.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from ..graph.ir import Graph
from ..graph.serial import from_json, to_json
from ..graph.source import ConfigSource

FILE = "graphs.jsonl.xz"
DTYPE = "bfloat16"


def graph_of(source: ConfigSource) -> Graph:
    """The graph of a model at its default batch and sequence."""
    line = _lines().get(key_of(source))
    return from_json(json.loads(line)) if line else captured(source)


def captured(source: ConfigSource, *, cached: bool = True) -> Graph:
    """The same by capture, whatever ships; not `cached`: past the folder of captured graphs, too."""
    return source.graph(source.batch, source.seq, DTYPE, cache=cached)


def key_of(source: ConfigSource) -> str:
    """Hexadecimal digest of what is captured."""
    asked = {"model": source.identity(), "samples": source.batch, "seq": source.seq, "dtype": DTYPE}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]


def write(sources: Iterable[ConfigSource], file: Path) -> int:
    """Capture all models and write their graphs. Returns how many there are."""
    found = {key_of(source): captured(source) for source in sources}
    lines = [
        f"{key} {json.dumps(to_json(found[key]), separators=(',', ':'), allow_nan=False)}" for key in sorted(found)
    ]
    file.write_bytes(lzma.compress("\n".join(lines).encode(), preset=9))
    return len(lines)


@cache
def _lines() -> Mapping[str, str]:
    """Key -> graph as JSON."""
    data = resources.files(__package__).joinpath("data", FILE)
    if not data.is_file():
        return {}
    lines = lzma.decompress(data.read_bytes()).decode().split("\n")
    return {key: text for key, _, text in (line.partition(" ") for line in lines)}
