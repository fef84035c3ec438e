"""The search of DAPPLE's paper: the pivot latency inside the dynamic programme over (layers planned, devices used)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from ._dapple_states import Candidate, Sums
from ._pivot import pivot_latency
from ._placement import Counts, Servers, between, counts_of, placements

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
    share, full = (m - 1) / m, (servers.size,) * servers.count
    # [state]: devices used by server -> (latency with the rest, ends, devices, the steady time of its slowest stage).
    table: list[dict[Counts, tuple[float, tuple[int, ...], Sets, float]]] = [{} for _ in range(len(sums))]
    for k in range(-1, last):
        prefixes = [(inf, (), (), 0.0)] if k < 0 else list(table[k].values())
        following = [j for j in range(k + 1, last) if k < 0 or sums.inside[k, j]]
        for _, ends, sets, slowest in prefixes:
            # No latency is below the steady time of any stage, and some stage of the rest has its share of it or more.
            if slowest >= best:
                continue
            tick("prefixes", k + 1, len(sums))
            used = counts_of(servers, [d for own in sets for d in own])
            for more in range(1, count - sum(used)):
                left = count - sum(used) - more
                open_ends = [
                    j for j in following
                    if share * sums.work(k, j) / more < best and share * sums.work(j, last) / left < best
                ]  # fmt: skip
                if not open_ends:
                    continue
                for key in placements(servers, used, more):
                    devices, rest = between(servers, used, key), between(servers, key, full)
                    for j in open_ends:
                        plan = Candidate((*ends, j, last), (*sets, devices, rest), 1)
                        value = paper_latency(sums, servers, plan, samples, micro)
                        if key not in table[j] or value < table[j][key][0]:
                            steady = max(slowest, share * sums.work(k, j) / more)
                            table[j][key] = (value, plan.ends[:-1], plan.devices[:-1], steady)
                        if value < best:
                            best = value
                            yield plan
        tick("prefixes", k + 2, len(sums))
