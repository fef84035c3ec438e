"""The commands: parse, one call of the public API, render. `main` is what the shell runs."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the `meshwright` script; never returns normally."""
    from .entry import run

    raise SystemExit(run())
