"""A stack of software learnt from a few of its own steps: how much longer each kind of work takes there than we say.

On published steps (each source predicted by constants fitted without it) three steps of a source, drawn at random, take the
median error over 16 sources from 9.6 to 7.5 %; taking off the median bias of the three alone reaches 9.3 %. The mean stays at
9.6 to 9.8 %: tables that mix several stacks gain nothing. See benchmarks/bench_own_steps.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..cost import Analytic
from ..cost.base import CostModel
from ..cost.constants import Family, Software, families
from ..graph.ir import Floats
from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate import simulate
from .posterior import Found, Guess, most_likely
from .profile import Measured, Profile, with_constants

if TYPE_CHECKING:
    from .timing import Timing

NOISE = 0.05
"""Of one step around a right model: equal settings of one source repeat within 3 to 6 %."""


@dataclass(frozen=True, slots=True)
class Term:
    """A kind of work. Its factor multiplies seconds: constants that are rates are divided by it."""

    name: str
    spread: float
    """Standard deviation of the logarithm of the factor: how much stacks differ."""
    times: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()


TERMS = (
    Term("products", 0.08, rates=("rate",)),
    Term("attention", 0.20, ("score_bytes",), ("attention_first", "attention_flash", "attention_modern", "score_rate")),
    Term("memory", 0.15, rates=("memory", "norm")),
    Term("fusion", 0.30, ("fused",)),
    Term("collectives", 0.20, rates=("inner", "outer")),
    Term("transfers", 0.40, ("transfer",)),
    Term("host", 0.50, ("floor_forward", "floor_backward", "dispatch", "expert")),
    Term("fixed", 0.80, ("fixed",)),
    Term("stragglers", 0.70, ("straggle",)),
)
"""Spreads: what fitting each source alone moves the constants by, rounded; halving or doubling any one of them changes the
error on published steps by less than half a point."""
OF_SOFTWARE = tuple(t for t in TERMS if {*t.times, *t.rates} <= {f.name for f in fields(Software)})
"""Those that leave the device as it is: what two generations of software on one device differ in."""
Factors = Mapping[str, float]
"""Term -> factor on its seconds."""


def slower(row: Family | Software, factors: Factors) -> dict[str, float]:
    """The constants of a family or a generation that the factors change, with their new values."""
    found: dict[str, float] = {}
    for term in TERMS:
        factor = factors.get(term.name, 1.0)
        if factor == 1.0:
            continue
        found |= {name: getattr(row, name) * factor for name in term.times if hasattr(row, name)}
        found |= {name: getattr(row, name) / factor for name in term.rates if hasattr(row, name)}
    return found


def learn(
    price: Callable[[Factors], Floats], measured: Sequence[float], trust: float = 1.0, terms: Sequence[Term] = TERMS
) -> Found:
    """The factors that explain a few steps best; a term that nothing speaks of stays near 1.

    Args:
        price: factors -> predicted seconds of the steps.
        measured: seconds of the same steps.
        trust: in the constants that the steps begin with; below 1 the spreads are as many times wider.
        terms: whose factors may differ from 1.
    """
    guesses = [Guess(t.name, 1.0, t.spread / trust) for t in terms]
    return most_likely(price, np.asarray(measured, np.float64), guesses, NOISE)


@dataclass(frozen=True, slots=True)
class Step:
    """One measured step of a stack: its problem and plan, and what it took."""

    name: str
    problem: Problem
    plan: Plan
    seconds: float
    memory: float = 0.0
    """Bytes on the fullest device; 0: not measured."""
    timing: Timing | None = None
    """Quartiles, where the step was timed more than once."""

    @property
    def family(self) -> str:
        device = self.problem.cluster.types[0]
        return device.family or device.kind


@dataclass(frozen=True)
class Learnt:
    profile: Profile
    factors: Factors
    before: Floats
    """Seconds of the steps by the constants that the calibration began with."""
    after: Floats
    without: Floats
    """Seconds of each step by what the OTHERS teach; nan with a single step, or where it was not asked for."""
    memory: Floats
    """Predicted bytes of the steps on the fullest device."""


def learn_stack(
    steps: Sequence[Step],
    *,
    name: str,
    software: str,
    base: Profile | None = None,
    trust: float = 1.0,
    terms: Sequence[Term] = TERMS,
    check: bool = True,
    said: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Learnt:
    """A profile of the stack that ran these steps.

    Args:
        software: the generation that is nearest to it.
        base: constants to begin with, of a machine that was measured; None: the shipped ones.
        trust, terms: see `learn`.
        check: also say of each step what the others teach.
        said: called with what is done, how far, of how much.
    """
    names = sorted({s.family for s in steps})
    start = base or Profile(name, software)
    known = {**families(), **start.family_table()}
    plain = start.generation(software)

    def cost(problem: Problem, factors: Factors) -> CostModel:
        table = {f: with_constants(known[f], slower(known[f], factors)) for f in names}
        dtype = problem.recipe.matmul_dtype or problem.recipe.compute_dtype
        return Analytic(precision=dtype, software=with_constants(plain, slower(plain, factors)), families=table)

    def price(chosen: Sequence[Step], factors: Factors) -> Floats:
        plays = (simulate(replace(s.problem, cost=cost(s.problem, factors)), s.plan, detail=False) for s in chosen)
        return np.array([play.step_seconds for play in plays])

    measured = [s.seconds for s in steps]
    said("steps", 0, len(steps) + 1)
    before = price(steps, {})
    found = learn(partial(price, steps), measured, trust, terms)
    without = np.full(len(steps), np.nan)
    for k in range(len(steps) if check and len(steps) > 1 else 0):
        said("steps", k + 1, len(steps) + 1)
        others = [s for j, s in enumerate(steps) if j != k]
        own = learn(partial(price, others), [s.seconds for s in others], trust, terms)
        without[k] = price([steps[k]], own.values)[0]
    after = price(steps, found.values)
    memory = np.array([float(simulate(s.problem, s.plan, detail=False).peak.max()) for s in steps])
    profile = Profile(
        name=name,
        software=software,
        machine=start.machine,
        local=start.local,
        families={
            **start.families,
            **{f: {**start.families.get(f, {}), **slower(known[f], found.values)} for f in names},
        },
        generations={
            **start.generations,
            software: {**start.generations.get(software, {}), **slower(plain, found.values)},
        },
        measured=dict(start.measured) | {s.name: _evidence(s, float(p)) for s, p in zip(steps, after, strict=True)},
        source=f"learnt from {len(steps)} steps of one stack, nearest to the {software} generation of software",
    )
    return Learnt(profile, found.values, before, after, without, memory)


def _evidence(step: Step, predicted: float) -> Measured:
    if (t := step.timing) is None:
        return Measured(step.seconds, step.seconds, step.seconds, 1, predicted)
    return Measured(t.seconds, t.low, t.high, t.repeats, predicted)


__all__ = ["OF_SOFTWARE", "TERMS", "Factors", "Learnt", "Step", "Term", "learn", "learn_stack", "slower"]
