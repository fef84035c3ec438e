"""What the ranks of a pool run for `measure`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from .links import Talk
from .measure import Timings, time_kernels
from .timing import SAMPLE_SECONDS, Timing, Work, in_turns, sample

if TYPE_CHECKING:
    from ..execute.ranks.worker import Context

MOST_RUNS = 50
"""Collectives in one sample."""


def kernels(context: Context, ask: tuple[int, int]) -> Timings | None:
    """(rounds, ranks that work): the first ranks time all kernels at the same time, the others wait."""
    rounds, busy = ask
    group = dist.new_group(list(range(busy)))
    if context.rank >= busy:
        dist.barrier()
        return None
    found = time_kernels(context.hardware.device, rounds, lambda k: context.event(k), lambda: dist.barrier(group=group))
    dist.barrier()
    return found


def collectives(context: Context, ask: tuple[list[Talk], int]) -> list[Timing]:
    """(what, rounds): every collective in turns, all groups at the same time."""
    wanted, rounds = ask
    device = context.hardware.device
    groups: dict[int, dist.ProcessGroup] = {}
    for size in sorted({t.size for t in wanted}):
        for first in range(0, context.world, size):
            made = dist.new_group(list(range(first, first + size)))
            if first <= context.rank < first + size:
                groups[size] = made
    works = [_work(talk, groups[talk.size], context.rank, device) for talk in wanted]
    runs = []
    for work in works:
        work()
        work()
        once = torch.tensor([sample(work, 2, device)], device=device)
        dist.all_reduce(once, dist.ReduceOp.MAX)
        runs.append(max(1, min(MOST_RUNS, round(SAMPLE_SECONDS / float(once)))))
    return in_turns(works, rounds, device, turn=dist.barrier, done=context.event, runs=runs)


def _work(talk: Talk, group: dist.ProcessGroup, rank: int, device: torch.device) -> Work:
    """Bytes are counted as `CostModel.collective` does: what a member holds before, of an all-gather after it."""
    n = talk.nbytes // 4
    n -= n % talk.size
    whole = torch.zeros(n, device=device)
    part = torch.zeros(n // talk.size, device=device)
    if talk.kind == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if talk.kind == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part, group=group)
    if talk.kind == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole, group=group)
    if talk.kind == "all_to_all":
        other = torch.zeros_like(whole)
        return lambda: dist.all_to_all_single(other, whole, group=group)
    peer = rank + 1 if rank % 2 == 0 else rank - 1
    return (lambda: dist.send(whole, peer)) if rank % 2 == 0 else (lambda: dist.recv(whole, peer))
