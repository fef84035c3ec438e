"""How sure a prediction is: the error of the cost model on steps that were held out, and on pairs of plans."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from .words import plural


@dataclass(frozen=True, slots=True)
class FamilyError:
    """Of one device family: `share` % of `steps` held-out steps were within `within` (relative) of the prediction."""

    share: float
    within: float
    steps: int
    sources: int


@dataclass(frozen=True, slots=True)
class ErrorModel:
    pairs_within: float
    """Relative; two plans of one problem that are closer are a tie."""
    pairs_source: str
    families: Mapping[str, FamilyError]
    provenance: str

    def within(self, family: str) -> float | None:
        """Relative error that most held-out steps of the family stay below; None without measured steps."""
        found = self.families.get(family)
        return found.within if found else None

    def sentence(self, family: str, device: str) -> str:
        """How sure a prediction for devices of `family`, called `device`, is."""
        found = self.families.get(family)
        if found is None:
            return (
                f"No measured steps on {device} stand behind these figures: published constants of the hardware only, "
                "so take the order of plans before the seconds."
            )
        return (
            f"{found.share:.0f} % of held-out {device} steps fell within {100 * found.within:.0f} % of the prediction "
            f"({plural(found.sources, 'source')}, {plural(found.steps, 'step')})."
        )


@cache
def error_model() -> ErrorModel:
    """The figures that ship with this version."""
    table = tomllib.loads(files(__package__).joinpath("error_model.toml").read_text(encoding="utf-8"))
    families = {
        name: FamilyError(row["share"], row["within"], row["steps"], row["sources"])
        for name, row in table.get("family", {}).items()
    }
    return ErrorModel(table["pairs"]["within"], table["pairs"]["source"], families, table["provenance"])
