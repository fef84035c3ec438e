"""`run`: train a plan on the devices of this machine, or as one rank under torchrun."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..._words import number
from ...report.lines import Line
from .. import options as o
from ..numbers import whole
from ..screen import Screen

if TYPE_CHECKING:
    from ...cluster.launch import Launch
    from ...execute import StepReport
    from ..answers import RunAnswer, SlurmAnswer


def run(
    plan: o.PlanPath,
    steps: Annotated[int, whole("--steps", 1, help="Optimizer steps.")] = 20,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on from a checkpoint, written under any plan.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Text to train on.  [default: the one that is shipped]"),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where checkpoints go, one every ten steps.")
    ] = Path("run"),
    slurm: Annotated[
        Path | None,
        typer.Option(
            "--slurm", metavar="FILE", help="Write a script for sbatch that trains on the cluster; start nothing here."
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the trained weights to one .safetensors file, too."),
    ] = None,
    seed: o.Seed = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Train a plan on this machine: starts one process a device, or runs as one rank under torchrun."""
    from ... import api
    from ._asked import working

    speaks = os.environ.get("RANK", "0") == "0"  # under torchrun one rank speaks for all
    screen = Screen(as_json, quiet or not speaks, verbose, color)
    began = time.monotonic()
    given = {"--steps": steps, "--resume": resume, "--data": data, "--out": out, "--export": export, "--seed": seed}
    started = api.launch(plan, [w for k, v in given.items() if v is not None for w in (k, str(v))])
    if slurm is not None:
        started.write_slurm(slurm)
        screen.text(f"Wrote {slurm}   sbatch {slurm}", *by_hand(started))
        script: SlurmAnswer = {
            "schema": "meshwright.run/1",
            "status": "ok",
            "files": {"slurm": str(slurm)},
            "launch": started.line,
        }
        screen.json(script)
        return 0

    if export is not None:
        from ...execute.saved.export import export_safetensors, must_be_writable

        must_be_writable(export)

    def told(report: StepReport) -> None:
        screen.lines([Line(step_line(report, time.monotonic() - began))])

    with working(screen) as (progress, _):
        progress.line("run", str(plan), "")
        if started.shape.nodes > 1 and "WORLD_SIZE" not in os.environ:
            screen.text(*by_hand(started))
        result = api.run(plan, steps=steps, resume=resume, data=data, folder=out, seed=seed, on_step=told)
    if not speaks:
        return 0
    against = api.measured_run(plan, result)
    if against is not None:
        screen.text(*against.lines())
    if export is not None and result.checkpoint:
        screen.text(f"Wrote {export_safetensors(result.checkpoint, export)}   weights under the names of the model")
    if result.steps and result.checkpoint:
        screen.lines(
            [Line(f"Wrote {result.checkpoint}   go on with --resume {result.checkpoint} under any plan of this model")]
        )
    answer: RunAnswer = {
        "schema": "meshwright.run/1",
        "status": "ok",
        "ranks": result.ranks,
        "checkpoint": str(result.checkpoint) if result.checkpoint else None,
        "weights": str(export) if export is not None else None,
        "steps": [{"step": s.step, "loss": s.loss} for s in result.steps],
        "step_s": [
            {"rank": r.rank, "predicted": r.step[0], "measured": r.step[1], "parts_most_in": r.parting}
            for r in (against.ranks if against is not None else ())
        ],
        "seconds": time.monotonic() - began,
    }
    screen.json(answer)
    return 0


def by_hand(launch: Launch) -> list[str]:
    """What to type on the machines of the plan."""
    where = f"On each of {launch.shape.nodes} machines" if launch.shape.nodes > 1 else "By hand"
    return [f"{where}: {launch.line}" + ("   HOST = any one of them" if launch.shape.nodes > 1 else "")]


def step_line(report: StepReport, seconds: float) -> str:
    """ "step   3   loss 8.1234   12 s", with one process's loss beside it where there is one."""
    text = f"step {report.step:4}   loss {report.loss:.6f}"
    if report.reference is not None:
        apart = abs(report.loss - report.reference) / abs(report.reference)
        text += f"   one process {report.reference:.6f}   apart {apart:.1e}"
    return f"{text}   {number(seconds, 2)} s"
