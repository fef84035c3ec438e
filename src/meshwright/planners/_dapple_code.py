"""The search of DAPPLE's public planner: slowest block least, candidates scored by latency afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from ._dapple_states import Candidate, Sums, latency, micro_batches
from ._placement import Servers, fresh_first, placements


def candidates(
    sums: Sums, servers: Servers, samples: int, micro: int, tick: Callable[[str, int, int], None]
) -> Iterator[Candidate]:
    """Straight pipelines, all two-stage plans, then the best block for every number of slots that could still win."""
    count = servers.size * servers.count
    best = inf

    def offer(plan: Candidate | None) -> Iterator[Candidate]:
        nonlocal best
        if plan is not None:
            value = latency(sums, servers, plan, samples, micro)
            if value < best:
                best = value
                yield plan

    yield from offer(Candidate((len(sums) - 1,), (tuple(range(count)),), 1))
    yield from offer(Candidate((len(sums) - 1,), (tuple(range(count)),), count))
    for slots in [count] if count % 2 or count <= 2 else [2, count]:
        yield from offer(_blocks(sums, servers, slots, count // slots, inf, straight=True))
        tick("straight pipelines", slots, count)
    for j in range(len(sums) - 1):
        for g in range(1, count):
            for first in placements(servers, frozenset(), g):
                for second in placements(servers, frozenset(first), count - g):
                    yield from offer(Candidate((j, len(sums) - 1), (first, second), 1, twice=False))
        tick("two stages", j + 1, len(sums))
    for slots in range(2, count + 1):
        rp = count // slots
        m = micro_batches(samples, rp, micro)
        if m < 1:
            continue
        # A block of this many seconds or more cannot win: L >= block / M · (M − 1) + total / (rp · M).
        limit = (best - sums.total / (rp * m)) * m / (m - 1) if m > 1 else inf
        yield from offer(_blocks(sums, servers, slots, rp, limit, straight=False))
        tick("replicated pipelines", slots, count)


def _blocks(sums: Sums, servers: Servers, slots: int, rp: int, limit: float, *, straight: bool) -> Candidate | None:
    """The stages of least slowest block on `slots` slots of `rp` devices, if it is below `limit`; blocks in whole batches."""
    size = len(sums)
    last = size - 1
    # [state][slots used]: occupied -> (block, ends, devices of each stage).
    Entry = tuple[float, tuple[int, ...], tuple[tuple[int, ...], ...]]
    table: list[list[dict[tuple[int, ...], Entry]]] = [[{} for _ in range(slots + 1)] for _ in range(size)]
    for j in range(size):
        for m in range(1, (1 if straight else slots) + 1):
            value = sums.work(-1, j) / (m * rp)
            if value < limit:
                devices = fresh_first(servers, frozenset(), m * rp)
                _keep(table[j][m], servers, devices, (value, (j,), (devices,)))
    choices: dict[tuple[tuple[int, ...], int], tuple[tuple[int, ...], ...]] = {}
    for k in range(last):
        following = [j for j in range(k + 1, size) if sums.inside[k, j]]
        for used in range(1, slots):
            for value, ends, sets in list(table[k][used].values()):
                occupied = tuple(sorted(d for own in sets for d in own))
                for more in (1,) if straight else range(1, slots - used + 1):
                    if (occupied, more) not in choices:
                        choices[occupied, more] = placements(servers, frozenset(occupied), more, rp)
                    for devices in choices[occupied, more]:
                        moved = max(value, servers.transfer(sets[-1], devices, 2.0 * float(sums.out[k])))
                        if moved >= limit:
                            continue
                        for j in following:
                            # Only whole plans may end short of slots; the rest must be filled later.
                            if j == last and used + more < slots:
                                continue
                            block = max(moved, sums.work(k, j) / (more * rp))
                            if block < limit:
                                _keep(table[j][used + more], servers, devices, (block, (*ends, j), (*sets, devices)))
    found = min(table[last][slots].values(), key=lambda entry: entry[0], default=None)
    return None if found is None else Candidate(found[1], found[2], rp)


def _keep(
    entries: dict[tuple[int, ...], tuple[float, tuple[int, ...], tuple[tuple[int, ...], ...]]],
    servers: Servers,
    devices: tuple[int, ...],
    entry: tuple[float, tuple[int, ...], tuple[tuple[int, ...], ...]],
) -> None:
    counts = [0] * servers.count
    for own in entry[2]:
        for d in own:
            counts[d // servers.size] += 1
    key = tuple(counts)
    if key not in entries or entry[0] < entries[key][0]:
        entries[key] = entry
