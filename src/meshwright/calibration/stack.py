"""A stack of software learnt from a few of its own steps: how much longer each kind of work takes there than we say.

How far stacks differ, in all kinds of work together and in each alone, and how far a step stays from a stack that is known,
is fitted to published steps (priors.toml, by validation/priors.py): three steps move what stacks do differ in, as far as
they do, and no more. What that is worth on published steps of a source that had no part in it is a column of `validate`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from ..cost import Analytic
from ..cost.base import CostModel
from ..cost.constants import Family, Software, families
from ..graph.ir import Floats
from ..lower.program import Program
from ..plan.model import Plan
from ..plan.problem import Problem
from ..simulate import simulate
from ..simulate.several import seconds_by
from .posterior import Found, Guess, most_likely
from .profile import Measured, Profile, with_constants

if TYPE_CHECKING:
    from .timing import Timing


@dataclass(frozen=True, slots=True)
class Term:
    """A kind of work. Its factor multiplies seconds: constants that are rates are divided by it."""

    name: str
    spread: float
    """Standard deviation of the logarithm of the factor: a guess, of how far a machine stays from what its kernels say."""
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
OF_SOFTWARE = tuple(t for t in TERMS if {*t.times, *t.rates} <= {f.name for f in fields(Software)})
"""Those that leave the device as it is: what two generations of software on one device differ in."""
EVERYTHING = "everything"
"""Name of the factor on all kinds of work together, but for latencies of links and kernels."""
WITHIN = frozenset({"score_rate", "score_bytes", "fused", "transfer", "straggle"})
"""Constants whose seconds have a factor on everything from others: unfused attention is products and memory, what is fused
passes through memory, transfers cross the links of collectives, stragglers are a share of the step."""
Factors = Mapping[str, float]
"""Term, or `EVERYTHING` -> factor on its seconds."""


def slower(row: Family | Software, factors: Factors) -> dict[str, float]:
    """The constants of a family or a generation that the factors change, with their new values."""
    everything = factors.get(EVERYTHING, 1.0)
    found: dict[str, float] = {}
    for term in TERMS:
        for name in (*term.times, *term.rates):
            factor = factors.get(term.name, 1.0) * (1.0 if name in WITHIN else everything)
            if factor != 1.0 and hasattr(row, name):
                found[name] = getattr(row, name) * factor if name in term.times else getattr(row, name) / factor
    return found


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known of a stack before any of its steps."""

    noise: float
    """Standard deviation of the logarithm of a step around what a stack that is known makes of it."""
    spreads: Mapping[str, float]
    """Term, or `EVERYTHING` -> standard deviation of the logarithm of its factor; what is not named stays as it is."""


@cache
def priors() -> Mapping[str, Prior]:
    """ "all", and each source of published steps: fitted to all sources, and to all but that one."""
    table = tomllib.loads(resources.files(__package__).joinpath("priors.toml").read_text(encoding="utf-8"))
    return {name: Prior(row["noise"], {k: v for k, v in row.items() if k != "noise"}) for name, row in table.items()}


NOISE = 0.05
"""Of one step of a machine whose kernels were measured: its own repeats lie within 3 to 6 %."""


def guessed(trust: float = 1.0, terms: Sequence[Term] = TERMS) -> Prior:
    """Of a machine whose kernels were measured.

    Args:
        trust: in the constants that these gave; below 1 the spreads are as many times wider.
        terms: whose factors may differ from 1.
    """
    return Prior(NOISE, {t.name: t.spread / trust for t in terms})


def learn(
    price: Callable[[Factors], Floats],
    measured: Sequence[float] | Floats,
    prior: Prior,
    slopes: Callable[[Factors], Floats] | None = None,
) -> Found:
    """The factors that explain a few steps best; a term that nothing speaks of stays at 1.

    Args:
        price: factors -> predicted seconds of the steps.
        measured: seconds of the same steps.
        slopes: factors -> change [factor, step] of the logarithm of `price` with that of each factor, in the order of the
            prior; None: by differences.
    """
    guesses = [Guess(name, 1.0, spread) for name, spread in prior.spreads.items()]
    return most_likely(price, np.asarray(measured, np.float64), guesses, prior.noise, slopes)


NEAR = 0.05
"""Change of a factor that says what its kind of work is worth."""


def slopes(seconds: Callable[[Sequence[Factors]], Floats], factors: Factors) -> Floats:
    """See `learn`: by differences, of steps that are priced by several factors at once.

    Args:
        seconds: several factors -> predicted seconds [step, of them].
    """
    found = np.log(seconds([factors, *({**factors, name: f * (1.0 + NEAR)} for name, f in factors.items())]))
    change: Floats = (found[:, 1:] - found[:, :1]).T / np.log1p(NEAR)
    return change


def worth(
    problem: Problem, plan: Plan, cost: Callable[[Factors], CostModel], program: Program | None = None
) -> tuple[float, Floats]:
    """Seconds of a step, and how many of them each kind of work is worth [TERMS]: what they grow by with its factor. Some
    count twice, as what is fused passes through memory.

    Args:
        cost: factors -> model.
    """
    costs = [cost({}), *(cost({t.name: 1.0 + NEAR}) for t in TERMS)]
    seconds = seconds_by(problem, plan, costs, program)
    return float(seconds[0]), (seconds[1:] - seconds[0]) / NEAR


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """Steps as sums over kinds of work: what `price` says of factors that are not far from 1, without any simulation."""

    seconds: Floats
    """[step]"""
    kinds: Floats
    """Seconds [step, TERMS]; see `worth`."""

    def price(self, factors: Factors) -> Floats:
        """Seconds [step]."""
        return factors.get(EVERYTHING, 1.0) * self._own(factors)

    def slopes(self, factors: Factors) -> Floats:
        """See `learn`."""
        own = self._own(factors)
        column = {t.name: k for k, t in enumerate(TERMS)}
        rows = [
            self.kinds[:, column[name]] * f / own if name != EVERYTHING else np.ones(len(own))
            for name, f in factors.items()
        ]
        return np.array(rows)

    def of(self, steps: Sequence[int] | Floats) -> Worth:
        """The same of some of the steps."""
        return Worth(self.seconds[steps], self.kinds[steps])

    def _own(self, factors: Factors) -> Floats:
        more = np.array([factors.get(t.name, 1.0) - 1.0 for t in TERMS])
        found: Floats = self.seconds + self.kinds @ more
        return found


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
    prior: Prior | None = None,
    check: bool = True,
    said: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Learnt:
    """A profile of the stack that ran these steps.

    Args:
        software: the generation that is nearest to it.
        base: constants to begin with, of a machine that was measured; None: the shipped ones.
        prior: how far stacks differ; None: as far as published ones do.
        check: also say of each step what the others teach.
        said: called with what is done, how far, of how much.
    """
    names = sorted({s.family for s in steps})
    expected = prior or priors()["all"]
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

    def at_once(chosen: Sequence[Step], several: Sequence[Factors]) -> Floats:
        return np.array([seconds_by(s.problem, s.plan, [cost(s.problem, f) for f in several]) for s in chosen])

    def taught(chosen: Sequence[Step]) -> Factors:
        seconds = [s.seconds for s in chosen]
        return learn(partial(price, chosen), seconds, expected, partial(slopes, partial(at_once, chosen))).values

    said("steps", 0, len(steps) + 1)
    before = price(steps, {})
    factors = taught(steps)
    without = np.full(len(steps), np.nan)
    for k in range(len(steps) if check and len(steps) > 1 else 0):
        said("steps", k + 1, len(steps) + 1)
        without[k] = price([steps[k]], taught([s for j, s in enumerate(steps) if j != k]))[0]
    after = price(steps, factors)
    memory = np.array([float(simulate(s.problem, s.plan, detail=False).peak.max()) for s in steps])
    profile = Profile(
        name=name,
        software=software,
        machine=start.machine,
        local=start.local,
        families={
            **start.families,
            **{f: {**start.families.get(f, {}), **slower(known[f], factors)} for f in names},
        },
        generations={
            **start.generations,
            software: {**start.generations.get(software, {}), **slower(plain, factors)},
        },
        measured=dict(start.measured) | {s.name: _evidence(s, float(p)) for s, p in zip(steps, after, strict=True)},
        source=f"learnt from {len(steps)} steps of one stack, nearest to the {software} generation of software",
    )
    return Learnt(profile, factors, before, after, without, memory)


def _evidence(step: Step, predicted: float) -> Measured:
    if (t := step.timing) is None:
        return Measured(step.seconds, step.seconds, step.seconds, 1, predicted)
    return Measured(t.seconds, t.low, t.high, t.repeats, predicted)


__all__ = [
    "EVERYTHING",
    "OF_SOFTWARE",
    "TERMS",
    "Factors",
    "Learnt",
    "Prior",
    "Step",
    "Term",
    "Worth",
    "guessed",
    "learn",
    "learn_stack",
    "priors",
    "slopes",
    "slower",
    "worth",
]
