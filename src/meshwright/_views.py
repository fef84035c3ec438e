"""How plans and simulations show themselves in a notebook. The views are `report`'s and are looked up by name, so that
the folders of plans and simulations depend on no report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from .errors import Unsupported


class Viewed:
    """Has a table with bars for notebooks and a text for terminals, both made at use."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Under 60 kB, no script; without SVG every figure stays as text."""
        return str(_view("html_of", self))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(_view("text_of", self)), "text/html": self._repr_html_()}

    def __str__(self) -> str:
        return str(_view("text_of", self))

    def show(self) -> Any:
        """The report, or what there is of one, in a frame of a notebook's cell.

        Raises:
            InputError: a plan that lies in no folder has none.
        """
        return _view("framed", self)

    def records(self) -> Sequence[Mapping[str, Any]]:
        """One a candidate, a planner, a stage or a class of devices; units in the keys."""
        found: Sequence[Mapping[str, Any]] = _view("records_of", self)
        return found

    def to_frame(self) -> Any:
        """`records` as a pandas.DataFrame.

        Raises:
            Unsupported: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise Unsupported(
                "to_frame() needs pandas, which is not installed: install it, or take records(), a list of dicts"
            ) from None
        return pandas.DataFrame(list(self.records()))


def _view(name: str, thing: object) -> Any:
    return getattr(import_module("meshwright.report.views"), name)(thing)
