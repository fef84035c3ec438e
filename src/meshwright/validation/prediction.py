"""Measured rows through the simulator: seconds and bytes as predicted, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, nan

import numpy as np

from ..cost.collectives import CollectivePrices
from ..simulate import Simulation, simulate
from .baseline import Efficiency
from .parameters import Values, tables
from .plans import Case, Cases, cost_of
from .resting import resting
from .rows import Row
from .settings import ASIDE
from .worth import Stacks, told

CONTEXT = 1e9
"""Bytes that nvidia-smi counts besides the allocator's: contexts of CUDA and NCCL take 0.5 to 1.5 GB."""
CACHED = 1.115
"""Peak that torch's allocator has reserved over the peak that is allocated: median of the 120 stages of Aceso's and Megatron's
runs that Mist published (mist_aceso_runs.csv; a tenth are below 1.057, a tenth above 1.145)."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row and what was predicted for it by constants that its source had no part in."""

    row: Row
    seconds: float
    memory: float = nan
    """Peak bytes of the device that `row.memory` is of, counted as `row.memory_kind` counts."""
    allocated: float = nan
    """Bytes that stay allocated between steps, of the same device."""
    peak: float = 0.0
    """Peak bytes of the device that is nearest to its limit, or furthest over it."""
    usable: float = inf
    """Bytes that this device may be filled with."""
    baseline: float = nan
    """Seconds at the efficiency of the same device and precision in other sources."""
    own_baseline: float = nan
    """Seconds at the efficiency of its own source, device and precision."""
    worth: tuple[float, ...] = ()
    """Seconds of the step by kind of work [calibration.stack.TERMS]: what they grow by with its factor; () where it was not
    asked for."""

    @property
    def error(self) -> float:
        """Relative, signed: above 0 = predicted too slow."""
        return self.seconds / self.row.seconds - 1.0

    @property
    def fits(self) -> bool:
        """Whether every device holds what the plan needs."""
        return self.peak <= self.usable

    @property
    def kind(self) -> str:
        """Of the problem, as error statements tell them apart: MoE, low precision or dense."""
        return kind_of_row(self.row)

    @property
    def flagged(self) -> bool:
        """Whether the row says little of large training (see `Row.flags`)."""
        return bool(ASIDE & set(self.row.flags))


def kind_of_row(row: Row) -> str:
    """See `Prediction.kind`."""
    if row.ep > 1 or getattr(row.model, "experts", False):
        return "MoE"
    return "low precision" if row.precision.startswith("float8") or row.precision.startswith("float4") else "dense"


def stack_of(row: Row) -> tuple[str, str, str]:
    """(source, machine, kind of work): rows whose software is taken to differ from ours in one way."""
    return row.source, row.machine, kind_of_row(row)


def prepare(rows: Sequence[Row], made: Cases | None = None) -> list[Case]:
    """Cases of rows, in the order of their models, which share graphs and lowering; `made`: what is made already."""
    made = made or Cases()
    return [made.of(row) for row in sorted(rows, key=lambda r: (str(r.model), r.id))]


def played(cases: Sequence[Case], values: Values) -> Iterator[Simulation]:
    """A step of each case with these constants."""
    found_families, found_software = tables(values)
    prices = CollectivePrices()
    for case in cases:
        problem = case.problem.__class__(
            case.problem.graph,
            case.problem.cluster,
            cost_of(case.row, found_families, found_software, prices),
            case.problem.recipe,
        )
        yield simulate(problem, case.plan, program=case.program, detail=False)


def predictions(
    rows: Sequence[Row],
    constants: Callable[[str], Values],
    efficiency: Efficiency,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Prediction]:
    """Every row, each source by `constants(source)`.

    Args:
        efficiency: of all rows, for the baselines.
        progress: called with source, done, total.
    """
    found: list[Prediction] = []
    made = Cases()
    for name in sorted({r.source for r in rows}):
        if progress:
            progress(name, len(found), len(rows))
        cases = prepare([r for r in rows if r.source == name], made)
        stacks, telling = Stacks(constants(name), cases), told([c.row for c in cases if c.row.seconds])
        found += [
            _prediction(case, simulation, efficiency, stacks.worth(case) if case.row.id in telling else ())
            for case, simulation in zip(cases, played(cases, constants(name)), strict=True)
        ]
    return found


def _prediction(case: Case, simulation: Simulation, efficiency: Efficiency, worth: Iterable[float] = ()) -> Prediction:
    row, problem = case.row, case.problem
    lanes = simulation.lanes
    usable = np.array([problem.limits.usable(problem.cluster.type_of(x.first_device).memory) for x in lanes])
    worst = int(np.argmax(simulation.peak - usable))
    here = len(lanes) - 1 if row.memory_at == "last" else int(np.argmax(simulation.peak))
    return Prediction(
        row,
        simulation.step_seconds,
        memory=_reading(float(simulation.peak[here]), row.memory_kind),
        allocated=resting(case, simulation, here),
        peak=float(simulation.peak[worst]),
        usable=float(usable[worst]),
        baseline=efficiency.of_others(row),
        own_baseline=efficiency.of_own(row),
        worth=tuple(map(float, worth)),
    )


def _reading(peak: float, kind: str) -> float:
    """What a peak of allocated bytes reads as where memory is counted as `kind`."""
    return CACHED * peak + CONTEXT if kind == "nvidia-smi" else peak
