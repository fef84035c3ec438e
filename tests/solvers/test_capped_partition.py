"""Stages of a chain under memory caps: equal to all cuts, tried one by one."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.solvers.capped_partition import Run, _least, capped_partition

runs = st.lists(
    st.builds(
        Run,
        count=st.integers(1, 4),
        seconds=st.sampled_from([0.0, 0.5, 1.0, 1.7, 3.0]),
        rest=st.sampled_from([0.0, 1.0, 2.5]),
        held=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=600, deadline=None)
@given(runs, st.integers(1, 4), st.data())
def test_equals_every_cut_tried(chain: list[Run], stages: int, data: st.DataObject) -> None:
    room = data.draw(st.lists(st.sampled_from([2.0, 4.0, 8.0, 1e9]), min_size=stages, max_size=stages))
    flights = data.draw(st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=stages, max_size=stages))
    units = [r for r in chain for _ in range(r.count)]

    def worst(borders: tuple[int, ...]) -> float | None:
        edges = (0, *borders, len(units))
        times = []
        for s, (a, b) in enumerate(itertools.pairwise(edges)):
            if sum(u.rest + u.held * flights[s] for u in units[a:b]) > room[s] + 1e-9:
                return None
            times.append(sum(u.seconds for u in units[a:b]))
        return max(times)

    every = [worst(c) for c in itertools.combinations(range(1, len(units)), stages - 1)]
    legal = [t for t in every if t is not None]
    found = capped_partition(chain, stages, room, flights)
    if not legal:
        assert found is None
        return
    assert found is not None
    assert sum(found) == len(units)
    assert min(found) >= 1
    reached = worst(tuple(itertools.accumulate(found))[:-1])
    assert reached is not None
    assert abs(reached - min(legal)) < 1e-9


def test_a_tie_goes_to_level_stages() -> None:
    """A classifier alone is the largest stage of eight: the twelve blocks before it spread over the other seven."""
    chain = [Run(1, 0.1), Run(12, 1.0), Run(1, 5.45)]
    assert _least(chain, 8, [1e9] * 8, [1.0] * 8) == (1, 1, 1, 1, 1, 3, 5, 1)
    assert capped_partition(chain, 8, [1e9] * 8, [1.0] * 8) == (2, 2, 1, 2, 2, 2, 2, 1)


@settings(max_examples=300, deadline=None)
@given(runs, st.integers(1, 5), st.data())
def test_a_level_cut_is_no_slower_and_no_fuller(chain: list[Run], stages: int, data: st.DataObject) -> None:
    room = data.draw(st.lists(st.sampled_from([2.0, 4.0, 8.0, 1e9]), min_size=stages, max_size=stages))
    flights = data.draw(st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=stages, max_size=stages))
    units = [r for r in chain for _ in range(r.count)]
    before, after = (cut(chain, stages, room, flights) for cut in (_least, capped_partition))
    assert (before is None) == (after is None)
    if before is None or after is None:
        return

    def stages_of(parts: tuple[int, ...]) -> list[list[Run]]:
        ends = itertools.accumulate(parts)
        return [units[end - n : end] for end, n in zip(ends, parts, strict=True)]

    def seconds(parts: tuple[int, ...]) -> list[float]:
        return [sum(u.seconds for u in own) for own in stages_of(parts)]

    def nbytes(parts: tuple[int, ...]) -> list[float]:
        return [
            sum(u.rest + u.held * flight for u in own) for own, flight in zip(stages_of(parts), flights, strict=True)
        ]

    assert max(seconds(after)) <= max(seconds(before)) + 1e-9
    assert max(nbytes(after)) <= max(nbytes(before)) + 1e-9
    assert all(held <= cap + 1e-9 for held, cap in zip(nbytes(after), room, strict=True))
    assert sum(t * t for t in seconds(after)) <= sum(t * t for t in seconds(before)) + 1e-9
