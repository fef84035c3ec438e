"""Weights in safetensors files: read by parts, each rank its own slices, and written as one file.

Format: https://github.com/huggingface/safetensors#format: 8 bytes n, n bytes of JSON (name -> dtype, shape, offsets), data.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import InputError
from ...plan.layout import local_shape
from ...plan.model import Layout
from ..ranks.mesh_groups import MeshView
from .parts import Part

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Named tensors in one or several files. Nothing is held in memory; files are opened at use, so it can be pickled."""

    source: Path
    """The file or folder that was asked for."""
    files: Mapping[str, Path]
    """Tensor -> its file."""
    shapes: Mapping[str, tuple[int, ...]]
    _open: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def open(path: str | Path) -> Weights:
        """A .safetensors file, or a folder as Hugging Face writes it: model.safetensors, or an index and its files.

        Raises:
            InputError: nothing there, not safetensors, an index that names missing files.
        """
        source = Path(path)
        found: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in _files(source):
            try:
                with safe_open(file, framework="pt") as reader:
                    for name in reader.keys():  # noqa: SIM118
                        found[name] = file
                        shapes[name] = tuple(reader.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file}: not a whole safetensors file: {error}") from error
        return Weights(source, found, shapes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "files": self.files, "shapes": self.shapes, "_open": {}}

    def part(self, name: str, layout: Layout, view: MeshView, shape: Sequence[int]) -> Tensor:
        """[local shape], in the file's dtype: what this rank holds of tensor `name` under `layout`; only that is read.

        Raises:
            InputError: not in the files, or of another shape than `shape`.
        """
        stored = self._slices(name, shape)
        dtype = _dtype(stored.get_dtype())
        local = torch.empty(local_shape(layout, shape, view.mesh, view.coords), dtype=dtype)
        for box in Part.of(local, shape, layout, view).boxes:
            box.view.copy_(stored[box.slices] if box.slices else stored[...])
        return local

    def whole(self, name: str) -> Tensor:
        """All of tensor `name`."""
        return self._reader(name).get_tensor(name)  # type: ignore[no-any-return]

    def _slices(self, name: str, shape: Sequence[int]) -> Any:
        stored = self._reader(name).get_slice(name)
        if self.shapes[name] != tuple(shape):
            raise InputError(f"{self.source}: {name} has shape {self.shapes[name]} there, not {tuple(shape)}")
        return stored

    def _reader(self, name: str) -> Any:
        if name not in self.files:
            raise InputError(f"{self.source}: holds no {name}")
        file = self.files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        return self._open[file]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: no such file or folder: give a .safetensors file or a folder with one")
    if (source / INDEX).is_file():
        try:
            names = sorted(set(json.loads((source / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f'{source / INDEX}: no "weight_map" of tensors to files') from error
        missing = [n for n in names if not (source / n).is_file()]
        if missing:
            raise InputError(f"{source / INDEX}: names {missing[0]}, which is not there")
        return [source / n for n in names]
    found = [source / SINGLE] if (source / SINGLE).is_file() else sorted(source.glob("*.safetensors"))
    if not found:
        raise InputError(f"{source}: holds no .safetensors file")
    return found


def _dtype(code: str) -> torch.dtype:
    found = next((dtype for dtype, known in DTYPES.items() if known == code), None)
    if found is None:
        raise InputError(f"tensors of type {code} cannot be read: {', '.join(DTYPES.values())} can")
    return found


def created(path: Path, described: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    """Makes a safetensors file of the given names, shapes and types, and maps its tensors into memory, all zero.

    What is written to the tensors is written to the file, a page at a time: no tensor need fit in memory.

    Raises:
        OSError: no room, or not allowed.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    order = sorted(described, key=lambda n: (-described[n][1].itemsize, n))  # wide types first: all stay aligned
    at = 0
    for name in order:
        shape, dtype = described[name]
        size = prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        if sys.platform == "linux":  # a full disk is told here, not by a signal at a page
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + at)
        file.truncate(8 + len(text) + at)
    return mapped(path)


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `created` made, to be written through; several processes may write different parts."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    size = os.path.getsize(path)
    data = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)[8 + length :]
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            lo, hi = entry["data_offsets"]
            found[name] = data[lo:hi].view(_dtype(entry["dtype"])).view(entry["shape"])
    return found
