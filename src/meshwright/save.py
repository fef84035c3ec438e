"""Writing and opening the folder of an answer: plan, report, trace, problem."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import output_folder as folders
from ._parsed import parsed_json
from .errors import InputError
from .plan.match import other_parameters
from .plan.model import Plan
from .plan.validate import validate
from .report.candidates import Candidate
from .report.outcome import Outcome
from .request import Request, read, to_toml
from .stated import Stated

ANSWER = re.compile(r'<script type="application/json" id="answer">(.*?)</script>', re.DOTALL)


def write(outcome: Outcome, stated: Stated, folder: Path) -> Outcome:
    """Write the folder; returns the outcome that names its files.

    Raises:
        InputError: the folder holds another problem or cannot be written.
    """
    from .plan.serial import dumps
    from .report.html import report_html
    from .simulate.trace import write_trace

    if outcome.plan is None or outcome.simulation is None:
        raise InputError("there is no plan to write")
    folders.check_free(folder, stated.request)
    q = stated.question
    request = stated.request.seen_from(folder)
    named = replace(outcome, folder=str(folder))
    files: dict[str, bytes | Callable[[Path], None]] = {
        folders.PLAN: dumps(outcome.plan).encode(),
        folders.REPORT: report_html(named).encode(),
        folders.TRACE: partial(
            write_trace, outcome.simulation, cluster=q.cluster, title=f"{q.model} on {q.cluster.name}"
        ),
        folders.PROBLEM: to_toml(
            request, f"{q.model} on {q.cluster.name}; run again with: meshwright plan problem.toml"
        ).encode(),
    }
    return replace(named, files=folders.write_together(folder, files))


@dataclass(frozen=True)
class Opened:
    """A plan with the problem it answers."""

    folder: Path
    plan: Plan
    request: Request
    answer: dict[str, Any]
    """What the report holds; empty without one."""


def open_plan(path: Path) -> Opened:
    """A plan.json or its folder.

    Raises:
        InputError: missing, damaged, or without the problem.toml that says what it is a plan for.
    """
    from .plan.serial import load

    file = path / folders.PLAN if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise InputError(
            f"{path}/ holds no {folders.PLAN}: give the folder that meshwright plan wrote", where=str(path)
        )
    plan = load(file)
    problem = file.parent / folders.PROBLEM
    if not problem.exists():
        raise InputError(
            f"{file} lies alone: {folders.PROBLEM} beside it says which model and cluster it is for", where=str(file)
        )
    return Opened(file.parent, plan, read(problem), _stored(file.parent / folders.REPORT))


def _stored(report: Path) -> dict[str, Any]:
    """The answer in a report; {} where there is none, or a file that no longer holds one: the plan does not need it."""
    try:
        found = ANSWER.search(report.read_text(encoding="utf-8"))
        answer = parsed_json(found[1]) if found else {}
        stored_candidates(answer)
        parts = answer.get("problem", {}), answer.get("result", {}), answer.get("why") or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return answer if all(isinstance(part, dict) for part in parts) else {}


def stored_candidates(answer: dict[str, Any]) -> tuple[list[Candidate], list[Candidate]]:
    """(those that fit, those that do not) as the report holds them."""
    rows = []
    for r in answer.get("candidates", []):
        step, rate, mfu, memory = (
            float("nan") if r[k] is None else float(r[k])
            for k in ("step_s", "items_per_s_per_device", "mfu", "memory_bytes")
        )
        rows.append(
            Candidate(
                r["layout"],
                r["micro_batch"],
                r["micro_batches"],
                r["recompute"],
                r["schedule"],
                step,
                rate,
                mfu,
                memory,
                r["over_bytes"],
            )
        )
    return [r for r in rows if r.fits], [r for r in rows if not r.fits]


def check_same_model(opened: Opened, stated: Stated) -> None:
    """Refuse to price or run a plan against a model that it was not made for.

    Raises:
        InputError: the digests of the graphs differ, or the plan is no legal answer to the problem.
    """
    graph = stated.problem.graph
    if opened.plan.rewritten is None and opened.plan.graph != graph.digest:
        made_for = opened.answer.get("problem", {})
        if text := other_parameters(made_for.get("shapes", {}), graph):
            raise InputError(
                f"{folders.PLAN} is for {made_for['model']}, not {stated.source.name}: {text}", where=str(opened.folder)
            )
        raise InputError(
            f"{opened.folder / folders.PLAN} is for another {stated.source.name}: its graph is "
            f"{opened.plan.graph[:12] or 'unnamed'}, that of the model is {graph.digest[:12]}; "
            f'plan it again with "meshwright plan {opened.folder / folders.PROBLEM}"',
            where=str(opened.folder),
        )
    if opened.plan.rewritten is None:
        try:
            validate(stated.problem, opened.plan)
        except InputError as error:
            raise InputError(f"{opened.folder / folders.PLAN}: {error.message}", where=str(opened.folder)) from None


def write_trace_again(outcome: Outcome, path: Path) -> None:
    """Only the trace of an outcome.

    Raises:
        InputError: the folder cannot be written.
    """
    from .simulate.trace import write_trace

    q = outcome.question
    if outcome.simulation is None:
        raise InputError("there is no plan to trace")
    write_trace(outcome.simulation, path, cluster=q.cluster, title=f"{q.model} on {q.cluster.name}")
