"""The measured rows that ship with the package: settings, results, and where each stands at its source.

`data/rows.json.xz` is the table that `rows.read` makes of the public CSV files, field by field of `Row`; whatever fields a
row or a model has, it has them here. Written by `python -m meshwright.validation ship FOLDER`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import graphs
from .models import source_of
from .rows import Row, Table

FILE = "rows.json.xz"
DATA = Path(__file__).with_name("data")


def ship(table: Table, folder: Path = DATA) -> None:
    """Write the rows, and the graphs of their models, for the package."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(to_json(table), separators=(",", ":"), allow_nan=False)
    (folder / FILE).write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    short = {row.model.shortened() for row in (*table.rows, *table.failed)}
    graphs.write((source_of(model) for model in sorted(short, key=str)), folder / graphs.FILE)


def shipped() -> Table:
    """The table of the package.

    Raises:
        InputError: this copy of the package was built without it.
    """
    file = resources.files(__package__).joinpath("data", FILE)
    if not file.is_file():
        raise InputError("this copy of meshwright ships no measured rows: give a folder of them with --data")
    return from_json(json.loads(lzma.decompress(file.read_bytes())))


def to_json(table: Table) -> dict[str, Any]:
    """Plain data: models stand once, rows name them by number."""
    objects: list[Any] = []
    known: dict[Any, int] = {}

    def out(value: Any) -> Any:
        if is_dataclass(value):
            if value not in known:
                cls = type(value)
                parts = [out(getattr(value, f.name)) for f in fields(value)]
                known[value] = len(objects)
                objects.append([cls.__module__.rpartition(".")[2], cls.__name__, *parts])
            return {"object": known[value]}
        return [out(v) for v in value] if isinstance(value, tuple) else value

    def rows(found: Sequence[Row]) -> list[list[Any]]:
        return [[out(getattr(row, name)) for name in names] for row in found]

    names = [f.name for f in fields(Row)]
    return {
        "fields": names,
        "rows": rows(table.rows),
        "failed": rows(table.failed),
        "refused": table.refused,
        "objects": objects,
    }


def from_json(data: dict[str, Any]) -> Table:
    """The inverse of `to_json`."""
    objects: list[Any] = []

    def back(value: Any) -> Any:
        if isinstance(value, dict):
            return objects[value["object"]]
        return tuple(map(back, value)) if isinstance(value, list) else value

    for module, name, *parts in data["objects"]:
        objects.append(getattr(import_module(f".{module}", __package__), name)(*map(back, parts)))

    def rows(found: list[list[Any]]) -> list[Row]:
        return [Row(**dict(zip(data["fields"], map(back, row), strict=True))) for row in found]

    return Table(rows(data["rows"]), rows(data["failed"]), {why: list(ids) for why, ids in data["refused"].items()})
