"""`verify`, `check`: is the plan right, is the planner right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..._words import number, time_part
from ...report.lines import Line
from .. import options as o
from ..numbers import whole
from ..screen import Screen

if TYPE_CHECKING:
    from ...execute import VerifyResult
    from ..answers import CheckAnswer, VerifyAnswer


def verify(
    plan: o.PlanPath,
    ranks: Annotated[int, whole("--ranks", 1, 64, help="About how many processes check it.")] = 4,
    full_size: Annotated[bool, typer.Option("--full-size", help="Scale nothing down.")] = False,
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Run a plan on processes of this machine, scaled down: same loss and gradients as one device?"""
    from ... import api
    from ._asked import working

    screen = Screen(as_json, quiet, verbose, color)
    with working(screen) as (progress, _):
        progress.line("verify", str(plan), "")
        result = api.verify(
            plan,
            ranks=ranks,
            full_size=full_size,
            seed=seed or 0,
            progress=lambda what: progress.line("verify", what, " "),
        )
    screen.lines(verify_lines(result))
    answer: VerifyAnswer = {
        "schema": "meshwright.verify/1",
        "status": "ok" if result.equal else "error",
        "equal": result.equal,
        "loss": {"one_process": result.loss[0], "plan": result.loss[1]},
        "gradients": result.gradients,
        "worst": {"parameter": result.worst[0], "error": result.worst[1], "limit": result.limit},
        "collectives": {k: {"predicted": p, "ran": r} for k, (p, r) in result.collectives.items()},
        "problems": list(result.problems),
        "scaled": result.scaled,
        "not_verified": list(result.not_verified),
        "seconds": result.seconds,
    }
    screen.json(answer)
    return 0 if result.equal else 1


def verify_lines(result: VerifyResult) -> list[Line]:
    one, plan = result.loss
    predicted = sum(p for p, _ in result.collectives.values())
    ran = sum(r for _, r in result.collectives.values())
    kinds = " · ".join(f"{_plain(k)} {r}" for k, (_, r) in result.collectives.items())
    sign = "=" if result.equal or abs(one - plan) <= 1e-5 * max(1.0, abs(one)) else "≠"
    lines = [
        Line(f"Scaled down: {result.scaled}" if result.scaled else "Full size: nothing was scaled down"),
        Line(f"  loss         {one:.7f} {sign} {plan:.7f}    difference {abs(one - plan):.1e}"),
        Line(
            f"  gradients    {result.gradients} tensors    worst {result.worst[1]:.1e}"
            + (f" in {result.worst[0]}" if result.worst[0] else "")
            + f"    limit {result.limit:.0e}"
        ),
    ]
    if result.collectives or not result.updates:
        lines.append(Line(f"  collectives  {predicted} predicted, {ran} ran" + (f"    {kinds}" if kinds else "")))
    lines += [Line(f"  not verified: {what}") for what in result.not_verified]
    lines += [Line(f"  {problem}", "bad") for problem in result.problems[:10]]
    if len(result.problems) > 10:
        lines.append(Line(f"  and {len(result.problems) - 10} more", "bad"))
    truth = "what one device computes"
    if result.updates:
        truth = f"what one device computes with weights as late as the plan's, over {result.updates} updates"
    verdict = f"✓ the plan computes {truth}" if result.equal else "✗ the plan computes something else"
    lines.append(Line(f"{verdict}    {number(result.seconds, 2)} s", "good" if result.equal else "bad"))
    return lines


def _plain(kind: str) -> str:
    return time_part(kind).removeprefix("exposed ")


def check(
    planner: Annotated[
        str, typer.Argument(metavar="PLANNER", help="A name or a ./file.py.", autocompletion=o.planner_names)
    ],
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Run the public conformance suite on a planner."""
    from ...planners.registry import load
    from ...testing import conformance
    from ._asked import working

    screen = Screen(as_json, quiet, color=color)
    found = load(planner)
    with working(screen) as (progress, _):
        progress.line("check", f"{found.info.name}: about a minute", "")
        report = conformance(planner)
    texts = report.text().splitlines()
    screen.lines([*map(Line, texts[:-1]), Line(texts[-1], "good" if report.passed else "bad")])
    answer: CheckAnswer = {
        "schema": "meshwright.check/1",
        "status": "ok" if report.passed else "error",
        "planner": report.name,
        "checks": [{"name": c.name, "passed": c.passed, "note": c.note, "fault": c.fault} for c in report.checks],
    }
    screen.json(answer)
    return 0 if report.passed else 1
