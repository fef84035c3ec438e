"""Random numbers that depend on WHERE in the whole tensor an element is, not on who computes it.

Each number is a hash of (seed, step, micro-batch, name of the op, global index), so sharding and recomputation do not
change it. The hash is a 32-bit integer mixer with good avalanche (constants: C. Wellons, "hash-prospector", lowbias32).
"""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from ..plan.layout import interval
from ..plan.model import Layout
from .collectives import atoms
from .mesh_groups import MeshView

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B1


def _mixed(x: Tensor) -> Tensor:
    """lowbias32 on int64 tensors that hold 32-bit values."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def stream(name: str, *numbers: int) -> int:
    """A 32-bit key of a named sequence of random numbers."""
    return zlib.crc32(" ".join([name, *map(str, numbers)]).encode())


def global_index(shape: tuple[int, ...], layout: Layout, view: MeshView, device: torch.device) -> Tensor:
    """Row-major index in the whole tensor of each own element, in the local shape."""
    flat = atoms(layout, shape)
    index = torch.zeros((), dtype=torch.int64, device=device)
    for n, cuts in flat:
        start, length = interval(n, cuts, view.mesh, view.coords)
        index = index.unsqueeze(-1) * n + torch.arange(start, start + length, dtype=torch.int64, device=device)
    sizes = iter(index.shape)
    return index.reshape([math.prod(next(sizes) for _ in dim) for dim in layout.dims])


def bits(key: int, index: Tensor) -> Tensor:
    """Uniform 32-bit integers (int64), one per index."""
    low, high = index & _MASK, index >> 32
    return _mixed(_mixed((low + key * _GOLDEN) & _MASK) ^ ((high * _GOLDEN + key) & _MASK))


def uniform(key: int, index: Tensor) -> Tensor:
    """float32 in (0, 1)."""
    return ((bits(key, index) >> 8).to(torch.float32) + 0.5) * 2.0**-24


def normal(key: int, index: Tensor) -> Tensor:
    """float32 standard normal (Box and Muller 1958)."""
    radius = torch.sqrt(-2.0 * torch.log(uniform(key, index)))
    return radius * torch.cos(2.0 * math.pi * uniform(stream("second", key), index))


def keep_mask(rate: float, key: int, index: Tensor) -> Tensor:
    """True where dropout of `rate` keeps an element."""
    return bits(key, index) >= int(rate * 2**32)
