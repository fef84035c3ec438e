"""Which parts of a checkpoint each rank of a plan reads: found from its list of tensors, no tensor is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from ...errors import InputError
from ...plan.layout import Box
from ...plan.moved import RankReads
from . import folders
from .box_planners import described
from .checkpoint import OPTIMIZER


def reads(
    folder: Path, held: Mapping[int, Mapping[str, Sequence[Box]]], shapes: Mapping[str, Sequence[int]]
) -> tuple[RankReads, ...]:
    """Bytes and files that each rank reads.

    Args:
        held: rank -> parameter -> disjoint boxes of its weights and optimizer state.
        shapes: of the parameters.

    Raises:
        InputError: no complete checkpoint, a damaged one, or one of another model.
    """
    folders.facts(folder)
    source = folders.whole(folder) or folder
    tensors = described(source)
    for name, shape in shapes.items():
        there = tensors.get(name, (None,))[0]
        if there != tuple(shape):
            how = f"it holds no {name}" if there is None else f"{name} has shape {there} there, not {tuple(shape)}"
            raise InputError(f"{folder}: written for another model: {how}", where=str(folder))
    metadata = FileSystemReader(str(source)).read_metadata()
    keys = sorted({n.removeprefix(OPTIMIZER).partition(".")[0] for n in tensors if n.startswith(OPTIMIZER)})
    chunks: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], str]]] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            chunks[name] = [
                (
                    tuple(c.offsets),
                    tuple(o + n for o, n in zip(c.offsets, c.sizes, strict=True)),
                    str(metadata.storage_data[MetadataIndex(name, c.offsets)].relative_path),
                )
                for c in entry.chunks
            ]
    found = []
    for rank, params in sorted(held.items()):
        nbytes, count, files = 0, 0, set()
        for name, own in params.items():
            kept = [f"{OPTIMIZER}{key}.{name}" for key in keys]
            for tensor in (name, *(k for k in kept if k in tensors and tensors[k][0] == tensors[name][0])):
                count += 1
                for lo, hi, file in chunks[tensor]:
                    elements = sum(_shared(box, (lo, hi)) for box in own)
                    nbytes += elements * tensors[tensor][1].itemsize
                    if elements:
                        files.add(file)
        found.append(RankReads(rank, nbytes, count, tuple(sorted(files))))
    return tuple(found)


def _shared(a: Box, b: Box) -> int:
    """Elements that two boxes share."""
    return prod(max(0, min(h, j) - max(l, i)) for l, h, i, j in zip(*a, *b, strict=True))  # noqa: E741
