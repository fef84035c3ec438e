"""THE table of op kinds: factor rule, FLOPs and bytes kept of every operator that capture knows. Pure data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import (
    _attention,
    _creation,
    _dispatch,
    _indexing,
    _losses,
    _norms,
    _pointwise,
    _products,
    _recurrent,
    _reductions,
    _views,
    _windows,
)
from ._views import shifts_of
from .call import Call, Kind, Saved, Spec

_FAMILIES = (
    _pointwise,
    _views,
    _products,
    _norms,
    _reductions,
    _attention,
    _indexing,
    _dispatch,
    _losses,
    _windows,
    _creation,
    _recurrent,
)

KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for family in _FAMILIES for kind in family.KINDS})


def kind_of(name: str) -> Kind | None:
    """The row of a kind; None for kinds of imported profiles."""
    return KINDS.get(name)


__all__ = ["KINDS", "Call", "Kind", "Saved", "Spec", "kind_of", "shifts_of"]
