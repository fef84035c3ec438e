"""Symbolic intervals of affine index expressions (Wang, Huang, Li, EuroSys 2019, §4.2).

An interval is ⟨l₁ … lₙ, u₁ … uₙ, c⟩: it reaches from Σ lᵢ Xᵢ + c to Σ uᵢ Xᵢ + c, Xᵢ being the extent of index variable i.

    x over its second half              ⟨½, 1, 0⟩
    x + dx, both halves of x apart      ⟨0 0, ½ 1, 0⟩ and ⟨½ 0, 1 1, 0⟩
    2 · x + 3                           ⟨0, 2, 3⟩

Variables count 0 … X − 1, so that an upper end stands one step of each variable too high; `steps` holds these, and the
elements that an interval touches are exact for integer extents. Products of two variables have no such interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import TypeAlias

Number: TypeAlias = "int | Fraction"
Ends: TypeAlias = Mapping[str, tuple[Fraction, Fraction]]
"""Variable -> (from, to) as shares of its extent; missing = all of it."""


class NotAffine(ValueError):
    """An index that is no sum of multiples of variables: nothing is known of the region it touches."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Σ coefficient · variable + constant."""

    terms: tuple[tuple[str, Fraction], ...] = ()
    constant: Fraction = Fraction(0)

    def __add__(self, other: Affine | Number) -> Affine:
        if not isinstance(other, Affine):
            return Affine(self.terms, self.constant + other)
        sums = dict(self.terms)
        for name, k in other.terms:
            sums[name] = sums.get(name, Fraction(0)) + k
        return Affine(tuple((n, k) for n, k in sums.items() if k), self.constant + other.constant)

    __radd__ = __add__

    def __sub__(self, other: Affine | Number) -> Affine:
        return self + other * -1

    def __mul__(self, other: Affine | Number) -> Affine:
        if isinstance(other, Affine):
            if self.terms and other.terms:
                raise NotAffine("a product of two index variables has no interval")
            if not other.terms:
                return self * other.constant
            return other * self.constant
        return Affine(tuple((n, k * other) for n, k in self.terms if other), self.constant * other)

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Affine:
        return self * (Fraction(1) / other)

    def _compared(self, other: object) -> bool:
        raise NotAffine("a comparison of index variables has no interval")

    __lt__ = __le__ = __gt__ = __ge__ = _compared


def var(name: str) -> Affine:
    """An index variable."""
    return Affine(((name, Fraction(1)),))


@dataclass(frozen=True, slots=True)
class Interval:
    """⟨lower, upper, constant⟩ and what `upper` is too high by."""

    lower: Mapping[str, Fraction]
    upper: Mapping[str, Fraction]
    constant: Fraction
    steps: Fraction

    def __add__(self, other: Interval) -> Interval:
        return Interval(
            _sums(self.lower, other.lower),
            _sums(self.upper, other.upper),
            self.constant + other.constant,
            self.steps + other.steps,
        )

    def scaled(self, k: Fraction) -> Interval:
        """All of it times k; a negative k turns it round: its lowest element is then that of the highest index."""
        if k < 0:
            raise NotAffine("an index that runs backwards has no interval here: turn the variable round")
        times = [{n: k * x for n, x in side.items()} for side in (self.lower, self.upper)]
        return Interval(times[0], times[1], k * self.constant, k * self.steps)

    def elements(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """(first, last + 1) index that is touched."""
        low = sum((k * extents[n] for n, k in self.lower.items()), self.constant)
        high = sum((k * extents[n] for n, k in self.upper.items()), self.constant)
        return floor(low), ceil(high - self.steps) + 1


def _sums(a: Mapping[str, Fraction], b: Mapping[str, Fraction]) -> dict[str, Fraction]:
    return {n: a.get(n, Fraction(0)) + b.get(n, Fraction(0)) for n in {**a, **b}}


def interval(index: Affine, ends: Ends) -> Interval:
    """Where an index lies while its variables run over `ends`.

    Raises:
        NotAffine: a variable with a negative coefficient.
    """
    found = Interval({}, {}, index.constant, Fraction(0))
    for name, k in index.terms:
        low, high = ends.get(name, (Fraction(0), Fraction(1)))
        found = found + Interval({name: low}, {name: high}, Fraction(0), Fraction(1)).scaled(k)
    return found
