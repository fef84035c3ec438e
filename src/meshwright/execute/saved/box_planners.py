"""torch.distributed.checkpoint on parts: a rank writes the boxes of each tensor that its part consists of, in global
indices, and reads whatever saved boxes overlap its own. So what one plan wrote, any other plan and a plain module read.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from ...errors import ExecutionError, InputError, MeshwrightError
from ..ranks.lost import lost
from .parts import Part, PlacedBox

Parts = Mapping[str, Sequence[Part]]
"""Tensor -> this rank's parts of it; several where several of its stages hold one."""


def write(parts: Parts, folder: Path, group: dist.ProcessGroup | None) -> None:
    """Writes all ranks' parts. Collective over `group`; None: this process alone.

    Raises:
        ExecutionError: a rank could not write. Whatever `lost` knows: another rank is gone.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what is meant
            save_state({}, checkpoint_id=str(folder), planner=_Saver(parts), process_group=group, no_dist=group is None)
    except CheckpointException as error:
        first = _first(error)
        if lost(first):
            raise first from error
        raise ExecutionError(f"{folder}: could not be written: {first}") from error


def read(parts: Parts, folder: Path, group: dist.ProcessGroup | None) -> None:
    """Fills this rank's parts in place, converted to their types. Collective over `group`; None: this process alone.

    Raises:
        InputError: a tensor is missing or has another shape; a file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load_state({}, checkpoint_id=str(folder), planner=_Loader(parts, folder), process_group=group,
                       no_dist=group is None)  # fmt: skip
    except CheckpointException as error:
        for failure in error.failures.values():
            if isinstance(failure[0], MeshwrightError):
                raise failure[0] from None
        raise InputError(f"{folder}: damaged: {_why(_first(error))}") from error


def described(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor in a folder.

    Raises:
        InputError: the list of tensors cannot be read.
    """
    try:
        held = FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # whatever unpickling a damaged file raises
        raise InputError(f"{folder}: damaged: {_why(error)}") from error
    return {
        name: (tuple(entry.size), entry.properties.dtype)
        for name, entry in held.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _why(error: BaseException) -> str:
    """An empty file makes an EOFError that says nothing."""
    return str(error).strip() or ("a file ends too early" if isinstance(error, EOFError) else type(error).__name__)


def _first(error: CheckpointException) -> BaseException:
    return next(iter(error.failures.values()))[0]


class _Saver(DefaultSavePlanner):
    """Writes boxes; of those that several ranks hold, each writes a share."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._held = {
            (name, box.offsets): (part, box) for name, ps in parts.items() for part in ps for box in part.boxes
        }

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_item(name, part, box) for (name, _), (part, box) in self._held.items()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        offsets = tuple(index.offset or ())
        return self._held[index.fqn, offsets][1].view.contiguous()

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        return object


def _item(name: str, part: Part, box: PlacedBox) -> WriteItem:
    return WriteItem(
        MetadataIndex(name, torch.Size(box.offsets)),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(_chunk(box), TensorProperties(dtype=part.dtype), torch.Size(part.shape)),
    )


def _chunk(box: PlacedBox) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))


class _Loader(DefaultLoadPlanner):
    """Reads what overlaps the own boxes."""

    def __init__(self, parts: Parts, folder: Path) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._parts, self._folder = parts, folder
        self._views: dict[tuple[str, int], Tensor] = {}

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        if self.metadata is None:
            raise InputError(f"{self._folder}: holds no list of tensors")
        for name, ps in self._parts.items():
            saved = self.metadata.state_dict_metadata.get(name)
            if not isinstance(saved, TensorStorageMetadata) or tuple(saved.size) != ps[0].shape:
                there = tuple(getattr(saved, "size", ()))
                how = f"it holds no {name}" if saved is None else f"{name} has shape {there} there, not {ps[0].shape}"
                raise InputError(f"{self._folder}: written for another model: {how}")
            own = [box for part in ps for box in part.boxes]
            self._views |= {(name, k): box.view for k, box in enumerate(own)}
            items += create_read_items_for_chunk_list(name, saved, [_chunk(box) for box in own])
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        index = read_item.dest_index
        view = self._views[index.fqn, index.index or 0]
        for d, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            view = view.narrow(d, start, length)
        return view

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Read in place."""
