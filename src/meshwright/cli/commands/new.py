"""`new`: a planner to start from, as a file or as a package."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import options as o
from ..completion import NEW_KINDS, new_kinds
from ..screen import Screen

if TYPE_CHECKING:
    from ..answers import NewAnswer


def new(
    kind: Annotated[str, typer.Argument(metavar="planner", help="What is to be made.", autocompletion=new_kinds)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the planner, such as greedy_tp.")],
    package: Annotated[
        bool, typer.Option("--package", help="A package with the entry point and the conformance tests.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.  [default: here]")
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Write a planner that works as it stands, to start from."""
    from ...errors import InputError
    from ...output_folder import write_together
    from ...planners import registry
    from .. import skeleton

    screen = Screen(as_json, quiet, color=color)
    if kind not in NEW_KINDS:
        raise InputError(f'new makes no "{kind}": write "meshwright new planner NAME"', where="KIND")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(
            f'"{name}" cannot name a planner: use small letters, digits and _, first a letter, such as greedy_tp',
            where="NAME",
        )
    if name in sys.stdlib_module_names or name == "meshwright":
        raise InputError(f'"{name}" is a module that others import: choose another name', where="NAME")
    if name in registry.names():
        raise InputError(f'"{name}" is a planner already: "meshwright planners {name}" shows it', where="NAME")
    folder = out or Path()
    target = folder / (name if package else f"{name}.py")
    if target.exists():
        raise InputError(f"{target} exists and was left as it is: give another name or a folder with -o", where="NAME")
    texts = skeleton.package(name) if package else {target.name: skeleton.module(name)}
    write_together(target if package else folder, {path: text.encode() for path, text in texts.items()})
    shown = o.short_folder(target)
    if package:
        command = f"pip install -e {shown}"
        screen.text(f"Wrote {shown}/: {', '.join(texts)}", f"Next: {command}, then meshwright check {name}")
    else:
        lines = texts[target.name].count("\n")
        command = f"meshwright check {shown if '/' in shown else './' + shown}"
        screen.text(f"Wrote {shown}: {lines} lines, works as it stands.   Next: {command}")
    files = {path: str(target / path if package else folder / path) for path in texts}
    answer: NewAnswer = {
        "schema": "meshwright.new/1",
        "status": "ok",
        "planner": name,
        "files": files,
        "next": command,
    }
    screen.json(answer)
    return 0
