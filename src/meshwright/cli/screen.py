"""Where results go: stdout as lines or one JSON object, in the width, colour and encoding that it has."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

from .._words import whole_number
from ..report.lines import Line, encodable

Color = Literal["auto", "always", "never"]

PIPE_WIDTH = 100
_SGR = {"title": "1", "chosen": "1", "refused": "33", "good": "1;34", "bad": "1;33", "quiet": "2"}
"""Blue and yellow: told apart without red and green."""


def wants_color(stream: TextIO, choice: Color) -> bool:
    """Whether `stream` gets colour: the option, then NO_COLOR, FORCE_COLOR, TERM=dumb, then whether it is a terminal."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int:
    """Columns: COLUMNS, else the terminal's, else 100 in a pipe."""
    asked = os.environ.get("COLUMNS", "")
    if columns := whole_number(asked):
        return columns
    return shutil.get_terminal_size((PIPE_WIDTH, 24)).columns if stream.isatty() else PIPE_WIDTH


@dataclass(frozen=True, slots=True)
class Screen:
    """How one command was asked to speak."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: Color = "auto"

    @property
    def width(self) -> int:
        return width_of(sys.stdout)

    @property
    def may_open(self) -> bool:
        """Whether a person sits in front of a terminal, so that a browser may open."""
        return sys.stdout.isatty() and not self.quiet

    def lines(self, lines: Iterable[Line]) -> None:
        """Write result lines to stdout (nothing with --json)."""
        if self.as_json:
            return
        painted = wants_color(sys.stdout, self.color)
        for line in lines:
            text = encodable(line.text, sys.stdout.encoding or "ascii")
            code = _SGR.get(line.style) if painted and text else None
            sys.stdout.write(f"\x1b[{code}m{text}\x1b[0m\n" if code else text + "\n")
        sys.stdout.flush()

    def text(self, *lines: str) -> None:
        self.lines(Line(t) for t in lines)

    def json(self, value: Mapping[str, object]) -> None:
        """Write the one object that --json promises; numbers that are not finite become null."""
        if self.as_json:
            sys.stdout.write(json.dumps(finite(value), ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark beside the result, on stderr."""
        if not self.quiet:
            sys.stderr.write(encodable(text, sys.stderr.encoding or "ascii") + "\n")
            sys.stderr.flush()


def finite(value: object) -> object:
    """JSON has no nan and no infinity: both become None."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [finite(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return finite(value.item()) if hasattr(value, "item") else str(value)
