"""Building the iteration space of a call, factor by factor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd

from ..ir import Dims, Factor, FactorKind, Rule

Names = tuple[str, ...]
"""The factors of one dim, major first."""


class Space:
    """Collects factors; `rule` closes it. Sizes of 1 (and of 0) have no factor: asking for one gives ()."""

    def __init__(self) -> None:
        self._factors: dict[str, Factor] = {}

    def factor(
        self,
        name: str,
        size: int,
        kind: FactorKind = "free",
        *,
        halo: tuple[int, int] = (0, 0),
        sums: tuple[int, int] = (0, 0),
    ) -> Names:
        """One new factor as the only one of a dim; a name that is taken gets a number."""
        if size <= 1:
            return ()
        unique, number = name, 2
        while unique in self._factors:
            unique, number = f"{name}_{number}", number + 1
        self._factors[unique] = Factor(unique, size, kind, halo=halo, sums=sums)
        return (unique,)

    def fixed(self, name: str, size: int) -> Names:
        return self.factor(name, size, "fixed")

    def dims(self, shape: Sequence[int], prefix: str = "d", fixed: Iterable[int] = ()) -> list[Names]:
        """One factor per dim, called prefix0, prefix1, …; the dims in `fixed` cannot be cut."""
        held = set(fixed)
        return [self.factor(f"{prefix}{i}", n, "fixed" if i in held else "free") for i, n in enumerate(shape)]

    def rule(self, operands: Iterable[Sequence[Names]], results: Iterable[Sequence[Names]]) -> Rule:
        """The rule; factors that no tensor has are dropped, since cutting one would compute copies and count them."""
        ins: tuple[Dims, ...] = tuple(tuple(dims) for dims in operands)
        outs: tuple[Dims, ...] = tuple(tuple(dims) for dims in results)
        used = {name for dims in (*ins, *outs) for dim in dims for name in dim}
        return Rule(tuple(f for f in self._factors.values() if f.name in used), ins, outs)


def broadcast(dims: Sequence[Names], shape: Sequence[int]) -> list[Names]:
    """The dims of an operand of `shape` that is broadcast against `dims`, aligned at the last dim."""
    offset = len(dims) - len(shape)
    return [dims[offset + i] if n != 1 else () for i, n in enumerate(shape)]


def regroup(space: Space, left: Sequence[int], right: Sequence[int]) -> tuple[list[Names], list[Names]]:
    """Factors shared by two shapes of one row-major sequence of elements.

        left   [ B ][ S ][ heads · width ]        (2, 6)  -> [2][3][2]
        right  [  B · S ][ heads ][ width ]       (4, 3)  -> [2][2][3]: 3 and 2 are coprime, so that stretch is fixed

    Both are divided, major to minor, by the greatest common divisor of what is left of the current dims. Where that is
    1 the smaller side takes in its next dims until both products are equal; inside such a stretch only common minor
    divisors stay free.
    """
    a: list[list[str]] = [[] for _ in left]
    b: list[list[str]] = [[] for _ in right]
    i = j = 0
    rest_a, rest_b = (left[0] if left else 1), (right[0] if right else 1)
    count = 0
    while True:
        while rest_a == 1 and i < len(left):
            i += 1
            rest_a = left[i] if i < len(left) else 1
        while rest_b == 1 and j < len(right):
            j += 1
            rest_b = right[j] if j < len(right) else 1
        if i >= len(left) or j >= len(right):
            return [tuple(d) for d in a], [tuple(d) for d in b]
        common = gcd(rest_a, rest_b)
        if common > 1:
            names = space.factor(f"d{count}", common)
            count += 1
            a[i].extend(names)
            b[j].extend(names)
            rest_a //= common
            rest_b //= common
            continue
        pieces_a, pieces_b = [(i, rest_a)], [(j, rest_b)]
        product_a, product_b = rest_a, rest_b
        while product_a != product_b:
            if product_a < product_b:
                i += 1
                pieces_a.append((i, left[i]))
                product_a *= left[i]
            else:
                j += 1
                pieces_b.append((j, right[j]))
                product_b *= right[j]
        _stretch(space, pieces_a, pieces_b, a, b)
        rest_a = rest_b = 1


def _stretch(
    space: Space,
    pieces_a: list[tuple[int, int]],
    pieces_b: list[tuple[int, int]],
    a: list[list[str]],
    b: list[list[str]],
) -> None:
    """Two runs of dims of equal product without a common major divisor: common minor divisors free, the rest fixed."""
    minor_a: dict[int, list[str]] = {}
    minor_b: dict[int, list[str]] = {}
    while pieces_a and pieces_b:
        (dim_a, size_a), (dim_b, size_b) = pieces_a[-1], pieces_b[-1]
        if size_a == 1 or size_b == 1:
            (pieces_a if size_a == 1 else pieces_b).pop()
            continue
        common = gcd(size_a, size_b)
        if common == 1:
            break
        names = list(space.factor("minor", common))
        minor_a[dim_a] = names + minor_a.get(dim_a, [])
        minor_b[dim_b] = names + minor_b.get(dim_b, [])
        pieces_a[-1], pieces_b[-1] = (dim_a, size_a // common), (dim_b, size_b // common)
    for pieces, minor, dims, name in ((pieces_a, minor_a, a, "from"), (pieces_b, minor_b, b, "to")):
        for dim, size in pieces:
            dims[dim].extend(space.fixed(name, size))
        for dim, names in minor.items():
            dims[dim].extend(names)
