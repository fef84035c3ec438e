"""The folder of an answer: all files are written aside, then renamed together; another problem's folder is left alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import InputError, MeshwrightError
from .request import Request, read

PLAN, REPORT, TRACE, PROBLEM = "plan.json", "report.html", "trace.json.gz", "problem.toml"
LAST = PLAN
"""Renamed last: a folder whose plan.json is new has all its files new."""


def check_free(folder: Path, request: Request) -> None:
    """Refuse a folder that holds another problem, before anything is searched.

    Raises:
        InputError: it is a file, or holds files that are not an answer to `request`.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder with -o", where=str(folder))
    problem = folder / PROBLEM
    if not any(folder.iterdir()):
        return
    other = _free_name(folder)
    if not problem.exists():
        raise InputError(
            f"{folder}/ holds files but no {PROBLEM}, so nothing there was overwritten: use -o {other}",
            where=str(folder),
        )
    try:
        held = read(problem)
    except MeshwrightError as error:
        raise InputError(
            f"{problem} cannot be read ({error.message}), so nothing there was overwritten: use -o {other}",
            where=str(problem),
        ) from None
    if not held.same_problem(request):
        raise InputError(
            f"{folder}/ holds another problem ({_difference(held, request)}): use -o {other}", where=str(folder)
        )


def write_together(folder: Path, files: Mapping[str, bytes | Callable[[Path], None]]) -> dict[str, int]:
    """Write all of `files` or none; other files in the folder stay. Returns name -> bytes.

    Args:
        files: name (may have folders in it) -> content, or what writes it to the path that it is given.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}", where=str(folder)) from None
    try:
        sizes = {}
        for name, content in files.items():
            place = aside / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(place)
            else:
                place.write_bytes(content)
            sizes[name] = place.stat().st_size
        folder.mkdir(exist_ok=True)
        for name in sorted(files, key=lambda n: n == LAST):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, folder / name)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}", where=str(folder)) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return sizes


def _difference(held: Request, asked: Request) -> str:
    # A model and a cluster are written as paths from different places, so the same file is spelled in two ways.
    same = [a == b for a, b in zip(held.question()[:2], asked.question()[:2], strict=True)]
    alike = dict(zip(("model", "cluster"), same, strict=True))
    for name in ("model", "cluster", "batch", "seq", "precision", "optimizer", "keep_free", "settings"):
        old, new = getattr(held, name), getattr(asked, name)
        if alike.get(name):
            continue
        if old != new:
            return f"{name.replace('_', ' ')} {_shown(old)}, not {_shown(new)}"
    return "another file of the same name"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={text}" for key, text in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else "default" if value is None else str(value)


def _free_name(folder: Path) -> str:
    n = 2
    while (folder.parent / f"{folder.name}-{n}").exists():
        n += 1
    return str(folder.parent / f"{folder.name}-{n}")
