"""Least money for a step's work: the same search on every smaller cluster of the same kind.

On one cluster, all of whose devices are paid for, the cheapest plan is the fastest. So what is searched for is how many of
the devices to rent: those of a preset come in any number that `cluster.resolve` takes, a cluster file is taken whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path

from . import answer
from . import output_folder as folders
from .cluster import presets
from .errors import InputError, MeshwrightError
from .planners.base import Planner
from .report.outcome import Outcome
from .report.training import HOUR, Size
from .stated import Say, Stated, problem_of


def search(
    stated: Stated,
    planner: Planner,
    *,
    top: int = 5,
    progress: answer.Progress | None = None,
    stopped: Callable[[], bool] = lambda: False,
    say: Say = lambda line, text, done: None,
) -> tuple[Stated, Outcome]:
    """The cheapest size with its answer; where none has a plan, that of the whole cluster. The budget is shared equally.

    Raises:
        InputError: no price of the devices is known, or what every size raises.
    """
    check_price(stated)
    parts = [on(stated, spec) for spec in sizes(stated.request.cluster)]
    budget = stated.request.budget
    found: list[tuple[Stated, Outcome | None, Size]] = []
    for k, part in enumerate(parts):
        if stopped():
            break
        say("cluster", f"{part.problem.cluster.name} ({k + 1} of {len(parts)})", " ")
        timed = replace(part, request=replace(part.request, budget=budget and budget / len(parts)))
        try:
            outcome = answer.search(timed, planner, top=top, progress=progress, stopped=stopped)
        except MeshwrightError as error:  # say, a batch that so many devices cannot share
            if len(parts) == 1:
                raise
            found.append((part, None, _size(part, None, error.message)))
        else:
            found.append((part, outcome, _size(part, outcome, outcome.reason)))
    able = [f for f in found if f[2].per_item == f[2].per_item]
    told = tuple(size for _, _, size in found)
    if able:
        part, outcome_, _ = min(able, key=lambda f: f[2].per_item)
    else:
        part, outcome_, last = found[-1] if found else (stated, None, None)
        if outcome_ is None:
            raise InputError(last.reason if last else "stopped before any size was searched")
        told = ()
    assert outcome_ is not None
    status = "stopped" if stopped() and able else outcome_.status
    return part, replace(outcome_, goal="price", sizes=told, status=status)


def check_price(stated: Stated) -> None:
    """Raises:
    InputError: no price of the devices is known.
    """
    if stated.problem.cluster.price_per_hour is None:
        names = ", ".join(t.name for t in stated.problem.cluster.types if t.price_per_hour <= 0)
        raise InputError(
            f"--objective cost: no price of {names} is known: give --price, or price_per_hour in a cluster.toml",
            where="--objective",
        )


def sizes(spec: str) -> list[str]:
    """The clusters that are searched for `spec`, smallest first: of a preset halves and halves again, else itself."""
    name, _, count = spec.rpartition("x")
    if name not in presets():
        return [spec]
    node, n = presets()[name].node, int(count)
    counts = {n}
    while n > 1 and (n // 2 <= node or n // 2 % node == 0) and n % 2 == 0:
        n //= 2
        counts.add(n)
    return [f"{name}x{n}" for n in sorted(counts)]


def on(stated: Stated, spec: str) -> Stated:
    """The same question on the cluster `spec`."""
    if spec == stated.request.cluster:
        return stated
    request = replace(stated.request, cluster=spec)
    cluster = answer.cluster_of(request)
    problem = problem_of(request, stated.problem.graph, cluster, stated.question.batch, stated.problem.cost)
    return Stated(request, stated.source, problem, replace(stated.question, cluster=cluster, cluster_spec=spec))


def check_free(folder: Path, stated: Stated) -> None:
    """Refuse a folder that an answer for none of the sizes may be written to.

    Raises:
        InputError: see `output_folder.check_free`.
    """
    for spec in reversed(sizes(stated.request.cluster)):
        try:
            return folders.check_free(folder, replace(stated.request, cluster=spec))
        except InputError as error:
            refused = error
    raise refused


def _size(part: Stated, outcome: Outcome | None, reason: str) -> Size:
    cluster, q = part.problem.cluster, part.question
    if outcome is None or outcome.simulation is None or outcome.plan is None:
        return Size(cluster.name, cluster.count, nan, nan, reason)
    step = outcome.simulation.step_seconds
    return Size(cluster.name, cluster.count, step, (cluster.price_per_hour or nan) * step / HOUR / q.items)


__all__ = ["check_free", "check_price", "on", "search", "sizes"]
