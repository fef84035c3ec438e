"""How sure a prediction is: an interval from steps that were held out, and the error on pairs of plans.

The figures ship as error_model.toml; after a change of the cost model they are written anew:

    meshwright validate --json > validated.json && python -m meshwright.report.error_model validated.json
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from .._words import gib, memory_unit, number, plural
from ..cost.constants import Predicted

KINDS: Mapping[str, str] = {
    "dense": "dense transformers",
    "MoE": "mixtures of experts",
    "low precision": "dense transformers in 8 bits or fewer",
}
"""Kind of problem that measurements tell apart -> the words for it; "" is any other."""


@dataclass(frozen=True, slots=True)
class Range:
    """Of one device family and kind of problem: where `share` % of held-out steps lay, measured over predicted."""

    steps: int
    sources: int
    """Independent ones."""
    low: float | None
    """None with fewer than three sources: they say nothing about the next one."""
    high: float | None


@dataclass(frozen=True, slots=True)
class ErrorModel:
    pairs_within: float
    """Relative; two plans of one problem that are closer are a tie."""
    pairs_source: str
    share: float
    """Per cent of held-out steps that the intervals speak of."""
    ranges: Mapping[tuple[str, str], Range]
    """(device family, kind) -> range."""
    memory: Mapping[str, Range]
    """Kind -> range of the allocated peak, of whatever device."""
    provenance: str
    others: Mapping[Predicted, str] = field(default_factory=dict)
    """What is predicted by other constants than those that ship -> whose they are. No measured step speaks of it."""

    def by_others(self, others: Mapping[Predicted, str]) -> ErrorModel:
        """The same of predictions that other constants make: without the ranges that these have no part in."""
        if not others:
            return self
        return replace(
            self,
            ranges={} if "step" in others else self.ranges,
            memory={} if "memory" in others else self.memory,
            provenance=f"{self.provenance}; by the constants that ship, not by those of {' and '.join(sorted({*others.values()}))}",
            others=others,
        )

    def interval(self, family: str, kind: str, seconds: float) -> tuple[float, float] | None:
        """Seconds between which a step predicted to take `seconds` lies; None where too little was measured to say."""
        return _times(seconds, self.ranges.get((family, kind)))

    def memory_interval(self, kind: str, nbytes: float) -> tuple[float, float] | None:
        """Bytes between which a peak predicted to be `nbytes` lies; None where too little was measured to say."""
        return _times(nbytes, self.memory.get(kind))

    def memory_sentence(self, kind: str, nbytes: float) -> str:
        """How sure a predicted peak of `nbytes` is."""
        if other := self.others.get("memory"):
            return f"No interval for memory: bytes are counted by {other}, and measured peaks speak of what ships only."
        found = self.memory.get(kind)
        interval = self.memory_interval(kind, nbytes)
        if found is None or interval is None:
            return f"No interval for memory: too few measured peaks of {KINDS.get(kind, 'models of this kind')}."
        unit, name = memory_unit(nbytes)
        return (
            f"{self.share:.0f} % of measured peaks were {found.low:.2f} to {found.high:.2f} times the prediction: here "
            f"{gib(interval[0], unit)} to {gib(interval[1], unit)} {name} ({plural(found.sources, 'independent source')}, "
            f"{plural(found.steps, 'run')})."
        )

    def sentence(self, family: str, kind: str, device: str, seconds: float) -> str:
        """How sure a prediction of `seconds` for devices of `family`, called `device`, is."""
        found = self.ranges.get((family, kind))
        what = KINDS.get(kind, "models of this kind")
        order = "take the order of plans before the seconds"
        if other := self.others.get("step"):
            return (
                f"No interval: seconds are predicted by the constants of {other}, and the table of measured steps says nothing "
                f"of those, only of the constants that ship, so {order}."
            )
        if found is None:
            return (
                f"No measured steps of {what} on {device} stand behind these figures: published constants of the hardware "
                f"only, so {order}."
            )
        if found.low is None or found.high is None:
            return (
                f"No interval: {plural(found.steps, 'measured step')} of {what} on {device} from "
                f"{plural(found.sources, 'independent source')}, and three are needed, so {order}."
            )
        interval = self.interval(family, kind, seconds)
        here = f": here {number(interval[0])} to {number(interval[1])} s" if interval else ""
        return (
            f"{self.share:.0f} % of held-out steps of {what} on {device} took {found.low:.2f} to {found.high:.2f} times the "
            f"prediction{here} ({plural(found.sources, 'independent source')}, {plural(found.steps, 'step')})."
        )


def _times(value: float, found: Range | None) -> tuple[float, float] | None:
    if found is None or found.low is None or found.high is None or not isfinite(value):
        return None
    return value * found.low, value * found.high


@cache
def error_model() -> ErrorModel:
    """The figures that ship with this version."""
    return from_toml(files(__package__).joinpath("error_model.toml").read_text(encoding="utf-8"))


def from_toml(text: str) -> ErrorModel:
    """The inverse of `to_toml`."""
    table = tomllib.loads(text)
    found = {
        part: [
            (row, Range(row["steps"], row["sources"], row.get("low"), row.get("high"))) for row in table.get(part, [])
        ]
        for part in ("range", "memory")
    }
    return ErrorModel(
        table["pairs"]["within"],
        table["pairs"]["source"],
        table["share"],
        {(row["family"], row["kind"]): one for row, one in found["range"]},
        {row["kind"]: one for row, one in found["memory"]},
        table["provenance"],
    )


def to_toml(validated: Mapping[str, Any]) -> str:
    """error_model.toml from the object of `meshwright validate --json`."""
    pairs = validated["pairs"]
    lines = [
        "# How far measured steps have been from predictions; shown beside every plan. Written by error_model.py.",
        "# low, high: measured over predicted; `covered` % of the rows of a source lay inside when the range was made without it.",
        "# Without low and high: fewer than three independent sources. What is missing here has no measured steps behind it.",
        "",
        f"share = {validated['share']:g}",
        f'provenance = "{validated["rows"]:,} published steps of {len(validated["sources"])} sources, each source predicted by '
        f'constants fitted without it: {validated["mape"]:.1f} % mean error over sources"',
        "",
        "[pairs]",
        "# Two plans of one problem that are closer than this are a tie.",
        f"within = {pairs['error'] / 100:.3f}",
        f'source = "median error of the ratio of two measured plans of one problem, over {pairs["pairs"]:,} pairs within '
        f"{pairs['near']:g} % of each other; of plans predicted to differ by more, {pairs['ordered']:.0f} % are in the right "
        'order"',
    ]
    for name, row in (
        *(("range", row) for row in validated["intervals"]),
        *(("memory", row) for row in validated["memory_intervals"]),
    ):
        lines += [
            "",
            f"[[{name}]]",
            *([f'family = "{row["family"]}"'] if row["family"] else []),
            f'kind = "{row["kind"]}"',
        ]
        lines += [f"steps = {row['rows']}", f"sources = {row['sources']}"]
        if row["low"] is not None:
            lines += [f"low = {row['low']:.3f}", f"high = {row['high']:.3f}", f"covered = {row['covered']:.1f}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(__file__).with_suffix(".toml").write_text(to_toml(found), encoding="utf-8")
