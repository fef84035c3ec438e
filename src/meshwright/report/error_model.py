"""How sure a prediction is: the error of the cost model on steps that were held out, and on pairs of plans.

The figures ship as error_model.toml; after a change of the cost model they are written anew:

    meshwright validate --json > validated.json && python -m meshwright.report.error_model validated.json
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

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


SHARE = 80
"""Per cent of the held-out steps that the figures speak of."""


def to_toml(validated: Mapping[str, Any]) -> str:
    """error_model.toml from the object of `meshwright validate --json`."""
    lines = [
        "# How far predictions have been from measured steps; shown beside every plan.",
        f"# {SHARE} % of the held-out steps of a device family fell within `within` (relative) of the prediction.",
        "# Written by error_model.py; a family that is missing here has no measured steps behind it.",
        "",
        f'provenance = "{validated["steps"]:,} published steps of {len(validated["sources"])} sources, each source predicted by '
        f'constants fitted without it: {100 * validated["error"]:.1f} % mean error over sources"',
        "",
        "[pairs]",
        "# Two plans of one problem that are closer than this are a tie.",
        f"within = {validated['pair_error']:.3f}",
        f'source = "median error of the ratio of two measured plans of one problem, over {validated["pairs"]:,} pairs within '
        f"25 % of each other; of plans predicted to differ by more, {100 * validated['pair_order']:.0f} % are in the right "
        'order"',
    ]
    for name, within in validated["within"].items():
        counts = validated["steps_by_device"][name]
        lines += ["", f"[family.{name}]", f"share = {SHARE}", f"within = {within:.3f}"]
        lines += [f"steps = {counts['steps']}", f"sources = {counts['sources']}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(__file__).with_suffix(".toml").write_text(to_toml(found), encoding="utf-8")
