"""One safetensors file of all weights, from any plan's parts: every rank writes its own boxes into the mapped file.

Names and shapes are those of the user's module; of tied parameters the file holds one name, as transformers' own files do.
Running statistics of norms are among them; optimizer state stays in checkpoints.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import ExecutionError, InputError
from ..step.runtime import Runtime
from . import folders
from .box_planners import described, read
from .checkpoint import GENERATOR, OPTIMIZER
from .first import as_first
from .parts import Part
from .weights import DTYPES, created, mapped

_Described: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and type of tensors."""


def export_safetensors(source: Runtime | str | Path, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Writes `path`, whole or not at all; no process ever holds more than its own parts. Collective for a runtime.

    Args:
        source: a runtime, whose ranks see one file system, or the folder of a checkpoint (this process alone).
        dtype: of all floating-point tensors; None: as in the graph (runtime), as saved, float32 (folder).

    Raises:
        InputError: no complete checkpoint; a type that safetensors has not.
        ExecutionError: the file could not be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"safetensors holds no {dtype}: choose one of {', '.join(DTYPES.values())}")
    target = Path(path)
    draft = target.with_name(target.name + ".part")
    if isinstance(source, Runtime):
        _from_runtime(source, draft, dtype)
        as_first(lambda: _published(draft, target), source.rank)
        return target
    folder = folders.whole(Path(source))
    if folder is None:
        folders.facts(Path(source))  # says what is missing
        raise InputError(f"{source}: no whole checkpoint")
    shapes = {n: d for n, d in described(folder).items() if not n.startswith((OPTIMIZER, GENERATOR))}
    files = _made(draft, {n: (shape, _as(of, dtype)) for n, (shape, of) in shapes.items()})
    try:
        read({name: [Part.whole(x)] for name, x in files.items()}, folder, None)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _published(draft, target)
    return target


def must_be_writable(path: str | Path) -> None:
    """Makes the folder of `path`; for a caller that has long work to do before it exports.

    Raises:
        InputError: no file can be written there.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}", where=str(target)) from error


def _from_runtime(runtime: Runtime, draft: Path, dtype: torch.dtype | None) -> None:
    runtime.settle()
    params = list(runtime.graph.params())
    shapes = {p.name: (p.shape, _as(getattr(torch, p.dtype), dtype)) for p in params}
    statistics = list(runtime.statistics.held())
    shapes |= _told({h.name: (h.shape, _as(h.tensor.dtype, dtype)) for h in statistics})
    as_first(lambda: _made(draft, shapes), runtime.rank)
    files = mapped(draft)
    for (stage, name), master in runtime.masters.items():
        param, view = runtime.param(stage, name), runtime.locals[stage].view
        for box in Part.of(master.detach(), files[name].shape, param.state, view).boxes:
            files[name][box.slices].copy_(box.view)
    for h in statistics:
        for box in h.part.boxes:
            files[h.name][box.slices].copy_(box.view)
    _meet()


def _told(own: _Described) -> _Described:
    """What any rank says: running statistics are known where their stage is."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    everyone: list[_Described] = [own] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return {name: described for told in everyone for name, described in told.items()}


def _published(draft: Path, target: Path) -> None:
    try:
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ExecutionError(f"{target}: could not be written: {error.strerror or error}") from error


def _made(draft: Path, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        return created(draft, shapes)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ExecutionError(f"{draft}: could not be written: {error.strerror or error}") from error


def _as(own: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    return asked if asked is not None and own.is_floating_point else own


def _meet() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
