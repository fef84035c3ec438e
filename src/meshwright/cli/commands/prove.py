"""`verify`, `check`, `validate`: is the plan right, is the planner right, are the predictions right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError
from ...report.lines import Line, columns, labelled
from ...report.words import joined, number, percent, time_part
from .. import options as o
from ..numbers import amount, whole
from ..screen import Screen

if TYPE_CHECKING:
    from ...execute import VerifyResult
    from ...validation import Report


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
    screen.json(
        {
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
    )
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
        Line(f"  collectives  {predicted} predicted, {ran} ran" + (f"    {kinds}" if kinds else "")),
    ]
    lines += [Line(f"  not verified: {what}") for what in result.not_verified]
    lines += [Line(f"  {problem}", "bad") for problem in result.problems[:10]]
    if len(result.problems) > 10:
        lines.append(Line(f"  and {len(result.problems) - 10} more", "bad"))
    verdict = "✓ the plan computes what one device computes" if result.equal else "✗ the plan computes something else"
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
    screen.json(
        {
            "schema": "meshwright.check/1",
            "status": "ok" if report.passed else "error",
            "planner": report.name,
            "checks": [{"name": c.name, "passed": c.passed, "note": c.note, "fault": c.fault} for c in report.checks],
        }
    )
    return 0 if report.passed else 1


def validate(
    source: Annotated[str | None, typer.Option("--source", help="Only steps of this source.")] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="a100|h100|v100", help="Only this device.")] = None,
    max_error: Annotated[
        float | None,
        amount("--max-error", "percent", zero=True, metavar="PCT", help="Exit 1 if the mean error is above this."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="MESHWRIGHT_DATA", metavar="FOLDER", help="Folder with measured/*.csv."),
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Predict published step times, each source by constants that were fitted without it."""
    from ...validation import validate as score
    from ._asked import working

    screen = Screen(as_json, quiet, color=color)
    if data is None:
        raise InputError(
            "the measured steps are not part of the package: give their folder with --data or MESHWRIGHT_DATA "
            "(docs/data.md says where they come from)",
            where="--data",
        )
    with working(screen) as (progress, _):
        report = score(
            data, source, device, progress=lambda name, done, total: progress.search(name, done, total, float("nan"))
        )
    screen.lines(validate_lines(report, screen.width))
    screen.json({"schema": "meshwright.validate/1", "status": "ok", **validate_object(report)})
    return 1 if max_error is not None and 100 * report.mape > max_error else 0


def validate_lines(report: Report, width: int) -> list[Line]:
    head = ["source", "devices", "steps", "error", "bias", "90 % below", "constant efficiency"]
    rows = [head]
    for s in report.sources:
        rows.append(
            [
                s.source, joined(list(s.devices)), f"{s.rows:,}", percent(s.mape), f"{100 * s.bias:+.1f} %", percent(s.p90),
                percent(s.baseline),
            ]
        )  # fmt: skip
    texts = columns(rows, {2, 3, 4, 5, 6})
    lines = [Line(texts[0], "quiet"), *map(Line, texts[1:]), Line("")]
    steps = f"{report.rows:,} steps of {len(report.sources)} sources, each predicted by constants fitted without it"
    facts = {
        "Error": f"{percent(report.mape)} mean over sources, {percent(report.median)} median "
        f"(constant efficiency per device: {percent(report.baseline)})",
        "Typical": "; ".join(
            f"80 % of {d} steps within {percent(w)} ({report.steps[d][0]:,} steps, {report.steps[d][1]} sources)"
            for d, w in report.within.items()
        ),
        "Pairs": f"the ratio of two plans of one problem is off by {percent(report.pair_error)} in the median of {report.pairs:,} pairs; "
        f"where plans differ by more, {percent(report.pair_order)} are in the right order",
        "Regret": f"{percent(report.regret)}: how much slower the plan it picks is than the best measured one ({report.groups} problems)",
        "Left out": "; ".join(f"{n:,} {reason}" for reason, n in report.refused.items()) or "none",
    }  # fmt: skip
    lines += [Line(t) for t in labelled("Steps", [steps], width, 10)]
    return lines + [Line(t) for k, v in facts.items() for t in labelled(k, [v], width, 10)]


def validate_object(report: Report) -> dict[str, Any]:
    return {
        "steps": report.rows,
        "error": report.mape,
        "median_error": report.median,
        "constant_efficiency_error": report.baseline,
        "within": dict(report.within),
        "steps_by_device": {d: {"steps": n, "sources": k} for d, (n, k) in report.steps.items()},
        "pairs": report.pairs,
        "pair_error": report.pair_error,
        "pair_order": report.pair_order,
        "regret": report.regret,
        "left_out": dict(report.refused),
        "sources": [
            {
                "source": s.source, "devices": list(s.devices), "steps": s.rows, "error": s.mape, "bias": s.bias,
                "p90": s.p90, "constant_efficiency_error": s.baseline,
            }
            for s in report.sources
        ],
    }  # fmt: skip
