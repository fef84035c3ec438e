"""Reading arrays of one .npz file with errors that name file and array."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..graph.ir import Floats, Ints

UNREADABLE = (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise for files that are no arrays, cut off, or packed in a way that they do not know."""


class Arrays:
    """The arrays of one file; every access checks kind and shape."""

    def __init__(self, path: Path | str) -> None:
        self.file = str(path)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self.value = {name: arrays[name] for name in arrays.files}
        except UNREADABLE as error:
            raise InputError(f"{path} cannot be read: {error}", where=str(path)) from error

    def ints(self, name: str, *shape: int | None) -> Ints:
        """Whole numbers; None in `shape` is any length."""
        found = self._get(name, "iu", shape)
        return found.astype(np.int64)

    def floats(self, name: str, *shape: int | None) -> Floats:
        """Numbers or inf; nan is refused."""
        found = self._get(name, "iuf", shape).astype(np.float64)
        if np.isnan(found).any():
            raise self.wrong(name, "nan in it", "numbers or inf")
        return found

    def texts(self, name: str, *shape: int | None) -> list[str]:
        return [str(x) for x in self._get(name, "U", shape)]

    def starts(self, name: str, parts: int, total: int) -> Ints:
        """Where each of `parts` pieces of an array of `total` entries begins, and the end."""
        found = self.ints(name, parts + 1)
        if found[0] != 0 or found[-1] != total or (np.diff(found) < 0).any():
            raise self.wrong(name, f"{found[0]} … {found[-1]}", f"numbers that rise from 0 to {total}")
        return found

    def indices(self, name: str, below: int, *shape: int | None) -> Ints:
        found = self.ints(name, *shape)
        if found.size and (found.min() < 0 or found.max() >= below):
            raise self.wrong(name, f"{found.min()} … {found.max()}", f"numbers of 0 to {below - 1}")
        return found

    def wrong(self, name: str, found: str, wanted: str) -> InputError:
        return InputError(f"{self.file}: {name} has {found}, wanted {wanted}", where=f"{self.file}: {name}")

    def _get(self, name: str, kinds: Iterable[str], shape: tuple[int | None, ...]) -> np.typing.NDArray[Any]:
        if name not in self.value:
            raise InputError(f"{self.file}: the array {name} is missing", where=f"{self.file}: {name}")
        found: np.typing.NDArray[Any] = self.value[name]
        fits = len(found.shape) == len(shape) and all(w in (None, n) for n, w in zip(found.shape, shape))
        if found.dtype.kind not in kinds or not fits:
            wanted = "(" + ", ".join("any" if w is None else str(w) for w in shape) + ")"
            raise self.wrong(name, f"{found.dtype} of shape {found.shape}", f"shape {wanted} of kind {'/'.join(kinds)}")
        return found


def names(document: object) -> frozenset[str]:
    """Names of the arrays of a file, as `detect` shows them to `recognises`; () for other files."""
    found = document.get("arrays") if isinstance(document, dict) else None
    return frozenset(found) if isinstance(found, list) and all(isinstance(x, str) for x in found) else frozenset()
