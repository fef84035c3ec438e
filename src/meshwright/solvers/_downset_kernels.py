"""Hot loops over the lattice of downsets. Arrays in, arrays out; called by `downsets` only.

A lattice comes as its cover edges: downset i + node[e] = downset target[e] for e in ptr[i] … ptr[i + 1] − 1. Downsets are
numbered by size, 0 being empty, so every superset of i has a higher number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import inline, kernel


@inline
def _hash(bits: Any, at: int, words: int) -> Any:
    found = np.uint64(0x9E3779B97F4A7C15)
    for w in range(words):
        found = (found ^ bits[at + w]) * np.uint64(0xBF58476D1CE4E5B9)
        found ^= found >> np.uint64(29)
    return found


@kernel(np.uint64, int, int, int, np.int8)
def enumerate_downsets(need: Any, n: int, words: int, limit: int, stop: Any) -> Any:
    """All sets that hold, with v, every item of need[v · words …]; breadth first, so by size.

    Returns (bits, ptr, node, target); empty arrays if there are more than `limit` sets. Ends early at stop[0] = 1.
    """
    room, count = 1024, 1
    bits = np.zeros(room * words, np.uint64)
    slots = 4096
    table = np.full(slots, -1, np.int32)
    table[np.int64(_hash(bits, 0, words) & np.uint64(slots - 1))] = 0
    edge_room, edges = 4096, 0
    node = np.empty(edge_room, np.int32)
    target = np.empty(edge_room, np.int32)
    ptr = np.zeros(room + 1, np.int64)
    key = np.zeros(words, np.uint64)
    i = 0
    while i < count and not stop[0]:
        ptr[i] = edges
        for v in range(n):
            if (bits[i * words + (v >> 6)] >> np.uint64(v & 63)) & np.uint64(1):
                continue
            ready = True
            for w in range(words):
                if bits[i * words + w] & need[v * words + w] != need[v * words + w]:
                    ready = False
                    break
            if not ready:
                continue
            for w in range(words):
                key[w] = bits[i * words + w]
            key[v >> 6] |= np.uint64(1) << np.uint64(v & 63)
            h: Any = np.int64(_hash(key, 0, words) & np.uint64(slots - 1))
            found: Any = -1
            while table[h] >= 0:
                c = np.int64(table[h])
                same = True
                for w in range(words):
                    if bits[c * words + w] != key[w]:
                        same = False
                        break
                if same:
                    found = c
                    break
                h = (h + 1) & (slots - 1)
            if found < 0:
                if count >= limit:
                    return bits[:0].copy(), ptr[:0].copy(), node[:0].copy(), target[:0].copy()
                if count >= room:
                    more = np.zeros(2 * room * words, np.uint64)
                    more[: room * words] = bits
                    bits = more
                    longer = np.zeros(2 * room + 1, np.int64)
                    longer[: room + 1] = ptr
                    ptr = longer
                    room *= 2
                found = count
                for w in range(words):
                    bits[found * words + w] = key[w]
                table[h] = found
                count += 1
                if count * 2 > slots:
                    slots *= 2
                    table = np.full(slots, -1, np.int32)
                    for c in range(count):  # type: ignore[assignment]
                        h = np.int64(_hash(bits, c * words, words) & np.uint64(slots - 1))
                        while table[h] >= 0:
                            h = (h + 1) & (slots - 1)
                        table[h] = c
            if edges >= edge_room:
                nodes = np.empty(2 * edge_room, np.int32)
                nodes[:edge_room] = node
                node = nodes
                targets = np.empty(2 * edge_room, np.int32)
                targets[:edge_room] = target
                target = targets
                edge_room *= 2
            node[edges] = v
            target[edges] = found
            edges += 1
        i += 1
    ptr[count] = edges
    return bits[: count * words].copy(), ptr[: count + 1].copy(), node[:edges].copy(), target[:edges].copy()


@kernel(np.int64, np.int32, np.int32)
def count_pairs(ptr: Any, node: Any, target: Any) -> Any:
    """Pairs I ⊂ J of downsets, found by walking up from each."""
    sets = ptr.shape[0] - 1
    stamp = np.full(sets, -1, np.int32)
    stack = np.empty(sets, np.int32)
    pairs = 0
    for i in range(sets):
        top, stack[0] = 1, i
        while top > 0:
            top -= 1
            j = stack[top]
            for e in range(ptr[j], ptr[j + 1]):
                t = target[e]
                if stamp[t] != i:
                    stamp[t] = i
                    pairs += 1
                    stack[top] = t
                    top += 1
    return pairs


@kernel(
    np.int64, np.int32, np.int32, np.float64, np.float64, np.float64, np.float64,
    np.int64, np.int32, np.int32, np.float64, int, int, float, float, float, np.int8,
)  # fmt: skip
def chain_max_load(
    ptr: Any, node: Any, target: Any, p: Any, q: Any, size: Any, work: Any,
    eptr: Any, edge: Any, pins: Any, weight: Any, k: int, cpus: int, memory: float, upper: float, ratio: float,
    stop: Any,
) -> Any:  # fmt: skip
    """Least maximal load below `upper` of a chain of at most k accelerators and so many CPUs; see `downsets.chain_partition`.

    From each downset one walk up, an item at a time, with the sums of the stage so far. Returns (value or `upper`, parent
    downset and 0 accelerator / 1 CPU per state, best state of the full set or −1, pairs seen). Ends early at stop[0] = 1.
    """
    sets, n = ptr.shape[0] - 1, p.shape[0]
    width = (k + 1) * (cpus + 1)
    value = np.full(sets * width, np.inf)
    parent = np.full(sets * width, -1, np.int32)
    by_cpu = np.zeros(sets * width, np.int8)
    rest = np.full(sets, -1.0)
    heavy = np.zeros(sets)
    rest[0], heavy[0] = work.sum(), size.sum()
    for i in range(sets):
        for e in range(ptr[i], ptr[i + 1]):
            if rest[target[e]] < 0.0:
                rest[target[e]] = max(0.0, rest[i] - work[node[e]])
                heavy[target[e]] = heavy[i] - size[node[e]]
    value[0] = 0.0
    stamp = np.full(sets, -1, np.int32)
    count = np.zeros(pins.shape[0], np.int32)
    at = np.empty(n + 1, np.int32)
    nxt = np.empty(n + 1, np.int64)
    came = np.empty(n + 1, np.int32)
    sp, sq, sm, sx = np.empty(n + 1), np.empty(n + 1), np.empty(n + 1), np.empty(n + 1)
    alive = np.empty(width, np.int32)
    least = np.empty(width)
    best, pairs = -1, 0
    slack = 1.0 + 1e-12
    for i in range(sets - 1):
        if stop[0]:
            break
        alive_count, acc_free, cpu_free = 0, False, False
        base = i * width
        for a in range(cpus + 1):
            for b in range(k + 1):
                s = a * (k + 1) + b
                before = np.inf
                if a > 0:
                    before = min(before, least[s - k - 1])
                if b > 0:
                    before = min(before, least[s - 1])
                own = value[base + s]
                least[s] = min(own, before)
                if own >= before or own >= upper or (a == cpus and b == k):
                    continue
                if rest[i] >= ((k - b) * upper + (cpus - a) * (upper * ratio if cpus > a else 0.0)) * slack:
                    continue
                if a == cpus and heavy[i] > (k - b) * memory * slack:
                    continue
                alive[alive_count] = s
                alive_count += 1
                acc_free |= b < k
                cpu_free |= a < cpus
        if alive_count == 0:
            continue
        depth = 0
        at[0], nxt[0] = i, ptr[i]
        sp[0], sq[0], sm[0], sx[0] = 0.0, 0.0, 0.0, 0.0
        while depth >= 0:
            if nxt[depth] >= ptr[at[depth] + 1]:
                if depth > 0:
                    v = came[depth]
                    for x in range(eptr[v], eptr[v + 1]):
                        count[edge[x]] -= 1
                depth -= 1
                continue
            e = nxt[depth]
            nxt[depth] += 1
            j = target[e]
            if stamp[j] == i:
                continue
            stamp[j] = i
            v = node[e]
            seconds, slow, held = sp[depth] + p[v], sq[depth] + q[v], sm[depth] + size[v]
            on_acc = acc_free and seconds < upper and held <= memory
            on_cpu = cpu_free and slow < upper
            if not (on_acc or on_cpu):
                continue
            moved = sx[depth]
            for x in range(eptr[v], eptr[v + 1]):
                h = edge[x]
                count[h] += 1
                if count[h] == 1:
                    moved += weight[h]
                if count[h] == pins[h]:
                    moved -= weight[h]
            pairs += 1
            load = seconds + moved
            for r in range(alive_count):
                s = alive[r]
                own = value[base + s]
                if on_acc and load < upper and s % (k + 1) < k:
                    new = max(own, load)
                    if new < upper and new < value[j * width + s + 1]:
                        value[j * width + s + 1] = new
                        parent[j * width + s + 1] = i
                        by_cpu[j * width + s + 1] = 0
                        if j == sets - 1:
                            upper, best = new, s + 1
                if on_cpu and s // (k + 1) < cpus:
                    new = max(own, slow)
                    if new < upper and new < value[j * width + s + k + 1]:
                        value[j * width + s + k + 1] = new
                        parent[j * width + s + k + 1] = i
                        by_cpu[j * width + s + k + 1] = 1
                        if j == sets - 1:
                            upper, best = new, s + k + 1
            depth += 1
            at[depth], nxt[depth], came[depth] = j, ptr[j], v
            sp[depth], sq[depth], sm[depth], sx[depth] = seconds, slow, held, moved
    return upper, parent, by_cpu, best, pairs
