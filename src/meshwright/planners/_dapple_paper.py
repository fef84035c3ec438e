"""The search of DAPPLE's paper: the pivot latency inside the dynamic programme over (layers planned, devices used)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from ._dapple_states import Candidate, Sums
from ._pivot import pivot_latency
from ._placement import Servers, placements

Sets = tuple[tuple[int, ...], ...]


def paper_latency(sums: Sums, servers: Servers, plan: Candidate, samples: int, micro: int) -> float:
    """Seconds of an iteration by the pivot; every replica runs a slice of every micro-batch of `micro` samples."""
    m = max(1, samples // micro)
    forward: list[float] = []
    backward: list[float] = []
    tail: list[float] = []
    for i, (k, j) in enumerate(zip((-1, *plan.ends[:-1]), plan.ends)):
        if i:
            moved = servers.transfer(plan.devices[i - 1], plan.devices[i], float(sums.out[k]) / m)
            forward.append(moved)
            backward.append(moved)
            tail.append(0.0)
        share = m * len(plan.devices[i])
        forward.append(sums.forwards(k, j) / share)
        backward.append(sums.backwards(k, j) / share)
        tail.append(servers.all_reduce(plan.devices[i], sums.weights(k, j)))
    return pivot_latency(forward, backward, tail, m)[0]


def candidates(
    sums: Sums, servers: Servers, samples: int, micro: int, tick: Callable[[str, int, int], None]
) -> Iterator[Candidate]:
    """Prefixes in the order of their last state, each with all the rest as one last stage; better ones are handed out."""
    count = servers.size * servers.count
    everything = tuple(range(count))
    last = len(sums) - 1
    m = max(1, samples // micro)
    single = Candidate((last,), (everything,), 1)
    best = paper_latency(sums, servers, single, samples, micro)
    yield single
    # [state]: devices used by server -> (latency with the rest, ends, devices).
    table: list[dict[tuple[int, ...], tuple[float, tuple[int, ...], Sets]]] = [{} for _ in range(len(sums))]
    for k in range(-1, last):
        prefixes = [(inf, (), ())] if k < 0 else list(table[k].values())
        following = [j for j in range(k + 1, last) if k < 0 or sums.inside[k, j]]
        for _, ends, sets in prefixes:
            used = frozenset(d for own in sets for d in own)
            for more in range(1, count - len(used)):
                for devices in placements(servers, used, more):
                    rest = tuple(d for d in everything if d not in used and d not in devices)
                    for j in following:
                        # No latency is below the steady time of any stage.
                        if (m - 1) * sums.work(k, j) / (m * more) >= best:
                            continue
                        plan = Candidate((*ends, j, last), (*sets, devices, rest), 1)
                        value = paper_latency(sums, servers, plan, samples, micro)
                        key = tuple(
                            sum(d // servers.size == s for d in (*used, *devices)) for s in range(servers.count)
                        )
                        if key not in table[j] or value < table[j][key][0]:
                            table[j][key] = (value, plan.ends[:-1], plan.devices[:-1])
                        if value < best:
                            best = value
                            yield plan
        tick("prefixes", k + 2, len(sums))
