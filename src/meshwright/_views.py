"""How plans and simulations show themselves in a notebook. The views are `report`'s and are looked up by name, so that
the folders of plans and simulations depend on no report."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Viewed:
    """Has a table with bars for notebooks and a text for terminals, both made at use."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Under 60 kB, no script; without SVG every figure stays as text."""
        return str(_view("html_of", self))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(_view("text_of", self)), "text/html": self._repr_html_()}


def _view(name: str, thing: object) -> Any:
    return getattr(import_module("meshwright.report.views"), name)(thing)
