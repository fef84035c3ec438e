"""Double recursion on large graphs: 100,000 operators in 10 rounds, and how time grows with operators.

python benchmarks/bench_recursion.py

Warm CPU seconds of the search alone. Gates: 100,000 operators × 10 rounds in 5 s, and a fitted exponent of at most 1.3 from
10,000 operators on. Exit 1 when one is missed.
"""

from __future__ import annotations

import time

import numpy as np

from meshwright.planners._recursion import OTHER, PRODUCT, Importance, Operators, search

ROUNDS = 10
COUNTS = (10_000, 30_000, 100_000)
MOST_SECONDS = 5.0
MOST_EXPONENT = 1.3


def drawn(count: int) -> Operators:
    """A chain of products and joins; every second operator also reads the result of the seventh before it."""
    rng = np.random.default_rng(count)
    kind = np.where(rng.random(count) < 0.5, PRODUCT, OTHER)
    size = np.ones((count, 5), np.int64)
    size[:, :3] = 2 ** rng.integers(6, 14, (count, 3))
    size[kind == OTHER, 2] = 1
    edges = [(v - 1, v) for v in range(1, count)] + [(v - 7, v) for v in range(8, count, 2)]
    fed = np.zeros(count, bool)
    fed[0] = True
    ones = np.ones(count)
    return Operators(kind, size, ones, ones, (kind == PRODUCT).astype(float), tuple(edges), fed)


def seconds(ops: Operators, order: Importance) -> float:
    start = time.process_time()
    search(ops, ROUNDS, order)
    return time.process_time() - start


def main() -> int:
    missed = False
    orders: tuple[Importance, ...] = ("weight", "topological")
    search(drawn(10), 1, "weight")  # compiles
    print(f"{'operators':>10}{'weight s':>12}{'topological s':>16}")
    taken: dict[Importance, list[float]] = {order: [] for order in orders}
    for count in COUNTS:
        ops = drawn(count)
        for order in orders:
            taken[order].append(seconds(ops, order))
        print(f"{count:>10,}{taken['weight'][-1]:>12.3f}{taken['topological'][-1]:>16.3f}")
    for order in orders:
        exponent = float(np.polyfit(np.log(COUNTS), np.log(taken[order]), 1)[0])
        kept = taken[order][-1] <= MOST_SECONDS and exponent <= MOST_EXPONENT
        missed |= not kept
        print(f"{order}: exponent {exponent:.2f} {'✓' if kept else '✗'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
