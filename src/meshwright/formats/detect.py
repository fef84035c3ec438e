"""Which format a file has, by its content; reading it as a problem."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from .._parsed import ENCODING, parsed_json
from ..errors import InputError
from ..plan.problem import Problem

FORMATS = (
    "dnn_partitioning",
    "piper",
    "dapple",
    "spmd_program",
    "pipedream",
    "pase",
    "factor_graph",
    "accpar",
    "mindspore",
    "autoparallel",
    "alpa_ilp",
    "alpa_dp",
    "alpa_clustering",
)
"""Modules of this folder with `recognises` and `read`."""


def format_of(path: Path | str) -> str:
    """The name of the format that recognises a file, "" if none does.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    try:
        text, document = _opened(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", where=str(path)) from error
    except (lzma.LZMAError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError):
        return ""
    for name in FORMATS:
        # Text formats are told by their text, the others by their parsed JSON.
        given = text if name in ("pipedream", "accpar") else document
        if given is not None and import_module(f".{name}", __package__).recognises(given):
            return name
    return ""


def _opened(path: Path) -> tuple[str, Any]:
    """(text, parsed JSON or None) of a file that may be compressed; of arrays in one file (.npz): {"arrays": their names}."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as arrays:
            return "", {"arrays": [name.removesuffix(".npy") for name in arrays.namelist()]}
    content = path.read_bytes()
    try:
        content = {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)(content)
    except gzip.BadGzipFile:
        return "", None
    text = content.decode(ENCODING)
    try:
        return text, parsed_json(text)
    except json.JSONDecodeError:
        return text, None


def planner_of(name: str) -> str:
    """The planner that a format was made for: its module's PLANNER, else that of its own name."""
    return str(getattr(import_module(f".{name}", __package__), "PLANNER", name)) if name else ""


def reader(name: str) -> Callable[..., Problem]:
    """The `read` of a format; its keyword parameters are what may be set."""
    found: Callable[..., Problem] = import_module(f".{name}", __package__).read
    return found


def read(path: Path | str, **settings: Any) -> Problem:
    """The problem of a file in any of the formats.

    Args:
        settings: what the format's own `read` takes: devices, memory (bytes), bandwidth (bytes/s), micro_batches, ….

    Raises:
        InputError: no format recognises the file, the format does not have such a setting, or what its `read` raises.
    """
    name = format_of(path)
    if not name:
        raise InputError(f"{path} is in none of the formats {', '.join(FORMATS)}", where=str(path))
    known = reader(name).__kwdefaults__ or {}
    for key in settings:
        if key not in known:
            raise InputError(f'{path} is of format {name}, which has no setting "{key}": it has {", ".join(known)}')
    return reader(name)(path, **settings)
