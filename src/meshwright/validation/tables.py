"""Writes fitted values into the tables that ship (cost/constants/*.toml): figures change, comments and order stay."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from .parameters import PARAMETERS, Values, tables, targets

KEY = re.compile(r"^(\w+) = (\S+)(.*)$")


def rewritten(text: str, wanted: dict[str, dict[str, float]]) -> str:
    """The table `text` with figures replaced: section -> field -> value.

    A field that a section inherits is written into it only where the base now says something else.
    """
    sections = {name: dict(row) for name, row in tomllib.loads(text).items()}
    for name in sections:  # bases stand before what is based on them
        for field, value in wanted.get(name, {}).items():
            if f"{_value(sections, name, field):.4g}" != f"{value:.4g}":
                sections[name][field] = float(f"{value:.4g}")
    lines: list[str] = []
    name, known = "", set[str]()
    for line in [*text.splitlines(), "["]:
        key = KEY.match(line)
        if line.startswith("["):
            end = len(lines)
            while end and not lines[end - 1].strip():
                end -= 1
            extra = [f for f in sections.get(name, {}) if f not in known]
            lines[end:end] = [f"{field} = {sections[name][field]:.4g}" for field in extra]
            name, known = line[1:].partition("]")[0], set()
        elif key and name:
            known.add(key[1])
            if key[1] in wanted.get(name, {}) and f"{float(key[2]):.4g}" != f"{sections[name][key[1]]:.4g}":
                line = f"{key[1]} = {sections[name][key[1]]:.4g}{key[3]}"
        lines.append(line)
    return "\n".join(lines[:-1]) + "\n"


def rewrite(values: Values, folder: Path) -> None:
    """Puts `values` into families.toml and software.toml of `folder`."""
    families, software = tables(values)
    found: dict[str, dict[str, dict[str, float]]] = {"family": {}, "software": {}}
    for parameter in PARAMETERS:
        for kind, name, field in targets(parameter):
            row = families[name] if kind == "family" else software[name]
            found[kind].setdefault(name, {})[field] = float(getattr(row, field))
    for kind, file in (("family", folder / "families.toml"), ("software", folder / "software.toml")):
        file.write_text(rewritten(file.read_text(encoding="utf-8"), found[kind]), encoding="utf-8")


def _value(sections: dict[str, dict[str, Any]], name: str, field: str) -> float:
    """Of a section or of what it is based on, as far as it has been replaced."""
    row = sections[name]
    return float(row[field]) if field in row else _value(sections, row["base"], field)
