"""Many planners on one problem, all judged by the shared simulator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path

from . import answer, settings
from . import output_folder as folders
from .errors import InputError, MeshwrightError
from .report.compare import NOT_SIMULATED, Comparison, Entry, citations, compare_csv
from .request import to_toml
from .stated import Stated

Told = Callable[[str, int, int], None]
"""(planner, its number, number of planners)."""


def planners_named(words: str) -> list[str]:
    """ "a,b,./file.py", "all" (that are finished) or "tag:exact" as planner names.

    Raises:
        InputError: no planner has the tag, or the list is empty.
    """
    from .planners import registry

    if words == "all":
        return registry.finished_names()
    if words.startswith("tag:"):
        tag = words.removeprefix("tag:")
        infos = [kind.info for kind in registry.planners().values()]
        found = [i.name for i in infos if tag in (i.family, *i.decides, *i.handles, *i.goals)]
        if not found:
            raise InputError(
                f'no planner has the tag "{tag}": "meshwright planners" lists their tags', where="--planners"
            )
        return sorted(found)
    names = list(dict.fromkeys(w.strip() for w in words.split(",") if w.strip()))
    if not names:
        raise InputError("--planners names none: write a,b or all or tag:WORD", where="--planners")
    return names


def unfinished() -> list[str]:
    """Planners that "all" leaves out, because parts of their method are missing."""
    from .planners import registry

    return [name for name, kind in registry.planners().items() if kind.info.missing]


def check_names(names: Sequence[str], given: Mapping[str, str] | None = None) -> None:
    """Unknown names, and settings that none of the planners takes, fail before anything is captured or searched.

    Raises:
        InputError: no such planner or file, two of one name, or a setting without a taker.
    """
    from .planners import registry

    kinds = {name: type(registry.load(name)) for name in names}
    called: dict[str, str] = {}
    for name, kind in kinds.items():
        if (other := called.setdefault(kind.info.name, name)) != name:
            raise InputError(
                f"--planners: {other} and {name} are both called {kind.info.name}: give one of them another name in its info",
                where="--planners",
            )
    known = {f"planner {name}": settings.parameters(kind) for name, kind in kinds.items()}
    settings.check_taken(given or {}, known)


def compare(
    stated: Stated,
    names: Sequence[str],
    *,
    progress: answer.Progress | None = None,
    told: Told = lambda name, k, n: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Every planner within its own budget and with the same seed; a planner that refuses or fails is a row that says why.

    Ctrl-C ends the planner that runs, keeps its best, and leaves the rest out (`stopped` says that it came).
    """
    entries = []
    for k, name in enumerate(names):
        if stopped():
            break
        told(name, k, len(names))
        entries.append(_entry(stated, name, progress))
    return Comparison(
        stated.question, tuple(sorted(entries, key=Entry.order)), stated.request.seed, stated.request.budget
    )


def _entry(stated: Stated, name: str, progress: answer.Progress | None) -> Entry:
    from .planners import registry
    from .planners.types import Budget

    known = settings.parameters(type(registry.load(name)))
    taken = settings.taken(stated.request.settings, known)
    planner = answer.planner_of(replace(stated.request, planner=name, fix={}, allow={}, settings=taken))
    began = time.monotonic()
    budget = Budget(seconds=stated.request.budget)
    try:
        result = planner.plan(stated.problem, budget=budget, seed=stated.request.seed, progress=progress)
    except MeshwrightError as error:
        return Entry(planner.info, "refused", error.message, nan, "", None, time.monotonic() - began, None)
    except Exception as error:  # a planner of someone else may raise anything; the others still answer
        reason = f"{type(error).__name__} in its search: {' '.join(str(error).split())}"
        return Entry(planner.info, "failed", reason, nan, "", None, time.monotonic() - began, None)
    claim = result.objective if result.plan is not None else nan
    status: str = result.status
    reason, outcome = result.reason, None
    if result.plan is not None:
        try:
            outcome = answer.outcome_of(stated, planner, result)
        except MeshwrightError as error:
            status, reason = NOT_SIMULATED, error.message
    return Entry(planner.info, status, reason, claim, result.unit, result.bound, result.seconds, outcome)


def write(found: Comparison, stated: Stated, folder: Path) -> dict[str, int]:
    """report.html, results.csv, plans/*.json, cite.bib and problem.toml; returns name -> bytes.

    Raises:
        InputError: the folder holds another problem or cannot be written.
    """
    from .plan.serial import dumps
    from .report.compare_html import compare_html

    folders.check_free(folder, stated.request)
    q = stated.question
    files: dict[str, bytes | Callable[[Path], None]] = {
        folders.REPORT: compare_html(found).encode(),
        "results.csv": compare_csv(found).encode(),
        "cite.bib": citations(found).encode(),
        folders.PROBLEM: to_toml(stated.request.seen_from(folder), f"{q.model} on {q.cluster.name}").encode(),
    }
    for entry in found.entries:
        if entry.outcome is not None and entry.outcome.plan is not None:
            files[f"plans/{entry.about.name}.json"] = dumps(entry.outcome.plan).encode()
    return folders.write_together(folder, files)
