"""Where profiles lie that are found by name: the user's data folder, so that clearing a cache costs no measurement."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def folder() -> Path:
    """MESHWRIGHT_PROFILES, else the platform's folder for data of a user."""
    if chosen := os.environ.get("MESHWRIGHT_PROFILES"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "meshwright"
    if sys.platform == "win32" and (own := os.environ.get("LOCALAPPDATA")):
        return Path(own) / "meshwright"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "meshwright"


def file_of(name: str) -> Path:
    """The file of a profile that is named, or given by a path."""
    if name.endswith(".toml") or "/" in name or os.sep in name:
        return Path(name)
    return folder() / f"{name}.toml"
