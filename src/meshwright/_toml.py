"""TOML files that people write, read with a sentence for whatever can go wrong before their fields are looked at."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ._parsed import ENCODING, parsed_toml
from .errors import InputError


def read_toml(path: Path, missing: str) -> tuple[str, dict[str, Any]]:
    """(text, table) of a file. `missing`: what to say where there is none.

    Raises:
        InputError: no such file, not to be read, or not TOML.
    """
    try:
        text = path.read_text(encoding=ENCODING)
        return text, parsed_toml(text)
    except FileNotFoundError:
        raise InputError(missing, where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", where=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path.name}: not TOML: {error}", where=str(path)) from None
