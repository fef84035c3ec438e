"""`verify`, `check`, `validate`: is the plan right, is the planner right, are the predictions right."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import options as o
from ..screen import Screen


def verify(
    plan: o.PlanPath,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    color: o.ColorChoice = "auto",
) -> int:
    """Run the plan, scaled down, on this machine: same loss and gradients as one device?"""
    raise SystemExit(2)


def check(planner: str) -> int:
    """Run the public conformance suite on a planner."""
    raise SystemExit(2)


def validate() -> int:
    """Predicted against measured step times of published runs."""
    raise SystemExit(2)


_ = (Annotated, typer, Screen)
