"""A checkpoint folder appears complete or not at all.

    write   NAME.part/…                     leftovers of an interrupted save are removed first
    seal    NAME.part/meshwright.json       last file: the folder is whole
    publish NAME -> NAME.old, NAME.part -> NAME, NAME.old removed

Killed between the two renames, no NAME is left, but NAME.part is whole: `settle` finishes what was begun. One process at
a time writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError

SEAL = "meshwright.json"
SCHEMA = "meshwright.checkpoint/2"


def aside(target: Path) -> Path:
    """Where the next content of `target` is written."""
    return target.with_name(target.name + ".part")


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def begin(target: Path) -> Path:
    """An empty folder to write into.

    Raises:
        InputError: the name belongs to something that is no checkpoint.
    """
    settle(target)
    if target.exists() and not (target / SEAL).is_file() and not _empty(target):
        raise InputError(f"{target}: exists and is no checkpoint, so it is not replaced: choose another name")
    part = aside(target)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def publish(target: Path, about: Mapping[str, Any]) -> None:
    """Seals what was written with the facts `about` it and gives it its name; what had the name before is gone."""
    part = aside(target)
    text = json.dumps({"schema": SCHEMA, **about}, indent=1)
    draft = part / (SEAL + ".draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, part / SEAL)
    _renamed(target)


def _renamed(target: Path) -> None:
    old = _old(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(aside(target), target)
    _synced(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def settle(target: Path) -> None:
    """Ends an interrupted save: the newest whole folder gets the name, everything else is removed."""
    if target.exists():
        shutil.rmtree(_old(target), ignore_errors=True)
    elif (aside(target) / SEAL).is_file():
        _renamed(target)
    elif _old(target).exists():
        os.rename(_old(target), target)


def tidy(parent: Path, pattern: str) -> None:
    """Ends every interrupted save of a name that `pattern` matches. For a folder that one run at a time writes into."""
    for suffix in (".part", ".old"):
        for left in sorted(parent.glob(pattern + suffix)):
            settle(left.with_name(left.name.removesuffix(suffix)))
            shutil.rmtree(left, ignore_errors=True)


def whole(target: Path) -> Path | None:
    """Where the complete checkpoint of that name lies, if there is one; changes nothing."""
    return next((f for f in (target, aside(target), _old(target)) if (f / SEAL).is_file()), None)


def facts(folder: Path) -> Mapping[str, Any]:
    """What `publish` was told.

    Raises:
        InputError: no complete checkpoint, or its facts are damaged.
    """
    found = whole(folder)
    if found is None:
        raise InputError(f"{folder}: no whole checkpoint: a folder that a run wrote holds {SEAL}")
    try:
        about = json.loads((found / SEAL).read_text())
        if about["schema"] != SCHEMA:
            raise InputError(f'{folder}: schema "{about["schema"]}" is not known: this version reads {SCHEMA}')
        int(about["step"])
        return about  # type: ignore[no-any-return]
    except OSError as error:
        raise InputError(f"{found / SEAL}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{found / SEAL}: damaged: not the facts that a run writes last, as JSON") from error


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _synced(folder: Path) -> None:
    """The renames are on the disk before anything is removed."""
    with contextlib.suppress(OSError):  # not every file system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
