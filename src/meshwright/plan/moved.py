"""What moves when one plan replaces another, and what each rank reads of a checkpoint: the facts that are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .layout import Box


@dataclass(frozen=True, slots=True)
class DeviceMoves:
    """Bytes of one device of the new cluster."""

    device: int
    kept: float
    received: float
    read: float
    sent: float


@dataclass(frozen=True, slots=True)
class Piece:
    """The largest single piece of parameters that move alike."""

    tensor: str
    alike: int
    """Other parameters of which the same piece goes the same way."""
    src: int
    """A device, or READ."""
    dst: int
    nbytes: float


@dataclass(frozen=True, slots=True)
class Moves:
    """All that devices must have before they go on under the new plan."""

    devices: tuple[DeviceMoves, ...]
    stay: Mapping[int, int]
    """Device of the old cluster -> its number in the new one."""
    seconds: float
    """Of the busiest device, one transfer after the other, sends and receipts at the same time; without what is read."""
    biggest: tuple[Piece, ...]
    held: Mapping[int, Mapping[str, tuple[Box, ...]]]
    """Device -> parameter -> what it holds under the new plan."""

    def total(self, what: str) -> float:
        """Bytes over all devices of "kept", "received" or "read"."""
        return float(sum(getattr(d, what) for d in self.devices))


@dataclass(frozen=True, slots=True)
class RankReads:
    """What one rank needs of a checkpoint."""

    rank: int
    nbytes: int
    tensors: int
    """Weights, and what the optimizer keeps of each of their elements."""
    files: tuple[str, ...]
