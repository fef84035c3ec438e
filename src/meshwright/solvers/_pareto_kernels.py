"""Hot loops of `pareto`: sums of points of two tables of fronts, of which the points that none beats stay."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import inline, kernel

f8, i8, u8 = np.float64, np.int64, np.uint64
START = 1024
"""Points in the first scratch array; it doubles when a front does not fit."""


@inline
def _reduced(n: int, memory: Any, time: Any, option: Any, left: Any, right: Any, close: float) -> int:
    """Keep of the first n points those that none beats, by memory; of equals the first. Returns how many.

    Memories within a share `close` of each other count as equal, and a point must be faster by more than that share.
    """
    order = np.argsort(memory[:n], kind="mergesort")
    kept = np.empty(n, np.int64)
    count = 0
    fastest = np.inf
    k = 0
    while k < n:
        first = memory[order[k]]
        end = first + close * abs(first)
        best = order[k]
        k += 1
        while k < n and memory[order[k]] <= end:
            other = order[k]
            if time[other] < time[best] or (
                time[other] == time[best] and memory[other] == memory[best] and other < best
            ):
                best = other
            k += 1
        if time[best] < fastest - close * abs(fastest) or (count == 0 and time[best] < np.inf):
            fastest = time[best]
            kept[count] = best
            count += 1
    m, t, o = memory[kept[:count]], time[kept[:count]], option[kept[:count]]
    a, b = left[kept[:count]], right[kept[:count]]
    for i in range(count):
        memory[i], time[i], option[i], left[i], right[i] = m[i], t[i], o[i], a[i], b[i]
    return count


@kernel(i8, f8, f8, i8, f8, f8, u8, u8, int, float, float)
def join(
    left_ptr: Any, left_memory: Any, left_time: Any, right_ptr: Any, right_memory: Any, right_time: Any,
    of_left: Any, of_right: Any, options: int, cap: float, close: float,
) -> Any:  # fmt: skip
    """Entry e of the result: what none beats of all sums of a point of left[of_left[e, c]] and one of right[of_right[e, c]].

    Args:
        …_ptr, …_memory, …_time: points ptr[i]:ptr[i + 1] of entry i, by memory.
        of_left, of_right: [entries · options], options fastest.
        cap: memory above which points are dropped.

    Returns:
        ptr, memory, time, option c, point of left, point of right.
    """
    entries = of_left.shape[0] // options
    size = START
    memory, time = np.empty(size), np.empty(size)
    option, left, right = np.empty(size, np.int32), np.empty(size, np.int64), np.empty(size, np.int64)
    room = max(START, entries)
    out_memory, out_time = np.empty(room), np.empty(room)
    out_option, out_left, out_right = np.empty(room, np.int32), np.empty(room, np.int64), np.empty(room, np.int64)
    ptr = np.zeros(entries + 1, np.int64)
    total = 0
    for e in range(entries):
        n = 0
        for c in range(options):
            a, b = of_left[e * options + c], of_right[e * options + c]
            for i in range(left_ptr[a], left_ptr[a + 1]):
                for j in range(right_ptr[b], right_ptr[b + 1]):
                    m = left_memory[i] + right_memory[j]
                    if m > cap:
                        break
                    t = left_time[i] + right_time[j]
                    if t == np.inf:
                        continue
                    if n == size:
                        n = _reduced(n, memory, time, option, left, right, close)
                        if 2 * n > size:
                            size *= 2
                            memory, time = np.append(memory, np.empty(size // 2)), np.append(time, np.empty(size // 2))
                            option = np.append(option, np.empty(size // 2, np.int32))
                            left = np.append(left, np.empty(size // 2, np.int64))
                            right = np.append(right, np.empty(size // 2, np.int64))
                    memory[n], time[n], option[n], left[n], right[n] = m, t, c, i, j
                    n += 1
        if n > 1:
            n = _reduced(n, memory, time, option, left, right, close)
        if total + n > room:
            more = max(room, n)
            room += more
            out_memory, out_time = np.append(out_memory, np.empty(more)), np.append(out_time, np.empty(more))
            out_option = np.append(out_option, np.empty(more, np.int32))
            out_left = np.append(out_left, np.empty(more, np.int64))
            out_right = np.append(out_right, np.empty(more, np.int64))
        for i in range(n):
            out_memory[total], out_time[total], out_option[total] = memory[i], time[i], option[i]
            out_left[total], out_right[total] = left[i], right[i]
            total += 1
        ptr[e + 1] = total
    return ptr, out_memory[:total], out_time[:total], out_option[:total], out_left[:total], out_right[:total]


@kernel(i8, f8, f8, f8, f8, f8, f8, i8)
def reach(
    ptr: Any, memory: Any, price: Any, outside: Any, of_price: Any, of_memory: Any, most: Any, first: Any
) -> Any:  # fmt: skip
    """Per point of a table whether it may become part of one in a gap.

    Args:
        outside: [entries, weights] the least that completes an entry costs.
        of_price, of_memory: of each weight.
        most: [corners, weights] sums above which nothing is in that gap.
        first: [corners] the weight to be looked at first.
    """
    keep = np.zeros(len(memory), np.bool_)
    weights, corners = len(of_price), len(first)
    least = np.empty(weights)
    for e in range(len(ptr) - 1):
        for p in range(ptr[e], ptr[e + 1]):
            for k in range(weights):
                least[k] = of_price[k] * price[p] + of_memory[k] * memory[p] + outside[e, k]
            for i in range(corners):
                if least[first[i]] > most[i, first[i]]:
                    continue
                inside = True
                for k in range(weights):
                    if least[k] > most[i, k]:
                        inside = False
                        break
                if inside:
                    keep[p] = True
                    break
    return keep


@kernel(f8, u8, u8, f8)
def worst_gaps(table: Any, better: Any, worse: Any, total: Any) -> Any:
    """total[p] + the most by which option better[p] costs more than worse[p] with any option of a neighbour.

    Args:
        table: [options, options of the neighbour]; a pair that both forbid is no reason.
    """
    found = total.copy()
    others = table.shape[1]
    for p in range(len(found)):
        if found[p] == np.inf:
            continue
        row, than = table[better[p]], table[worse[p]]
        gap = -np.inf
        for c in range(others):
            if than[c] < np.inf:
                if row[c] == np.inf:
                    gap = np.inf
                    break
                gap = max(gap, row[c] - than[c])
        found[p] += gap
    return found
