"""Random numbers that depend on WHERE in the whole tensor an element is, not on who computes it.

Each number is a hash of (seed, step, micro-batch, name of the op, global index), so sharding and recomputation do not
change it. The hash is a 32-bit integer mixer with good avalanche (constants: C. Wellons, "hash-prospector", lowbias32).
"""

from __future__ import annotations

import math
import zlib
from typing import TypeVar

import torch
from torch import Tensor

from ...plan.layout import interval
from ...plan.model import Layout
from ..ranks.collectives import atoms
from ..ranks.mesh_groups import MeshView

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1
Number = TypeVar("Number", int, Tensor, int | Tensor)


def _mixed(x: Number) -> Number:
    """lowbias32 on numbers, or int64 tensors, that hold 32-bit values."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def stream(name: str, *numbers: int) -> int:
    """A 32-bit key of a named sequence of random numbers."""
    return zlib.crc32(" ".join([name, *map(str, numbers)]).encode())


def later_key(key: int | Tensor, *numbers: int | Tensor) -> int | Tensor:
    """The key of a sequence that belongs to one step or micro-batch of a named one; a scalar tensor if any number is one."""
    found = key
    for n in numbers:
        found = _mixed((found + (n + 1) * _GOLDEN) & _MASK)
    return found


def global_index(shape: tuple[int, ...], layout: Layout, view: MeshView, device: torch.device) -> Tensor:
    """Row-major index in the whole tensor of each own element, in the local shape."""
    flat = atoms(layout, shape)
    index = torch.zeros((), dtype=torch.int64, device=device)
    for n, cuts in flat:
        start, length = interval(n, cuts, view.mesh, view.coords)
        index = index.unsqueeze(-1) * n + torch.arange(start, start + length, dtype=torch.int64, device=device)
    sizes = iter(index.shape)
    return index.reshape([math.prod(next(sizes) for _ in dim) for dim in layout.dims])


def bits(key: int | Tensor, index: Tensor) -> Tensor:
    """Uniform 32-bit integers (int64), one per index."""
    low, high = index & _MASK, index >> 32
    return _mixed(_mixed((low + key * _GOLDEN % 2**32) & _MASK) ^ ((high * _GOLDEN + key) & _MASK))


def uniform(key: int | Tensor, index: Tensor) -> Tensor:
    """float32 in (0, 1)."""
    return ((bits(key, index) >> 8).to(torch.float32) + 0.5) * 2.0**-24


def normal(key: int | Tensor, index: Tensor, angles: int | Tensor | None = None) -> Tensor:
    """float32 standard normal (Box and Muller 1958). `angles`: the key of the second sequence; made of the first."""
    second = stream("second", int(key)) if angles is None else angles
    radius = torch.sqrt(-2.0 * torch.log(uniform(key, index)))
    return radius * torch.cos(2.0 * math.pi * uniform(second, index))


def keep_mask(rate: float, key: int | Tensor, index: Tensor) -> Tensor:
    """True where dropout of `rate` keeps an element."""
    return bits(key, index) >= int(rate * 2**32)
