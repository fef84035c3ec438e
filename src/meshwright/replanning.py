"""The cluster of a plan changed: a new plan for what is there now, and what the devices must be given to go on with it.

What moves is the state of training, the float32 weights and what the optimizer keeps, from where it rests under the old
plan to where it rests under the new one; copies that ops compute with are made from it, as after every update.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cluster.model import Cluster
from .errors import InputError
from .plan.layout import Box
from .plan.model import Plan
from .plan.moved import DeviceMoves, Moves, Piece, RankReads
from .plan.moves import READ, Alike, transition
from .stated import Stated

if TYPE_CHECKING:
    from .planners.base import Planner, Progress
    from .report.outcome import Outcome
    from .request import Request

BIGGEST = 3
"""Pieces that are named."""
_WORD = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


def stays(old: Cluster, new: Cluster, lost: Collection[int] = ()) -> dict[int, int]:
    """Device of the old cluster -> its number in the new one, of those that both have; a device keeps its type.

    Where no number is too high and every type fits, all keep theirs. Else nodes of the new cluster are taken one by one:
    each is the first old node that has as many devices left, else the one with most; then what is left of both is paired
    in order.

    Raises:
        InputError: a lost device that the old cluster has not.
    """
    wrong = sorted(d for d in lost if not 0 <= d < old.count)
    if wrong:
        raise InputError(f"--lost {wrong[0]}: {old.name} has devices 0 to {old.count - 1}", where="--lost")
    left = [d for d in range(old.count) if d not in set(lost)]
    if all(d < new.count and old.type_of(d).name == new.type_of(d).name for d in left):
        return {d: d for d in left}
    before, after = _nodes(old, left), _nodes(new, range(new.count))
    free = list(before)
    found: dict[int, int] = {}
    for places in after:
        if not free:
            break
        node = min(free, key=lambda n: (len(n) != len(places), -len(n)))
        free.remove(node)
        found |= _paired(old, node, new, places)
    taken = set(found.values())
    rest = [d for d in left if d not in found]
    return found | _paired(old, rest, new, [d for d in range(new.count) if d not in taken])


def _nodes(cluster: Cluster, devices: Iterable[int]) -> list[list[int]]:
    """Devices by the innermost component that they are in."""
    found: dict[int, list[int]] = {}
    for device in devices:
        found.setdefault(cluster.component(0, device) if cluster.levels else 0, []).append(device)
    return list(found.values())


def _paired(old: Cluster, devices: Iterable[int], new: Cluster, places: Iterable[int]) -> dict[int, int]:
    """In order, each with a place of its own type."""
    by_type: dict[str, list[int]] = defaultdict(list)
    for place in places:
        by_type[new.type_of(place).name].append(place)
    queues = {name: iter(own) for name, own in by_type.items()}
    pairs = ((d, next(queues.get(old.type_of(d).name, iter(())), None)) for d in devices)
    return {d: place for d, place in pairs if place is not None}


def check_changed(old: Cluster, new: Cluster, lost: Collection[int]) -> None:
    """Refuse to replan for what has not changed.

    Raises:
        InputError: it is the same cluster and no device of it is lost.
    """
    if old == new and not lost:
        raise InputError(
            f"{new.name} is the cluster that the plan is for, so nothing moves: give another one with -c, or what is gone "
            "with --lost",
            where="--cluster",
        )


def kept_price(request: Request, old: Cluster, new: Cluster) -> Request:
    """`request` without the price of a device and hour, if devices are of other types now."""
    same = {t.name for t in old.types} == {t.name for t in new.types}
    return request if same else replace(request, price=None)


def moves_between(old: Stated, before: Plan, new: Stated, after: Plan, stay: Mapping[int, int]) -> Moves:
    """What moves when `after` replaces `before`.

    Args:
        stay: as `stays` says.

    Raises:
        InputError: parameters of the new problem that the old plan has not.
    """
    problem = new.problem
    cluster = problem.cluster
    here = _renumbered(before, stay, cluster.count)
    each = _WORD[problem.recipe.param_dtype] + problem.recipe.state_bytes
    alike = list(
        transition(
            (old.problem.graph, here),
            (problem.graph, after),
            "state",
            each,
            cluster=cluster,
            present=set(stay.values()),
        )
    )
    kept, received, read, sent = (defaultdict[int, float](float) for _ in range(4))
    pairs: dict[tuple[int, int], float] = defaultdict(float)
    held: dict[int, dict[str, tuple[Box, ...]]] = defaultdict(dict)
    for group in alike:
        boxes: dict[int, list[Box]] = defaultdict(list)
        for m in group.moves:
            nbytes = m.nbytes * len(group.names)
            boxes[m.dst].append((m.lo, m.hi))
            if m.src == m.dst:
                kept[m.dst] += nbytes
            elif m.src == READ:
                read[m.dst] += nbytes
            else:
                received[m.dst] += nbytes
                sent[m.src] += nbytes
                pairs[m.src, m.dst] += nbytes
        for device, own in boxes.items():
            held[device] |= dict.fromkeys(group.names, tuple(own))
    return Moves(
        tuple(DeviceMoves(d, kept[d], received[d], read[d], sent[d]) for d in range(cluster.count)),
        dict(stay),
        _seconds(new, pairs),
        _biggest(alike),
        held,
    )


def _renumbered(plan: Plan, stay: Mapping[int, int], count: int) -> Plan:
    """With the numbers of the new cluster; devices that are gone get numbers that it has not."""

    def now(device: int) -> int:
        return stay.get(device, count + device)

    stages = (replace(s, mesh=replace(s.mesh, devices=tuple(map(now, s.mesh.devices)))) for s in plan.stages)
    return replace(plan, stages=tuple(stages))


def _seconds(new: Stated, pairs: Mapping[tuple[int, int], float]) -> float:
    out, into = defaultdict[int, float](float), defaultdict[int, float](float)
    for (src, dst), nbytes in pairs.items():
        spent = float(new.problem.cost.transfer(np.array([nbytes]), src, dst, new.problem.cluster)[0])
        out[src] += spent
        into[dst] += spent
    return max([*out.values(), *into.values()], default=0.0)


def _biggest(alike: Iterable[Alike]) -> tuple[Piece, ...]:
    found = []
    for group in alike:
        moved = [m for m in group.moves if m.src != m.dst]
        if moved:
            m = max(moved, key=lambda m: m.nbytes)
            found.append(Piece(m.tensor, len(group.names) - 1, m.src, m.dst, m.nbytes))
    return tuple(heapq.nlargest(BIGGEST, found, key=lambda p: p.nbytes))


def rank_reads(checkpoint: Path, new: Stated, moves: Moves) -> tuple[RankReads, ...]:
    """Which parts of a checkpoint each rank of the new plan reads when it starts from there.

    Raises:
        InputError: no complete checkpoint, a damaged one, or one of another model.
    """
    from .execute.saved.reads import reads

    ranks = {device: rank for rank, device in enumerate(sorted(moves.held))}
    shapes = {p.name: p.shape for p in new.problem.graph.params()}
    return reads(checkpoint, {ranks[d]: own for d, own in moves.held.items()}, shapes)


def search(
    stated: Stated,
    planner: Planner,
    previous: Plan,
    *,
    top: int = 5,
    progress: Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Let `planner` go on from the previous plan, if it has a way of its own to; else let it search as for any problem."""
    from . import answer
    from .for_trainer import trainer_of
    from .planners.base import Planner as Template
    from .planners.types import Budget, Event, Result

    if type(planner).replan is Template.replan:
        return answer.search(stated, planner, top=top, progress=progress, stopped=stopped)
    request, problem = stated.request, stated.problem
    unit = planner.unit_of(problem)
    # What the planner thought of the plan was not stored.
    known = Result("feasible", previous, nan, unit, None, "", problem.cost.name, 0.0, 0, request.seed)
    budget = Budget(seconds=request.budget)
    result = planner.replan(problem, known, Event("cluster"), budget=budget, seed=request.seed)
    trainer = trainer_of(request)
    if trainer is not None and result.plan is not None:
        trainer.check(problem, result.plan)
    return answer.outcome_of(stated, planner, result, top=top, stopped=stopped())


def checkpoint_of(folder: Path, resume: Path | None) -> Path | None:
    """The checkpoint that is named, or the newest below the folder of the old plan.

    Raises:
        InputError: the one that is named is no complete checkpoint.
    """
    below = [f for pattern in ("step-*", "run/step-*") for f in folder.glob(pattern)]
    if resume is None and not below:
        return None
    from .execute.saved import folders

    if resume is not None:
        folders.facts(resume)
        return resume
    whole = [f for f in below if (f / folders.SEAL).is_file()]
    return max(whole, key=lambda f: int(folders.facts(f)["step"]), default=None)
