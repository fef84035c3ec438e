"""Hot loops of `staged_partition`: the price of one stage, and the feasibility programme over downsets.

Arrays of prices: seconds, weights, stashed, fixed have the index (item · degrees + degree) · width + choice; `choices` says
how many of them count. Ends of edges: ends eptr[v] … of item v have a neighbour, a base volume and an extra volume per
degree and choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import inline, kernel

GREEDY, REPEATED, EXACT, ALL_OR_NOTHING = 0, 1, 2, 3
"""How the configurations of a stage's items are chosen; see `staged_partition.Rule`."""
SLOW = 1e300
"""Seconds of a stage that fits its memory, but not within the bound."""


@inline
def _fastest(gain: Any, count: int) -> int:
    best = 0
    for j in range(1, count):
        if gain[j] < gain[best]:
            best = j
    return best


@inline
def _choose(
    listed: Any, total: int, inside: Any, degree: int, degrees: int, width: int, d: int, y: int, memory: float,
    bandwidth: float, batch: int, mode: int, bound: float,
    choices: Any, seconds: Any, weights: Any, stashed: Any, fixed: Any, eptr: Any, neighbour: Any, volume: Any, extra: Any,
    gain: Any, need: Any, picked: Any, counts: Any,
) -> Any:  # fmt: skip
    """Seconds of the stage of items listed[: total], inf if no choice fits the memory; `picked` gets the choice of each. gain, need: scratch."""
    time, held, least = 0.0, 0.0, 0.0
    for r in range(total):
        v = listed[r]
        base = (v * degrees + degree) * width
        count = choices[v * degrees + degree]
        counts[r] = count
        for j in range(count):
            moved = 0.0
            for e in range(eptr[v], eptr[v + 1]):
                if inside[neighbour[e]] == 0:
                    moved += 2.0 * (volume[e] + extra[(e * degrees + degree) * width + j])
            gain[r, j] = seconds[base + j] / d + (moved / d + 4.0 * (d - 1) / d * weights[base + j] / batch) / bandwidth
            need[r, j] = stashed[base + j] * y + fixed[base + j]
        best = _fastest(gain[r], count)
        low = need[r, 0]
        for j in range(1, count):
            low = min(low, need[r, j])
        picked[r] = best
        time += gain[r, best]
        held += need[r, best]
        least += low
    if held <= memory:
        return time
    if least > memory:
        return np.inf
    if mode == ALL_OR_NOTHING:
        time = 0.0
        for r in range(total):
            best = 0
            for j in range(1, counts[r]):
                if need[r, j] < need[r, best]:
                    best = j
            picked[r] = best
            time += gain[r, best]
        return time
    if mode == GREEDY:
        return _swap_once(total, counts, gain, need, picked, time, held, memory)
    if mode == REPEATED:
        return _swap_repeatedly(total, counts, gain, need, picked, time, held, memory)
    found = _exactly(total, counts, gain, need, picked, time, held, memory, bound)
    return found if found < np.inf else SLOW


@inline
def _swap_once(
    total: int, counts: Any, gain: Any, need: Any, picked: Any, time: float, held: float, memory: float
) -> Any:
    """Swaps by seconds per byte saved, each applied whole, until it fits."""
    ratio = np.empty(total)
    item = np.empty(total, np.int32)
    swaps = 0
    for r in range(total):
        j, other = picked[r], 1 - picked[r]
        if counts[r] > 1 and need[r, other] < need[r, j]:
            ratio[swaps] = (gain[r, other] - gain[r, j]) / (need[r, j] - need[r, other])
            item[swaps] = r
            swaps += 1
    for s in np.argsort(ratio[:swaps], kind="mergesort"):
        if held <= memory:
            break
        r = item[s]
        j, other = picked[r], 1 - picked[r]
        time += gain[r, other] - gain[r, j]
        held += need[r, other] - need[r, j]
        picked[r] = other
    return time if held <= memory else np.inf


@inline
def _swap_repeatedly(
    total: int, counts: Any, gain: Any, need: Any, picked: Any, time: float, held: float, memory: float
) -> Any:
    """The best swap again and again, what it saves counting only as far as it is still needed; any number of choices."""
    while held > memory:
        best, which, choice = np.inf, -1, -1
        for r in range(total):
            for j in range(counts[r]):
                saved = min(need[r, picked[r]] - need[r, j], held - memory)
                if saved > 0.0 and (gain[r, j] - gain[r, picked[r]]) / saved < best:
                    best, which, choice = (gain[r, j] - gain[r, picked[r]]) / saved, r, j
        if which < 0:
            return np.inf
        time += gain[which, choice] - gain[which, picked[which]]
        held += need[which, choice] - need[which, picked[which]]
        picked[which] = choice
    return time


@inline
def _exactly(
    total: int, counts: Any, gain: Any, need: Any, picked: Any, time: float, held: float, memory: float, bound: float
) -> Any:
    """Least seconds that fit, if at most `bound`: undominated (seconds, bytes) of growing sets of items.

    Items come in the order of the fewest seconds per byte that any swap of theirs costs, so that what is still needed has
    a lower bound by filling it from the next ones.
    """
    ratio = np.full(total, np.inf)
    most = np.zeros(total)
    for r in range(total):
        for j in range(counts[r]):
            saved = need[r, picked[r]] - need[r, j]
            if saved > 0.0:
                ratio[r] = min(ratio[r], (gain[r, j] - gain[r, picked[r]]) / saved)
                most[r] = max(most[r], saved)
    order = np.argsort(ratio, kind="mergesort")
    best = min(bound, _swap_repeatedly(total, counts, gain, need, picked.copy(), time, held, memory))
    best *= 1.0 + 1e-15
    room = 1024
    at_time, at_held = np.empty(room), np.empty(room)
    parent, choice = np.full(room, -1, np.int64), np.full(room, -1, np.int32)
    at_time[0], at_held[0] = time, held
    begin, end = 0, 1
    layers = np.zeros(total + 2, np.int64)
    layers[1] = 1
    for i in range(total):
        r = order[i]
        made = end
        for s in range(begin, end):
            for j in range(counts[r]):
                new = at_time[s] + gain[r, j] - gain[r, picked[r]]
                kept = at_held[s] + need[r, j] - need[r, picked[r]]
                lower, over = new, kept - memory
                for x in range(i + 1, total):
                    if over <= 0.0 or ratio[order[x]] == np.inf:
                        break
                    filled = min(over, most[order[x]])
                    lower += filled * ratio[order[x]]
                    over -= filled
                # A fit by the last byte must not be lost to the rounding of a sum in another order.
                if over > 1e-9 * memory or lower > best:
                    continue
                if made >= room:
                    room *= 2
                    at_time, at_held = _longer(at_time, room), _longer(at_held, room)
                    parents = np.full(room, -1, np.int64)
                    parents[:made] = parent
                    parent = parents
                    chosen = np.full(room, -1, np.int32)
                    chosen[:made] = choice
                    choice = chosen
                at_time[made], at_held[made], parent[made], choice[made] = new, kept, s, j
                made += 1
        ranked = end + np.argsort(at_time[end:made], kind="mergesort")
        times, helds, parents, chosen = at_time[ranked], at_held[ranked], parent[ranked], choice[ranked]
        begin, smallest = end, np.inf
        for s in range(len(ranked)):
            if helds[s] < smallest:
                smallest = helds[s]
                at_time[end], at_held[end], parent[end], choice[end] = times[s], helds[s], parents[s], chosen[s]
                end += 1
        layers[i + 2] = end
        if begin == end:
            return np.inf
    for s in range(begin, end):
        if at_held[s] <= memory * (1.0 + 1e-12):
            found, at = at_time[s], s
            for i in range(total - 1, -1, -1):
                picked[order[i]] = choice[at]
                at = parent[at]
            return found
    return np.inf


@inline
def _longer(values: Any, room: int) -> Any:
    found = np.empty(room)
    found[: values.shape[0]] = values
    return found


@kernel(
    np.int32, int, int, int, int, int, float, float, int, int, float, np.int32, np.float64, np.float64, np.float64,
    np.float64, np.int64, np.int32, np.float64, np.float64,
)  # fmt: skip
def price_stage(
    listed: Any, degree: int, degrees: int, width: int, d: int, y: int, memory: float, bandwidth: float, batch: int,
    mode: int, bound: float, choices: Any, seconds: Any, weights: Any, stashed: Any, fixed: Any, eptr: Any, neighbour: Any,
    volume: Any, extra: Any,
) -> Any:  # fmt: skip
    """(seconds, choice of each item) of one stage; inf if nothing fits or is at most `bound`."""
    total = listed.shape[0]
    inside = np.zeros(eptr.shape[0] - 1, np.uint8)
    for r in range(total):
        inside[listed[r]] = 1
    gain, need = np.empty((total, width)), np.empty((total, width))
    picked, counts = np.zeros(total, np.int32), np.zeros(total, np.int32)
    found = _choose(
        listed, total, inside, degree, degrees, width, d, y, memory, bandwidth, batch, mode, bound, choices, seconds,
        weights, stashed, fixed, eptr, neighbour, volume, extra, gain, need, picked, counts,
    )  # fmt: skip
    return found, picked


@kernel(
    np.int64, np.int32, np.int32, np.int64, np.int64, int, int, int, int, float, float, float, int, int, int,
    np.int32, np.float64, np.float64, np.float64, np.float64, np.int64, np.int32, np.float64, np.float64, np.float64,
    np.int8,
)  # fmt: skip
def feasible(
    ptr: Any, node: Any, target: Any, divisors: Any, parts: Any, width: int, devices: int, replicas: int, batch: int,
    limit: float, memory: float, bandwidth: float, mode: int, uniform: int, first: int,
    choices: Any, seconds: Any, weights: Any, stashed: Any, fixed: Any, eptr: Any, neighbour: Any, volume: Any, extra: Any,
    work: Any, stop: Any,
) -> Any:  # fmt: skip
    """Least replicas of a plan of each downset with at most k devices, every stage being at most `limit` seconds.

    Downsets are closed under SUCCESSORS here, so the stage added last comes first in the data. `parts` = degrees in the
    order of the arrays; `uniform` = all choices of an item move the same bytes; `first` = stop at the first full plan.
    Returns (replicas [sets · (devices + 1)], parent set, degree index, d, pairs seen). Ends early at stop[0] = 1.
    """
    sets, n, degrees = ptr.shape[0] - 1, work.shape[0], parts.shape[0]
    span = devices + 1
    never = np.int32(replicas + 1)
    least = np.full(sets * span, never, np.int32)
    came_from = np.full(sets * span, -1, np.int32)
    came_part = np.zeros(sets * span, np.int16)
    came_d = np.zeros(sets * span, np.int32)
    least[0] = 0
    rest = np.full(sets, -1.0)
    rest[0] = work.sum()
    for i in range(sets):
        for e in range(ptr[i], ptr[i + 1]):
            if rest[target[e]] < 0.0:
                rest[target[e]] = max(0.0, rest[i] - work[node[e]])
    # Of the fastest choice of each item and degree: seconds, weights, bytes, and the fewest bytes with one in flight.
    fast_p, fast_w = np.zeros((n, degrees)), np.zeros((n, degrees))
    fast_a, fast_b, low = np.zeros((n, degrees)), np.zeros((n, degrees)), np.zeros((n, degrees))
    fast_j = np.zeros((n, degrees), np.int32)
    for v in range(n):
        for t in range(degrees):
            base, count = (v * degrees + t) * width, choices[v * degrees + t]
            if count == 0:
                continue
            j = _fastest(seconds[base : base + count], count)
            fast_j[v, t], fast_p[v, t], fast_w[v, t] = j, seconds[base + j], weights[base + j]
            fast_a[v, t], fast_b[v, t] = stashed[base + j], fixed[base + j]
            low[v, t] = stashed[base] + fixed[base]
            for c in range(1, count):
                low[v, t] = min(low[v, t], stashed[base + c] + fixed[base + c])
    stamp = np.full(sets, -1, np.int32)
    inside = np.zeros(n, np.uint8)
    at, came, nxt = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32), np.empty(n + 1, np.int64)
    sp, sx, sw = np.zeros((n + 1, degrees)), np.zeros((n + 1, degrees)), np.zeros((n + 1, degrees))
    sa, sb, sl = np.zeros((n + 1, degrees)), np.zeros((n + 1, degrees)), np.zeros((n + 1, degrees))
    dead = np.zeros((n + 1, degrees), np.uint8)
    listed, counts, picked = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    gain, need = np.empty((n, width)), np.empty((n, width))
    states_k, states_s = np.empty(span, np.int32), np.empty(span, np.int32)
    pairs, slack = 0, 1.0 + 1e-12
    for i in range(sets - 1):
        if stop[0]:
            break
        states, smallest = 0, never
        for k in range(devices):
            s = least[i * span + k]
            if s < smallest:
                smallest = s
                if s < replicas and k + rest[i] / limit <= devices * slack:
                    states_k[states], states_s[states] = k, s
                    states += 1
        if states == 0:
            continue
        left = devices - states_k[0]
        depth = 0
        at[0], nxt[0] = i, ptr[i]
        while depth >= 0:
            if nxt[depth] >= ptr[at[depth] + 1]:
                if depth > 0:
                    inside[came[depth]] = 0
                depth -= 1
                continue
            e = nxt[depth]
            nxt[depth] += 1
            j = target[e]
            if stamp[j] == i:
                continue
            stamp[j] = i
            v = node[e]
            new = depth + 1
            any_alive = False
            for t in range(degrees):
                dead[new, t] = dead[depth, t]
                if dead[depth, t] or choices[v * degrees + t] == 0 or parts[t] > left:
                    dead[new, t] = 1
                    continue
                sp[new, t] = sp[depth, t] + fast_p[v, t]
                sl[new, t] = sl[depth, t] + low[v, t]
                if sl[new, t] > memory * slack or sp[new, t] > limit * (left // parts[t]) * slack:
                    dead[new, t] = 1
                    continue
                any_alive = True
                sw[new, t] = sw[depth, t] + fast_w[v, t]
                sa[new, t] = sa[depth, t] + fast_a[v, t]
                sb[new, t] = sb[depth, t] + fast_b[v, t]
                moved = sx[depth, t]
                for q in range(eptr[v], eptr[v + 1]):
                    u = neighbour[q]
                    own = volume[q] + extra[(q * degrees + t) * width + fast_j[v, t]]
                    if inside[u] == 0:
                        moved += 2.0 * own
                    else:
                        # The far end paid while v was outside.
                        for z in range(eptr[u], eptr[u + 1]):
                            if neighbour[z] == v:
                                moved -= 2.0 * (volume[z] + extra[(z * degrees + t) * width + fast_j[u, t]])
                sx[new, t] = moved
            if not any_alive:
                continue
            pairs += 1
            inside[v] = 1
            came[new] = v
            for t in range(degrees):
                if dead[new, t]:
                    continue
                # From so many micro-batches in flight on, not even the smallest choices fit.
                too_many = replicas + 2
                for x in range(divisors.shape[0]):
                    d = divisors[x]
                    size = parts[t] * d
                    if size > left:
                        break
                    quick = sp[new, t] / d
                    if uniform:
                        quick += (max(0.0, sx[new, t]) / d + 4.0 * (d - 1) / d * sw[new, t] / batch) / bandwidth
                    if quick > limit * slack:
                        continue
                    last_y, last_ok = -1, False
                    for r in range(states):
                        k, s = states_k[r] + size, states_s[r] + d
                        if k > devices:
                            break
                        if s > replicas or least[j * span + k] <= s:
                            continue
                        if k + rest[j] / limit > devices * slack:
                            break
                        y = (s + d - 1) // d
                        if y >= too_many:
                            continue
                        if y != last_y:
                            last_y = y
                            if uniform and sa[new, t] * y + sb[new, t] <= memory:
                                last_ok = True
                            else:
                                for c in range(new):
                                    listed[c] = came[c + 1]
                                time = _choose(
                                    listed, new, inside, t, degrees, width, d, y, memory, bandwidth, batch, mode,
                                    limit, choices, seconds, weights, stashed, fixed, eptr, neighbour, volume, extra,
                                    gain, need, picked, counts,
                                )  # fmt: skip
                                last_ok = time < np.inf and time <= limit * slack
                                if time == np.inf:
                                    too_many = y
                        if last_ok:
                            least[j * span + k] = s
                            came_from[j * span + k] = i
                            came_part[j * span + k] = t
                            came_d[j * span + k] = d
                            if first and j == sets - 1:
                                return least, came_from, came_part, came_d, pairs
            depth = new
            at[depth], nxt[depth] = j, ptr[j]
    return least, came_from, came_part, came_d, pairs
