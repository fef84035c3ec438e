"""Which format a file has, by its content; reading it as a problem."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..plan.problem import Problem

FORMATS = ("dnn_partitioning", "piper", "dapple", "spmd_program", "pipedream")
"""Modules of this folder with `recognises` and `read`."""


def format_of(path: Path | str) -> str:
    """The name of the format that recognises a file, "" if none does.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        text = (lzma.decompress(content) if path.suffix == ".xz" else content).decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", where=str(path)) from error
    except (lzma.LZMAError, UnicodeDecodeError):
        return ""
    try:
        document: Any = json.loads(text)
    except json.JSONDecodeError:
        document = None
    for name in FORMATS:
        # Text formats are told by their text, the others by their parsed JSON.
        given = text if name == "pipedream" else document
        if given is not None and import_module(f".{name}", __package__).recognises(given):
            return name
    return ""


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
