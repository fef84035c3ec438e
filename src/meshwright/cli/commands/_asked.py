"""What plan, simulate and compare do alike: build the request, show progress, write the folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import request as requests
from ...output_folder import PLAN
from ...request import Request
from ..interrupt import Interrupt
from ..progress import Progress
from ..screen import Screen


def request_of(model: str, **given: Any) -> Request:
    """A request from options over a problem file (when MODEL is one) over defaults; None = not given."""
    given = {k: v for k, v in given.items() if v is not None}
    if model.endswith(".toml"):
        return replace(requests.read(Path(model)), **given)
    return replace(Request(model), **given)


@contextmanager
def working(screen: Screen) -> Iterator[tuple[Progress, Interrupt]]:
    """Progress on stderr and the rules of Ctrl-C, around the work of one command."""
    with Interrupt() as interrupt, Progress(screen) as progress:
        yield progress, interrupt


def is_plan(word: str) -> bool:
    """Whether MODEL|PLAN is a plan: a folder with a plan.json, or a JSON file that says it is a plan."""
    path = Path(word)
    if path.is_dir():
        return (path / PLAN).exists()
    return path.name == PLAN or (path.suffix == ".json" and path.is_file() and _says_plan(path))


def _says_plan(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return '"meshwright.plan/' in file.read(200)
