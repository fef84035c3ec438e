"""How long a plan takes for a number of tokens, and for how much money: in the currency of the cluster's prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite

from .._words import count, money, number
from ..cluster.model import Cluster
from .answers import SizeAnswer, TrainingAnswer

DAY = 86_400.0
HOUR = 3_600.0
UNIT = 1e9
"""Tokens (or samples) whose money is shown of each size of cluster."""


@dataclass(frozen=True, slots=True)
class Training:
    tokens: float
    steps: int
    seconds: float
    low: float | None
    """Seconds between which most measured steps lie; None: too little was measured."""
    high: float | None
    devices: int
    per_hour: float | None
    """Money for an hour of all devices; None = not known."""

    @property
    def device_hours(self) -> float:
        return self.devices * self.seconds / HOUR

    @property
    def cost(self) -> float | None:
        return self.per_hour * self.seconds / HOUR if self.per_hour is not None else None


@dataclass(frozen=True, slots=True)
class Size:
    """One size of cluster among those that were searched for the cheapest."""

    cluster: str
    devices: int
    step_s: float
    """nan where nothing fits."""
    per_item: float
    """Money for a token (or sample); nan where nothing fits."""
    reason: str = ""
    """Why there is no plan."""


def training(
    tokens: float, each_step: int, step: float, interval: tuple[float, float] | None, cluster: Cluster
) -> Training:
    """`tokens` in whole steps of `each_step` tokens and `step` seconds, on all devices of the cluster."""
    steps = ceil(tokens / each_step)
    low, high = (steps * interval[0], steps * interval[1]) if interval else (None, None)
    return Training(tokens, steps, steps * step, low, high, cluster.count, cluster.price_per_hour)


def training_words(found: Training, cluster: Cluster, device_word: str, share: float) -> list[str]:
    """Two sentences: how long, how much.

    Args:
        share: percent of measured steps that the interval holds.
    """
    plural = f"{device_word}s" if found.devices > 1 else device_word
    days = f"{number(found.seconds / DAY)} days on {count(found.devices)} {plural}"
    if found.low is not None and found.high is not None:
        days += f" ({number(found.low / DAY)} to {number(found.high / DAY)} where {share:.0f} % of steps lie)"
    steps = f"{count(found.tokens)} tokens in {count(found.steps)} step{'s' if found.steps > 1 else ''}: {days}."
    hours = f"{count(found.device_hours)} {device_word}-hours"
    if found.cost is None:
        unknown = ", ".join(t.name for t in cluster.types if t.price_per_hour <= 0)
        return [steps, f"{hours}; no price of {unknown} is known: give --price, or price_per_hour in a cluster.toml."]
    if cluster.homogeneous:
        return [steps, f"{hours} at {number(cluster.types[0].price_per_hour)} each cost {money(found.cost)}."]
    return [steps, f"{hours} cost {money(found.cost)}."]


def size_words(sizes: Sequence[Size], chosen: str, item: str) -> str:
    """ "h100x16 is the cheapest: 0.61 a billion tokens; h100x8 0.63, h100x32 0.66, h100x64 does not fit"."""
    best = next(s for s in sizes if s.cluster == chosen)
    others = [
        f"{s.cluster} {money(s.per_item * UNIT)}" if isfinite(s.per_item) else f"{s.cluster} has no plan"
        for s in sizes
        if s is not best
    ]
    words = f"{chosen} is the cheapest: {money(best.per_item * UNIT)} for a billion {item}s"
    return f"{words}; {', '.join(others)}." if others else f"{words}."


def training_object(found: Training) -> TrainingAnswer:
    return {
        "tokens": found.tokens,
        "steps": found.steps,
        "days": found.seconds / DAY,
        "days_low": found.low / DAY if found.low is not None else None,
        "days_high": found.high / DAY if found.high is not None else None,
        "device_hours": found.device_hours,
        "cost": found.cost,
    }


def size_object(size: Size) -> SizeAnswer:
    return {
        "cluster": size.cluster,
        "devices": size.devices,
        "step_s": size.step_s,
        "cost_per_item": size.per_item,
        "reason": size.reason,
    }
