"""`schema`: the commands, their answers and the files, described for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .. import options as o
from ..completion import schema_names
from ..screen import Screen

if TYPE_CHECKING:
    from ..answers import SchemaAnswer


def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A command, or a file such as problem.toml.  [default: all]",
            autocompletion=schema_names,
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Describe commands and files for scripts and agents: options, exit codes, JSON schemas of every answer and file.

    Writes JSON, indented for people unless --json is given.
    """
    import json
    import sys
    from importlib.metadata import version

    from ..._spelling import nearest
    from ...errors import InputError
    from .. import described
    from ..app import COMMANDS

    files = described.files()
    if name is not None and name not in COMMANDS and name not in files:
        near = nearest(name, [*COMMANDS, *files])
        hint = f"did you mean {near}?" if near else f"there are {', '.join([*COMMANDS, *files])}"
        raise InputError(f'no command and no file "{name}": {hint}', where="NAME")
    commands = [c for c in COMMANDS if name in (None, c)]
    found: SchemaAnswer = {
        "schema": "meshwright.schema/1",
        "status": "ok",
        "version": version("meshwright"),
        "exit_codes": dict(described.EXIT_CODES),
        "commands": {c: {**described.command(COMMANDS[c][0], c), "answers": described.answers(c)} for c in commands},
        "error": described.error(),
        "files": {file: make() for file, make in files.items() if name in (None, file)},
    }
    if as_json:
        Screen(True).json(found)
    else:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
