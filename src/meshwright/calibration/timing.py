"""Seconds of small pieces of work: warmed up, repeated in turns, and said with their spread.

All pieces are timed in rounds, one sample of each a round, so that a machine that slows down for a second slows all of them
down, and not one. A sample runs its piece often enough to last some milliseconds. On a GPU the device's own events are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SAMPLE_SECONDS = 4e-3
"""What one sample takes at least: far above the resolution of either clock."""
MOST_RUNS = 300
"""Runs in one sample; a GPU queues about a thousand launches."""
STALL_CYCLES = 2**24
"""Clock cycles, about 8 ms, for which a GPU is kept busy before a sample, so that the host has issued all of it by then:
otherwise short kernels would show the seconds of their calls."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run."""

    seconds: float
    """Median over the samples."""
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    repeats: int

    @property
    def spread(self) -> float:
        """Half of the distance of the quartiles, over the median."""
        return (self.high - self.low) / 2 / self.seconds


Work = Callable[[], object]
Turn = Callable[[], object]
"""Called before each sample: ranks that share a machine meet here, so that they work at the same time."""


def sample(work: Work, runs: int, device: torch.device, *, stall: bool = True) -> float:
    """Seconds of one of `runs` runs in a row. `stall`: of the device alone, not of the host that issues them."""
    if device.type == "cuda":
        events: Any = torch.cuda.Event  # has no types
        begin, end = events(enable_timing=True), events(enable_timing=True)
        torch.cuda.synchronize(device)
        if stall:
            _keep_busy()
        begin.record()
        for _ in range(runs):
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / runs
    began = time.perf_counter()
    for _ in range(runs):
        work()
    return (time.perf_counter() - began) / runs


def _keep_busy() -> None:
    """torch's own tests stall a stream like this; the function is not public."""
    sleep: Any = getattr(torch.cuda, "_sleep", None)
    if sleep is not None:
        sleep(STALL_CYCLES)


def runs_of(work: Work, device: torch.device) -> int:
    """Runs in a sample; also the warm-up: libraries choose their kernels in the first runs."""
    for _ in range(2):
        work()
    once = max(sample(work, 1, device), 1e-7)
    if once < SAMPLE_SECONDS:
        once = max(sample(work, 3, device), 1e-7)
    return max(1, min(MOST_RUNS, round(SAMPLE_SECONDS / once)))


def in_turns(
    works: Sequence[Work],
    rounds: int,
    device: torch.device,
    *,
    turn: Turn = lambda: None,
    done: Callable[[int], None] = lambda round_: None,
    runs: Sequence[int] | None = None,
    issued: Sequence[bool] | None = None,
) -> list[Timing]:
    """One timing of each piece of work, over `rounds` rounds.

    Args:
        turn: see `Turn`.
        done: called after each round.
        runs: of each piece in a sample; ranks that talk to each other must agree on them.
        issued: pieces of which the host's calls are timed, too.
    """
    counts = list(runs) if runs is not None else [runs_of(work, device) for work in works]
    seconds = np.zeros((rounds, len(works)))
    for round_ in range(rounds):
        for k, work in enumerate(works):
            turn()
            seconds[round_, k] = sample(work, counts[k], device, stall=not (issued and issued[k]))
        done(round_ + 1)
    return [summary(column) for column in seconds.T]


def summary(seconds: Sequence[float] | np.ndarray) -> Timing:
    """Median and quartiles of samples."""
    low, middle, high = np.percentile(np.asarray(seconds, np.float64), (25, 50, 75))
    return Timing(float(middle), float(low), float(high), len(seconds))
