"""`calibrate`: measure this machine, or remove the bias of a stack from a few of its steps; writes a profile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..._words import number, percent
from ...errors import InputError
from ...report.lines import Line, columns
from .. import options as o
from ..numbers import whole
from ..screen import Screen

if TYPE_CHECKING:
    from ...calibration import Profile
    from ...calibration.stack import Learnt, Step
    from ..answers import CalibrateAnswer


def calibrate(
    ranks: Annotated[
        int, whole("--ranks", 0, 64, help="Processes that share this machine.  [default: one a GPU, or one a core]")
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats: under a minute.")] = False,
    from_steps: Annotated[
        Path | None,
        typer.Option("--from-steps", metavar="FILE", help="Measure nothing; learn from the steps in this TOML file."),
    ] = None,
    profile: o.Profile = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="NAME", help="A name, or a file.toml.  [default: local, or FILE's name]"),
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Measure products, attention, memory and collectives of this machine, which `local` then uses; or learn a stack from
    three steps of its own.
    """
    from ...calibration import load, save
    from ...calibration.folder import file_of
    from ._asked import working

    screen = Screen(as_json, quiet, verbose, color)
    file = file_of(out or (from_steps.stem if from_steps else "local"))
    if from_steps is not None and file.resolve() == from_steps.resolve():
        raise InputError(f"--out {out} is the file of the steps: give another name", where="--out")
    with working(screen) as (progress, interrupt):

        def say(what: str, done: int, total: int) -> None:
            progress.search(what, done, total, float("nan"))

        if from_steps is not None:
            from ...calibration.stack import learn_stack
            from ...own_steps import read

            base = load(file_of(profile)) if profile else None
            own = read(from_steps, say)
            learnt = learn_stack(own.steps, name=file.stem, software=own.software, base=base, said=say)
            found, lines = learnt.profile, stack_lines(own.steps, learnt)
            extra = stack_object(own.steps, learnt)
        else:
            from ...calibration.measure import measure

            found = measure(ranks=ranks, quick=quick, name=file.stem, say=say)
            lines, extra = profile_lines(found, verbose), {}
        interrupt.writing = True
        save(found, file)
    screen.lines([*lines, Line(f"Wrote    {o.short_folder(file)}: {found.source}")])
    screen.json({**profile_object(found, file), **extra})
    return 0


def stack_lines(steps: Sequence[Step], learnt: Learnt) -> list[Line]:
    """Steps before and after, and what takes longer or shorter than we say."""
    rows = [["step", "measured s", "before", "after", "by the others", "memory"]]
    for k, step in enumerate(steps):
        off = [f"{100 * (float(x[k]) / step.seconds - 1):+.1f} %" for x in (learnt.before, learnt.after)]
        alone = float(learnt.without[k])
        off.append(f"{100 * (alone / step.seconds - 1):+.1f} %" if alone == alone else "–")
        memory = f"{100 * (float(learnt.memory[k]) / step.memory - 1):+.1f} %" if step.memory else "–"
        rows.append([step.name, number(step.seconds, 3), *off, memory])
    texts = columns(rows, {1, 2, 3, 4, 5})
    factors = sorted(learnt.factors.items(), key=lambda f: -abs(f[1] - 1.0))
    words = ", ".join(f"{name} × {factor:.2f}" for name, factor in factors if abs(factor - 1.0) >= SHOWN)
    return [
        Line(texts[0], "quiet"),
        *map(Line, texts[1:]),
        Line(""),
        Line(f"Learnt   seconds of {words}" if words else "Learnt   nothing: the steps are as predicted"),
    ]


SHOWN = 0.01
"""Factors nearer to 1 are not shown."""


def stack_object(steps: Sequence[Step], learnt: Learnt) -> dict[str, Any]:
    return {
        "factors": dict(learnt.factors),
        "steps": [
            {
                "name": s.name,
                "measured_s": s.seconds,
                "before_s": float(learnt.before[k]),
                "after_s": float(learnt.after[k]),
                "by_the_others_s": float(learnt.without[k]),
                "measured_bytes": s.memory or None,
                "predicted_bytes": float(learnt.memory[k]),
            }
            for k, s in enumerate(steps)
        ],
    }


def profile_lines(profile: Profile, verbose: bool) -> list[Line]:
    """What was found, in one screen; every measurement with `verbose`."""
    lines = []
    if profile.machine is not None:
        m = profile.machine
        lines.append(
            Line(f"{m.device}   torch {m.torch}, ranks {m.ranks} of {m.threads} thread, {m.cores} cores", "title")
        )
    if (local := profile.local) is not None:
        peaks = ", ".join(f"{dtype} {number(rate / 1e12, 3)}" for dtype, rate in local.device.peak.items())
        lines.append(Line(f"  peak       {peaks} TFLOP/s; memory {number(local.device.bandwidth / 1e9, 3)} GB/s"))
        if local.bandwidth:
            link = f"{number(local.bandwidth / 1e9, 3)} GB/s, {number(1e6 * local.latency, 3)} µs a hop"
            lines.append(Line(f"  link       {link}"))
    for kind, table in (("family", profile.families), ("software", profile.generations)):
        for name, values in table.items():
            words = ", ".join(f"{k} {number(v, 3)}" for k, v in values.items())
            lines.append(Line(f"  {kind:10} {name}: {words}"))
    return lines + _errors(profile, verbose)


def _errors(profile: Profile, verbose: bool) -> list[Line]:
    """How far the constants are from what was measured, by kind of work; or each measurement."""
    told = {n: m for n, m in profile.measured.items() if m.predicted}
    if verbose:
        rows = [["measured", "ms", "spread", "predicted", "off by"]]
        for name, m in profile.measured.items():
            spread = (m.high - m.low) / 2 / m.seconds
            predicted = (
                [number(1e3 * m.predicted, 3), f"{100 * (m.predicted / m.seconds - 1):+.0f} %"]
                if m.predicted
                else ["", ""]
            )
            rows.append([name, number(1e3 * m.seconds, 3), percent(spread), *predicted])
        return [Line(t) for t in columns(rows, {1, 2, 3, 4})]
    kinds: dict[str, list[float]] = {}
    for name, m in told.items():
        kinds.setdefault(name.split()[0], []).append(abs(m.predicted / m.seconds - 1.0))
    words = ", ".join(f"{kind} {percent(sorted(e)[len(e) // 2])} of {len(e)}" for kind, e in kinds.items())
    return (
        [Line(f"  off by     {words} (medians of what the constants say against what was measured)")] if words else []
    )


def profile_object(profile: Profile, file: Path) -> CalibrateAnswer:
    """The object of --json."""
    from dataclasses import asdict

    local = profile.local
    return {
        "schema": "meshwright.calibrate/1",
        "status": "ok",
        "file": str(file),
        "generation": profile.software,
        "machine": asdict(profile.machine) if profile.machine else None,
        "device": {
            "name": local.device.name,
            "peak": dict(local.device.peak),
            "bandwidth": local.device.bandwidth,
            "count": local.count,
            "link_bandwidth": local.bandwidth,
            "link_latency_s": local.latency,
        }
        if local
        else None,
        "family": {k: dict(v) for k, v in profile.families.items()},
        "software": {k: dict(v) for k, v in profile.generations.items()},
        "measured": {k: asdict(v) for k, v in profile.measured.items()},
    }
