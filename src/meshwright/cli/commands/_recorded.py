"""`plan` and `compare` of recorded profiles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ... import exporting, recorded
from ... import output_folder as folders
from ...errors import InputError
from ...recorded import is_recorded
from ...report.lines import Line
from ...report.recorded import Answered, compare_lines, compare_object, plan_lines, plan_object
from ...request import Request, to_toml
from ..entry import complain
from ..screen import Screen, finite
from ._asked import working

__all__ = ["compare_recorded", "is_recorded", "plan_recorded"]

RESULT = "result.json"


def plan_recorded(
    request: Request, named: str | None, out: Path | None, screen: Screen, wanted: tuple[str, Path] | None = None
) -> int:
    """Plan a profile and show what was found.

    Args:
        named: the planner, where one was named.
        wanted: format and file of a profile that is to be written, too.
    """
    _check_options(request)
    with working(screen) as (progress, interrupt):
        given = named or (request.planner if request.planner != Request(request.model).planner else None)
        name, kind = recorded.planner_kind(request, given)
        request = replace(request, planner=name, recorded=True)
        if out is not None:
            folders.check_free(out, request)
        profiled, parameters = recorded.stated(request, kind)
        planner = recorded.made(kind, parameters)
        if wanted is not None:
            exporting.save(profiled.problem, *wanted, title=Path(profiled.file).name.partition(".")[0])
            screen.note(f"wrote {wanted[1]}, a profile of format {wanted[0]}: meshwright plan {wanted[1]}")
        progress.line("problem", f"{profiled.file} ({profiled.format})", "")
        progress.planner, progress.unit = kind.info.name, planner.unit_of(profiled.problem)
        # What is found is kept from here on: simulating it is not worth losing it.
        result = recorded.searched(profiled, planner, request, progress.search)
        interrupt.writing = True
        found = recorded.judged(profiled, planner, result, parameters, detail=out is not None)
        files = _write(found, request, out) if out is not None and found.plan is not None else {}
    if found.plan is None and interrupt.count:
        raise KeyboardInterrupt
    screen.lines(plan_lines(found, screen.width, asked=given is not None))
    if files:
        screen.text(f"Wrote     {out}/   " + " · ".join(files))
    if found.plan is None:
        complain(f"{'infeasible' if found.status == 'infeasible' else 'stopped'}: {profiled.file}: {found.reason}")
    answer = plan_object(found)
    answer["files"] = {name: f"{out}/{name}" for name in files}
    screen.json(answer)
    return 0 if found.plan is not None else 3


def compare_recorded(requests: Sequence[Request], names: Sequence[str], out: Path | None, screen: Screen) -> int:
    """Every planner on every profile, a table a profile."""
    from ...planners import registry

    problems: list[list[Answered]] = []
    with working(screen) as (progress, interrupt):
        for request in requests:
            _check_options(request)

        def told(name: str, k: int, n: int) -> None:
            progress.planner, progress.unit = name, registry.load(name).unit or "s"
            progress.line("planner", f"{name} ({k + 1} of {n})", " ")

        for request in requests:
            progress.line("problem", request.model, " ")
            found = recorded.compared(
                request, names, progress=progress.search, told=told, stopped=lambda: interrupt.count > 0
            )
            if found:
                problems.append(found)
            if interrupt.count:
                break
    if not problems:
        raise KeyboardInterrupt
    for k, answers in enumerate(problems):
        screen.lines([*([Line("")] if k else []), *compare_lines(answers, screen.width)])
    everything = compare_object(problems, requests[0].seed, requests[0].budget)
    if out is not None:
        folders.write_together(out, {"compare.json": _text(everything)})
        screen.text(f"Wrote {out}/compare.json")
    screen.json(everything)
    return 0 if everything["status"] == "ok" else 3


def _write(found: Answered, request: Request, out: Path) -> dict[str, int]:
    from ...plan.serial import dumps
    from ...report.recorded_html import recorded_html

    assert found.plan is not None
    comment = f"{found.profiled.file}; run again with: meshwright plan {folders.PROBLEM}"
    return folders.write_together(
        out,
        {
            folders.REPORT: recorded_html(found).encode(),
            folders.PLAN: dumps(found.plan).encode(),
            RESULT: _text(plan_object(found)),
            folders.PROBLEM: to_toml(request.seen_from(out), comment).encode(),
        },
    )


def _text(value: Mapping[str, object]) -> bytes:
    return (json.dumps(finite(value), ensure_ascii=False, indent=1) + "\n").encode()


def _check_options(request: Request) -> None:
    """Options that a profile has no place for.

    Raises:
        InputError: names the first of them.
    """
    default = Request(request.model)
    environment = {"cluster": "MESHWRIGHT_CLUSTER", "profile": "MESHWRIGHT_PROFILE"}
    for name in (
        "cluster",
        "profile",
        "seq",
        "precision",
        "attention_share",
        "routing_skew",
        "keep_free",
        "fix",
        "allow",
        "mesh",
        "annotations",
        "tokens",
        "price",
    ):
        value = getattr(request, name)
        if value != getattr(default, name) and value != os.environ.get(environment.get(name, "")):
            raise InputError(
                f"{request.model} is a recorded profile, which --{name.replace('_', '-')} says nothing about: its devices, "
                "memory, bandwidth and micro_batches are set with --set KEY=VALUE",
                where=f"--{name.replace('_', '-')}",
            )
    if request.objective != default.objective:
        raise InputError(
            f"{request.model} is a recorded profile: its planners have objectives of their own, --set objective=… where "
            "there are several",
            where="--objective",
        )
