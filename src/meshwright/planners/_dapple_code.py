"""The search of DAPPLE's public planner: slowest block least, candidates scored by latency afterwards.

Exact, but not exhaustive: what cannot become the best candidate is left out before it is made. A plan of M micro-batches a
replica, rp replicas and a slowest block of b seconds takes at least b / M · (M − 1) + total / (rp · M), so b has a limit;
and whatever is still to be placed needs at least its work over the devices that are left. Where stages may take any number of
slots, no slowest block is below the work over all of them, which one stage on all of them has: that is what the search finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._dapple_states import Candidate, Sums, latency, micro_batches
from ._placement import Counts, Devices, Servers, between, fresh_first, placements

Tick: TypeAlias = Callable[[str, int, int], None]
Entry: TypeAlias = tuple[float, tuple[int, ...], tuple[Devices, ...]]
"""(slowest block in seconds of the whole batch, the state after each stage, the devices of each stage)"""


def candidates(sums: Sums, servers: Servers, samples: int, micro: int, tick: Tick) -> Iterator[Candidate]:
    """Ever better ones: one stage, all two-stage plans, straight pipelines, then every number of slots that could win."""
    count, last = servers.size * servers.count, len(sums) - 1
    everything = tuple(range(count))
    best = inf
    straight = [count] if count % 2 or count <= 2 else [2, count]
    tried: list[Iterator[Candidate]] = [
        iter([Candidate((last,), (everything,), 1), Candidate((last,), (everything,), count)]),
        _two_stages(sums, servers, samples, micro),
    ]
    for plans in tried:
        for plan in plans:
            if (value := latency(sums, servers, plan, samples, micro)) < best:
                best = value
                yield plan
        tick("two stages", 1, 1)
    for slots, alone in [*((s, True) for s in straight), *((s, False) for s in range(2, count + 1))]:
        limit = _limit(best, sums.total, samples, count // slots, micro)
        here = partial(tick, "straight pipelines" if alone else "replicated pipelines", slots, count)
        found, rp = None, count // slots
        if sums.total / (rp * slots) < limit:
            found = _straight(sums, servers, slots, rp, limit, here) if alone else _replicas(servers, last, slots, rp)
        if found is not None and (value := latency(sums, servers, found, samples, micro)) < best:
            best = value
            yield found
        here()


def _limit(best: float, total: float, samples: int, rp: int, micro: int) -> float:
    """Seconds of a block (of the whole batch) from which on no plan of rp replicas takes less than `best`."""
    m = micro_batches(samples, rp, micro)
    if m < 1 or total / (rp * m) >= best:
        return 0.0
    return (best - total / (rp * m)) * m / (m - 1) if m > 1 else inf


def _two_stages(sums: Sums, servers: Servers, samples: int, micro: int) -> Iterator[Candidate]:
    """Every cut × every number of devices × policies, all at once; handed out as they get better, by cut."""
    count, last = servers.size * servers.count, len(sums) - 1
    m = micro_batches(samples, 1, micro)
    if m < 1 or last < 1 or count < 2:
        return
    done = (sums.forward + sums.backward)[:last]
    inclusive = sums.params[np.minimum(np.arange(last) + 1, last)]
    none, full = (0,) * servers.count, (servers.size,) * servers.count
    sets = [
        (between(servers, none, first), between(servers, first, full))
        for g in range(1, count)
        for first in placements(servers, none, g)
    ]
    rows = []
    for first, second in sets:
        # Both prices are proportional to the bytes.
        send = servers.transfer(first, second, 1.0) * sums.out[:last]
        block = np.maximum(np.maximum(done / len(first), (sums.total - done) / len(second)), send) / m
        tail = np.maximum(
            servers.all_reduce(first, 1.0) * inclusive,
            servers.all_reduce(second, 1.0) * (sums.params[last] - sums.params[:last]) - block,
        )
        rows.append(block * (m - 1) + sums.total / m + send / m + np.maximum(tail, 0.0))
    values = np.array(rows).T.reshape(-1)
    before = np.concatenate([[inf], np.minimum.accumulate(values)[:-1]])
    for i in np.flatnonzero(values < before).tolist():
        first, second = sets[i % len(sets)]
        yield Candidate((i // len(sets), last), (first, second), 1, twice=False)


def _replicas(servers: Servers, last: int, slots: int, rp: int) -> Candidate:
    """The stages of least slowest block, of any number of slots of `rp` devices each: one on all `slots`."""
    none = (0,) * servers.count
    return Candidate((last,), (between(servers, none, fresh_first(servers, none, slots * rp)),), rp)


def _straight(
    sums: Sums, servers: Servers, slots: int, rp: int, limit: float, tick: Callable[[], None]
) -> Candidate | None:
    """The stages of least slowest block, one on each of `slots` slots of `rp` devices, if it is below `limit`."""
    size = len(sums)
    last = size - 1
    done = sums.forward + sums.backward
    # [slots used, state]: may stages end there? What is left must fit on the slots that are left.
    left = np.arange(slots, -1, -1)[:, None] * rp
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(left > 0, (sums.total - done)[None, :] < limit * left, False)
    room[:, last] = False
    room[slots, last] = True
    depth = _depths(sums.inside)
    if depth.max(initial=0) + 1 < slots:
        return None
    room &= depth[None, :] >= np.arange(slots, -1, -1)[:, None]
    table: list[list[dict[Counts, Entry]]] = [[{} for _ in range(slots + 1)] for _ in range(size)]
    none = (0,) * servers.count
    counts = fresh_first(servers, none, rp)
    devices = between(servers, none, counts)
    for j in np.flatnonzero(room[1] & (done < limit * rp)).tolist():
        table[j][1][counts] = (float(done[j]) / rp, (j,), (devices,))
    choices: dict[Counts, tuple[Counts, ...]] = {}
    for k in range(last):
        work = done - done[k]
        for used in range(1, slots):
            entries = table[k][used]
            if not entries:
                continue
            tick()
            ends = np.flatnonzero(sums.inside[k] & room[used + 1] & (work < limit * rp))
            if not len(ends):
                continue
            pairs = list(zip(ends.tolist(), (work[ends] / rp).tolist(), strict=True))
            for counts, (value, before, sets) in list(entries.items()):
                if counts not in choices:
                    choices[counts] = placements(servers, counts, 1, rp)
                for now in choices[counts]:
                    devices = between(servers, counts, now)
                    moved = max(value, servers.transfer(sets[-1], devices, 2.0 * float(sums.out[k])))
                    if moved >= limit:
                        continue
                    for j, seconds in pairs:
                        known = table[j][used + 1].get(now)
                        block = max(moved, seconds)
                        if known is None or block < known[0]:
                            table[j][used + 1][now] = (block, (*before, j), (*sets, devices))
    found = min(table[last][slots].values(), key=lambda entry: entry[0], default=None)
    return None if found is None else Candidate(found[1], found[2], rp)


def _depths(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Most stages that can follow each state: the longest way to the last one."""
    size = len(inside)
    found = np.full(size, -1)
    found[size - 1] = 0
    for k in range(size - 2, -1, -1):
        after = found[inside[k]]
        found[k] = after.max(initial=-1) + 1 if (after >= 0).any() else -1
    return found
