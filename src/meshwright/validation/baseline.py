"""What a model has to beat: every device computes useful FLOPs at one constant rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import nan

import numpy as np

from .rows import Row
from .settings import ASIDE


class Efficiency:
    """Median useful FLOP/s a device of measured rows, by device and width of the operands.

    Rows that are bound by the host or ran on a shared one say nothing of a device.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rates: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        for row in (r for r in rows if not ASIDE & set(r.flags)):
            self._rates[row.source, row.device, bits(row)].append(_work(row) / row.seconds)

    def of_others(self, row: Row) -> float:
        """Seconds of the row at the rate of the same device and width in all other sources.

        Where no other source has both, the rate of the device's other widths, in proportion to the width; nan where no
        other source has the device.
        """
        rates: dict[int, list[float]] = defaultdict(list)
        for (source, device, width), found in self._rates.items():
            if source != row.source and device == row.device:
                rates[width] += found
        width = bits(row)
        same = rates.get(width) or [rate * other / width for other, found in rates.items() for rate in found]
        return _seconds(row, same)

    def of_own(self, row: Row) -> float:
        """Seconds of the row at the rate of its own source: what is left when the source is known."""
        return _seconds(row, self._rates.get((row.source, row.device, bits(row)), []))


def bits(row: Row) -> int:
    """Of an operand of the row's matrix products."""
    digits = row.precision.lstrip("abcdefghijklmnopqrstuvwxyz").partition("_")[0]
    return int(digits)


def _work(row: Row) -> float:
    """Useful FLOPs of a step a device."""
    return row.model.flops * row.batch / row.devices


def _seconds(row: Row, rates: Sequence[float]) -> float:
    return _work(row) / float(np.median(rates)) if rates else nan
