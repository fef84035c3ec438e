"""`calibrate`: measure this machine, or remove the bias of a stack from a few of its steps; writes a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...report.lines import Line, columns
from ...report.words import number, percent
from .. import options as o
from ..numbers import whole
from ..screen import Screen

if TYPE_CHECKING:
    from ...calibration import Profile


def calibrate(
    ranks: Annotated[
        int, whole("--ranks", 0, 64, help="Processes that share this machine.  [default: one a GPU, or one a core]")
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repeats: under a minute.")] = False,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="NAME", help="A name, or a file.toml.  [default: local]"),
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Measure products, attention, memory and collectives of this machine into a profile, which `local` then uses."""
    from ...calibration import save
    from ...calibration.folder import file_of
    from ...calibration.measure import measure
    from ._asked import working

    screen = Screen(as_json, quiet, verbose, color)
    file = file_of(out or "local")
    with working(screen) as (progress, interrupt):
        profile = measure(
            ranks=ranks,
            quick=quick,
            name=file.stem,
            say=lambda what, done, total: progress.search(what, done, total, float("nan")),
        )
        interrupt.writing = True
        save(profile, file)
    screen.lines(profile_lines(profile, file, verbose))
    screen.json(profile_object(profile, file))
    return 0


def profile_lines(profile: Profile, file: Path, verbose: bool) -> list[Line]:
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
    lines += _errors(profile, verbose)
    lines.append(Line(f"Wrote    {o.short_folder(file)}: {profile.source}"))
    return lines


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


def profile_object(profile: Profile, file: Path) -> dict[str, Any]:
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
