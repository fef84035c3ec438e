"""The table of commands. A command's module is imported when the command runs, so that help and completion are quick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ._epilogs import EPILOG
from .commands import (
    calibrate,
    compare,
    export,
    listings,
    new,
    plan,
    prove,
    replan,
    run,
    schema,
    show,
    simulate,
    validate,
)

app = typer.Typer(
    name="meshwright",
    help="Finds how to train a model in parallel on a cluster, predicts step time and memory, proves the plan, runs it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
    epilog=EPILOG["meshwright"],
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"meshwright {version('meshwright')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options before the command."""


COMMANDS: dict[str, tuple[Callable[..., int | None], str]] = {
    "plan": (plan.plan, "Search, predict, write a folder."),
    "simulate": (simulate.simulate, "Price a layout given by hand, or a plan."),
    "compare": (compare.compare, "Many planners, one problem."),
    "show": (show.show, "The table of a plan again; opens the report."),
    "verify": (prove.verify, "Does the plan compute what one device computes?"),
    "run": (run.run, "Train a plan on this machine."),
    "export": (export.export, "The settings of another trainer."),
    "replan": (replan.replan, "The cluster changed: a new plan, and what moves."),
    "check": (prove.check, "Does a planner keep its promises?"),
    "new": (new.new, "A planner to start from."),
    "calibrate": (calibrate.calibrate, "Measure this machine, or learn from your own steps."),
    "validate": (validate.validate, "Predicted against measured step times and memory."),
    "planners": (listings.planners, "What planners there are."),
    "models": (listings.models, "What models there are."),
    "clusters": (listings.clusters, "What clusters there are."),
    "exporters": (export.exporters, "What trainers a plan can be written for."),
    "schema": (schema.schema, "Commands, answers and files, described for scripts."),
}
for _name, (_command, _short) in COMMANDS.items():
    app.command(_name, short_help=_short, epilog=EPILOG[_name])(_command)
