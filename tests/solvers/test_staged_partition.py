"""Stages, replicas, parts and configurations against hand cases of the method and against enumeration of all plans."""

from __future__ import annotations

from itertools import combinations, product
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.solvers.staged_partition import (
    Layers,
    Machine,
    Options,
    Staged,
    Way,
    evaluate,
    price,
    provable,
    staged_partition,
)


def chain(parts: bool) -> Layers:
    """Three layers of 4, 8, 4 seconds: keep (a = b = 2) or compute again; with `parts` also on two devices."""
    ways = []
    for v, p in enumerate((4.0, 8.0, 4.0)):
        by = {1: (Way(p, 1, 2, 2), Way(1.25 * p, 1, 0.5, 3.5))}
        if parts:
            before, after = {v - 1: 1.0} if v else {}, {v + 1: 1.0} if v < 2 else {}
            by[2] = (Way(0.625 * p, 0.5, 1, 1, before, after), Way(0.8 * p, 0.5, 0.25, 1.75, before, after))
        ways.append(by)
    return Layers(tuple(ways), {(0, 1): 0.5, (1, 2): 0.5})


@pytest.mark.parametrize(
    ("devices", "memory", "expected"),
    [
        (4, 11, 5.5), (4, 14, 5.5), (4, 100, 5.5), (4, 9, 6), (4, 7, 6), (4, 5, 12), (4, 3.9, None), (3, 100, 7.5),
        (2, 100, 9.5), (2, 10, 13),
    ],
)  # fmt: skip
def test_the_chain_in_one_part_has_the_published_optimum(devices: int, memory: float, expected: float | None) -> None:
    found = staged_partition(chain(False), Machine(devices, memory, 1.0, 4))
    assert (found[0] if found else None) == (pytest.approx(expected) if expected else None)


@pytest.mark.parametrize(("devices", "memory", "expected"), [(4, 9, 5.75), (4, 7, 5.75), (4, 5, 10.5), (2, 10, 10)])
def test_the_chain_in_two_parts_has_the_published_optimum(devices: int, memory: float, expected: float) -> None:
    found = staged_partition(chain(True), Machine(devices, memory, 1.0, 4))
    assert found is not None
    assert found[0] == pytest.approx(expected)


def test_the_published_case_where_the_greedy_knapsack_is_not_exact() -> None:
    ways = ({1: (Way(1, 0, 5, 5), Way(2, 0, 1, 5))}, {1: (Way(1, 0, 5, 5), Way(3, 0, 0, 5))})
    layers, machine = Layers(ways, {(0, 1): 0.0}), Machine(1, 15, 1.0, 1)
    assert staged_partition(layers, machine)[0] == 5  # type: ignore[index]
    assert staged_partition(layers, machine, Options("exact"))[0] == 4  # type: ignore[index]


def brute(layers: Layers, machine: Machine, exact: bool) -> float:
    """Every chain of sets closed under successors, every d and t, configurations by the rule or all of them."""
    n = len(layers.ways)
    splits = [d for d in range(1, min(machine.batch, machine.devices) + 1) if machine.batch % d == 0]

    def closed(items: frozenset[int]) -> bool:
        return all(b in items for a, b in layers.edges if a in items)

    def extend(after: frozenset[int], stages: tuple[Staged, ...], used: int, replicas: int) -> float:
        if len(after) == n:
            if exact:
                options = [
                    [Staged(s.items, s.d, s.t, c) for c in product(*(range(len(layers.ways[v][s.t])) for v in s.items))]
                    for s in stages
                ]
                return min((evaluate(layers, machine, plan) for plan in product(*options)), default=inf)
            return max(s.seconds for s in price(layers, machine, stages))
        best, rest = inf, [v for v in range(n) if v not in after]
        for size in range(1, len(rest) + 1):
            for items in combinations(rest, size):
                if not closed(after | set(items)):
                    continue
                for t, d in product(layers.degrees, splits):
                    fits = used + t * d <= machine.devices and replicas + d <= min(machine.batch, machine.devices)
                    if fits and all(t in layers.ways[v] for v in items):
                        stage = Staged(items, d, t)
                        best = min(best, extend(after | set(items), (stage, *stages), used + t * d, replicas + d))
        return best

    return extend(frozenset(), (), 0, 0)


@st.composite
def small_layers(draw: st.DrawFn) -> Layers:
    n = draw(st.integers(1, 4))
    number = st.integers(0, 6).map(float)
    edges = {
        (a, b): draw(number) for b in range(n) for a in range(b) if draw(st.booleans())
    }  # fmt: skip
    ways = []
    for v in range(n):
        by = {}
        for t in (1, 2):
            if t == 1 or draw(st.booleans()):
                count = draw(st.integers(1, 2))
                weights = [draw(number)] * 2 if draw(st.booleans()) else [draw(number), draw(number)]
                before = {a: draw(number) for a, b in edges if b == v and t == 2}
                by[t] = tuple(
                    Way(draw(st.integers(1, 9)) / t, weights[j], draw(number), draw(number), before)
                    for j in range(count)
                )
        ways.append(by)
    return Layers(tuple(ways), edges)


@settings(max_examples=40, deadline=None)
@given(small_layers(), st.integers(1, 4), st.sampled_from([6.0, 12.0, 30.0]), st.sampled_from([1, 2, 4, 6]))
def test_exact_choices_give_the_optimum_over_all_plans(layers: Layers, devices: int, memory: float, batch: int) -> None:
    machine = Machine(devices, memory, 2.0, batch)
    found = staged_partition(layers, machine, Options("exact"))
    best = brute(layers, machine, exact=True)
    assert (found[0] if found else inf) == pytest.approx(best)
    if found is not None:
        assert evaluate(layers, machine, found[1]) == pytest.approx(found[0])
        assert provable(layers, machine, Options("exact"), found[0])
        greedy = staged_partition(layers, machine)
        assert greedy is not None
        assert greedy[0] >= found[0] * (1 - 1e-9)
        assert evaluate(layers, machine, greedy[1]) == pytest.approx(greedy[0])


@settings(max_examples=40, deadline=None)
@given(small_layers(), st.integers(1, 4), st.sampled_from([6.0, 12.0, 30.0]), st.sampled_from([1, 2, 4, 6]))
def test_greedy_choices_give_the_optimum_over_all_cuts(layers: Layers, devices: int, memory: float, batch: int) -> None:
    machine = Machine(devices, memory, 2.0, batch)
    found = staged_partition(layers, machine)
    assert (found[0] if found else inf) <= brute(layers, machine, exact=False) * (1 + 1e-9)


def test_more_configurations_than_the_greedy_rule_knows_are_refused() -> None:
    layers = Layers(({1: (Way(1, 0, 1, 1), Way(2, 0, 1, 0), Way(3, 0, 0, 0))},), {})
    with pytest.raises(InputError, match="repeated"):
        staged_partition(layers, Machine(1, 10, 1.0, 1))
    found = staged_partition(layers, Machine(1, 1, 1.0, 1), Options("exact"))
    assert found is not None
    assert found[0] == 2
