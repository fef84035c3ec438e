"""Checkpoints that load under any plan: torch.distributed.checkpoint, with every tensor under its name in the user's
module.

A rank writes the BOXES of each tensor that its part consists of (a part of a fused weight is several), in global indices;
a rank reads whatever saved boxes overlap its own. Weights are the float32 master copies; what the optimizer remembers of
"layers.0.weight" is "optimizer.exp_avg.layers.0.weight". So a folder also loads into a plain module.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
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

from ..errors import InputError
from ..plan.layout import boxes, local_shape
from ..plan.model import Layout
from .mesh_groups import MeshView
from .optimizer import memory, prepare_memory
from .runtime import Runtime

STEP_FILE = "meshwright.json"
SCHEMA = "meshwright.checkpoint/1"


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle of a tensor, and where it lies in the local part."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    view: Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """The local part of one tensor."""

    shape: tuple[int, ...]
    """Of the whole."""
    boxes: tuple[_Box, ...]
    dtype: torch.dtype

    @staticmethod
    def of(local: Tensor, shape: Sequence[int], layout: Layout, view: MeshView) -> Part:
        found = boxes(layout, shape, view.mesh, view.coords)
        local = local.reshape(local_shape(layout, shape, view.mesh, view.coords))
        return Part(tuple(shape), tuple(_placed(found, local)), local.dtype)


def _placed(found: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], local: Tensor) -> Iterator[_Box]:
    """Boxes are a product of ranges per dim; a part is those ranges one behind the other."""
    rank = local.dim()
    ranges = [sorted({(lo[d], hi[d]) for lo, hi in found}) for d in range(rank)]
    starts = []
    for own in ranges:
        at, places = 0, {}
        for lo, hi in own:
            places[lo, hi] = at
            at += hi - lo
        starts.append(places)
    if found and math.prod(len(own) for own in ranges) != len(found):
        raise InputError("a part that is no product of ranges cannot be saved")
    for pick in product(*ranges) if found else ():
        view = local
        for d, (lo, hi) in enumerate(pick):
            view = view.narrow(d, starts[d][lo, hi], hi - lo)
        yield _Box(tuple(lo for lo, _ in pick), tuple(hi - lo for lo, hi in pick), view)


def parts_of(runtime: Runtime) -> dict[str, list[Part]]:
    """Everything that this rank saves or restores, by name; several copies where several of its stages hold a weight."""
    prepare_memory(runtime.optimizer)
    found: dict[str, list[Part]] = {}
    for local in runtime.locals.values():
        for p in local.code.params:
            shape, master = runtime.graph.tensor[p.name].shape, runtime.masters[local.code.stage, p.name]
            found.setdefault(p.name, []).append(Part.of(master.detach(), shape, p.state, local.view))
            for name, remembered in memory(runtime.optimizer, master).items():
                part = Part.of(remembered, shape, p.state, local.view)
                found.setdefault(f"optimizer.{name}.{p.name}", []).append(part)
    return found


class _Saver(DefaultSavePlanner):
    """Writes boxes."""

    def __init__(self, parts: Mapping[str, Sequence[Part]]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)
        self._boxes = {(name, b.offsets): b for name, ps in parts.items() for p in ps for b in p.boxes}
        self._parts = parts

    def create_local_plan(self) -> SavePlan:
        items = []
        seen: set[tuple[str, tuple[int, ...]]] = set()
        for name, ps in self._parts.items():
            for part in ps:
                for box in part.boxes:
                    if (name, box.offsets) in seen or not box.view.numel():
                        continue
                    seen.add((name, box.offsets))
                    items.append(
                        WriteItem(
                            MetadataIndex(name, torch.Size(box.offsets)),
                            WriteItemType.SHARD,
                            tensor_data=TensorWriteData(
                                ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)),
                                TensorProperties(dtype=part.dtype),
                                torch.Size(part.shape),
                            ),
                        )
                    )
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        assert index.offset is not None
        return self._boxes[index.fqn, tuple(index.offset)].view.contiguous()

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        return object


class _Loader(DefaultLoadPlanner):
    """Reads what overlaps the own boxes."""

    def __init__(self, parts: Mapping[str, Sequence[Part]], folder: Path) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._parts, self._folder = parts, folder
        self._views: dict[tuple[str, int], Tensor] = {}

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        super().set_up_planner(state_dict, metadata, is_coordinator)

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        assert self.metadata is not None
        for name, ps in self._parts.items():
            saved = self.metadata.state_dict_metadata.get(name)
            if not isinstance(saved, TensorStorageMetadata) or tuple(saved.size) != ps[0].shape:
                held = "is not in it" if saved is None else f"has shape {tuple(getattr(saved, 'size', ()))} there"
                raise InputError(f"{self._folder}: written for another model: {name} {held}, not {ps[0].shape}")
            own = [box for part in ps for box in part.boxes]
            self._views |= {(name, k): box.view for k, box in enumerate(own)}
            chunks = [ChunkStorageMetadata(torch.Size(b.offsets), torch.Size(b.sizes)) for b in own]
            items += create_read_items_for_chunk_list(name, saved, chunks)
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        index = read_item.dest_index
        assert index.index is not None
        view = self._views[index.fqn, index.index]
        for d, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            view = view.narrow(d, start, length)
        return view

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Read in place."""


def save(runtime: Runtime, folder: str | Path) -> Path:
    """Writes `folder` of all ranks' parts: aside first, renamed when complete. Collective."""
    target = Path(folder)
    aside = target.with_name(target.name + ".part")
    if runtime.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    _meet()
    save_state({}, checkpoint_id=str(aside), planner=_Saver(parts_of(runtime)))
    if runtime.rank == 0:
        (aside / STEP_FILE).write_text(json.dumps({"schema": SCHEMA, "step": runtime.step}))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
    _meet()
    return target


def load(runtime: Runtime, folder: str | Path) -> int:
    """Fills this rank's parts from a folder written under any plan; returns the step. Collective.

    Raises:
        InputError: no checkpoint, or one of another model.
    """
    source = Path(folder)
    try:
        step = int(json.loads((source / STEP_FILE).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{source}: no whole checkpoint: a folder that a run wrote holds {STEP_FILE}") from error
    _read(parts_of(runtime), source)
    for state in runtime.optimizer.state.values():
        if "step" in state:
            state["step"] = torch.tensor(float(step))
    resting: dict[str, list[Part]] = {}
    wide: dict[tuple[int, str], Tensor] = {}
    for local in runtime.locals.values():
        for p in local.code.params:
            shape = runtime.graph.tensor[p.name].shape
            whole = wide[local.code.stage, p.name] = local.params[p.name].to(torch.float32)
            resting.setdefault(p.name, []).append(Part.of(whole, shape, p.rest, local.view))
    _read(resting, source)
    for local in runtime.locals.values():
        for p in local.code.params:
            local.params[p.name].copy_(wide[local.code.stage, p.name])
    runtime.step = step
    return step


def _read(parts: Mapping[str, Sequence[Part]], source: Path) -> None:
    """Fills `parts`. What the planner refuses comes back wrapped, one exception a rank."""
    try:
        load_state({}, checkpoint_id=str(source), planner=_Loader(parts, source), no_dist=not dist.is_initialized())
    except CheckpointException as error:
        for failure in error.failures.values():
            if isinstance(failure[0], InputError):
                raise failure[0] from None
        raise InputError(f"{source}: damaged: {next(iter(error.failures.values()))[0]}") from error


def _meet() -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
