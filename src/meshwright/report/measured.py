"""Predicted against measured: the step of every rank by what it does, and where the two part.

                predicted   measured
forward             41 ms      52 ms
collectives         10 ms      31 ms   <- parts most: 21 of 30 ms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._words import number, percent, plural
from ..errors import InputError
from ..plan.model import Plan
from ..simulate.result import Simulation
from .lines import columns

PARTS = ("forward", "backward", "collectives", "other stages", "update", "rest")
"""Computing, collectives that something waits for, transfers and waiting for other stages, the optimizer, all else."""
_OF = {
    "forward": "forward", "backward": "backward", "send": "other stages", "bubble": "other stages", "update": "update",
    "optimizer": "update", "idle": "rest", "rest": "rest",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RankTime:
    rank: int
    stages: tuple[int, ...]
    predicted: Mapping[str, float]
    """Part of PARTS -> seconds of one step."""
    measured: Mapping[str, float]

    @property
    def step(self) -> tuple[float, float]:
        """(predicted, measured) seconds."""
        return sum(self.predicted.values()), sum(self.measured.values())

    @property
    def parting(self) -> str:
        """The part in which the two differ most."""
        return max(PARTS, key=lambda p: abs(self.measured.get(p, 0.0) - self.predicted.get(p, 0.0)))


@dataclass(frozen=True, slots=True)
class Measured:
    """One step as it was predicted and as it was measured, a mean over `steps` steps."""

    ranks: tuple[RankTime, ...]
    steps: int
    priced_for: str = ""
    """The cluster that the prediction is for."""

    @property
    def slowest(self) -> RankTime:
        """Of the measured ones."""
        return max(self.ranks, key=lambda r: r.step[1])

    def lines(self) -> list[str]:
        """A table for a terminal: the slowest rank by its parts, and every rank's step."""
        worst = self.slowest
        parts = [p for p in PARTS if worst.predicted.get(p, 0.0) or worst.measured.get(p, 0.0)]
        rows = [["", "predicted", "measured", "off"]]
        for p in parts:
            rows.append([p, *_pair(worst.predicted.get(p, 0.0), worst.measured.get(p, 0.0))])
        rows.append([f"step of rank {worst.rank}", *_pair(*worst.step)])
        found = columns(rows, (1, 2, 3))
        off = worst.step[1] - worst.step[0]
        most = worst.measured.get(worst.parting, 0.0) - worst.predicted.get(worst.parting, 0.0)
        what = f"{worst.parting} take" if worst.parting in ("collectives", "other stages") else f"{worst.parting} takes"
        found.append(
            f"They part most where {what} {_ms(abs(most))} {'more' if most > 0 else 'less'} than predicted "
            f"(the step: {_ms(abs(off))} {'more' if off > 0 else 'less'}; mean of {plural(self.steps, 'step')})"
        )
        if len(self.ranks) > 1:
            each = [["rank", "stage", "predicted", "measured", "parts most in"]]
            for r in self.ranks:
                each.append([str(r.rank), ", ".join(map(str, r.stages)), *map(_ms, r.step), r.parting])
            found += columns(each, (0, 1, 2, 3))
        return found


def measured(
    plan: Plan, simulation: Simulation, spent: Sequence[Mapping[str, float]], steps: int, *, priced_for: str = ""
) -> Measured:
    """The table of a run.

    Args:
        simulation: of `plan`, with details.
        spent: per rank, seconds by what it did over `steps` steps: "forward", "backward", "update", "send" and kinds of
            collectives, as `execute.clock.Clock` measures them, and "step", the whole time (else their sum).

    Raises:
        InputError: the simulation has no details, or there are other ranks than the plan has devices.
    """
    devices = sorted({d for s in plan.stages for d in s.mesh.devices})
    if len(devices) != len(spent):
        raise InputError(
            f"{plural(len(spent), 'rank')} were measured, but the plan has {plural(len(devices), 'device')}"
        )
    if len(simulation.lane_seconds) != len(simulation.lanes):
        raise InputError("the simulation says nothing of single ranks: simulate with detail=True")
    found = []
    for rank, device in enumerate(devices):
        stages = tuple(k for k, s in enumerate(plan.stages) if device in s.mesh.devices)
        lane = next(k for k, lane in enumerate(simulation.lanes) if set(stages) <= set(lane.stages))
        found.append(
            RankTime(rank, stages, _merged(simulation.lane_seconds[lane]), _merged(_with_rest(spent[rank]), steps))
        )
    return Measured(tuple(found), steps, priced_for)


def _with_rest(spent: Mapping[str, float]) -> Mapping[str, float]:
    parts = {k: v for k, v in spent.items() if k != "step"}
    return {**parts, "rest": max(0.0, spent.get("step", 0.0) - sum(parts.values()))}


def _merged(seconds: Mapping[str, float], steps: int = 1) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in seconds.items():
        part = _OF.get(name, "collectives")
        found[part] = found.get(part, 0.0) + value / steps
    return found


def _pair(predicted: float, got: float) -> list[str]:
    off = percent((got - predicted) / predicted, 0) if predicted > 0 else ""
    return [_ms(predicted), _ms(got), f"+{off}" if off and got > predicted else off]


def _ms(seconds: float) -> str:
    return f"{number(1e3 * seconds)} ms"
