"""`validate`: predicted against measured, the rows that ship with the package or a folder of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import options as o
from ..numbers import amount
from ..screen import Screen

DEFAULT_FOLDER = Path("validate")


def validate(
    source: Annotated[str | None, typer.Option("--source", metavar="NAME", help="Only steps of this source.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="TYPE", help="Only this device: a100, h100, blackwell, …")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="CSV files of measured steps.  [default: those that ship]"),
    ] = None,
    max_error: Annotated[
        float | None,
        amount(
            "--max-error", "percent", zero=True, metavar="PCT", help="Exit 1 if the mean over sources is above this."
        ),
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Also write a page with a picture of every row.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the page goes.  [default: validate]")
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Predict published step times and memory, each source by constants that were fitted without it."""
    from ..._words import file_size
    from ...report.lines import Line, listed
    from ...report.truth import truth_lines
    from ...validation import read, shipped, validate_object
    from ...validation import validate as score
    from ._asked import working

    screen = Screen(as_json, quiet, color=color)
    with working(screen) as (progress, _):
        table = read(data) if data is not None else shipped()
        report = score(
            table, source, device, progress=lambda name, done, total: progress.search(name, done, total, float("nan"))
        )
        answer = validate_object(report)
    lines = truth_lines(answer, screen.width)
    if html or out is not None:
        from ...output_folder import write_together
        from ...report.truth_html import truth_html

        folder = out or DEFAULT_FOLDER
        sizes = write_together(folder, {"report.html": truth_html(answer).encode()})
        names = [f"{name} {file_size(size)}" for name, size in sizes.items()]
        lines += map(Line, ["", *listed(f"Wrote     {folder}/   ", names, screen.width)])
        answer["files"] = {name: str(folder / name) for name in sizes}
    missed = max_error is not None and answer["mape"] > max_error
    if missed:
        lines.append(
            Line(
                f"The mean error over sources is {answer['mape']:.1f} %, above the {max_error:g} % of --max-error.",
                "bad",
            )
        )
    screen.lines(lines)
    screen.json(answer)
    return 1 if missed else 0
