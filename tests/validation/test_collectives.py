"""Constants of collectives: the fit finds what made the times, what ships is what the published calls say, and how well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meshwright.cost.constants import family
from meshwright.validation.collectives import FITTED, KINDS, Calls, fit_calls, price, read_calls

ERRORS = {
    "a100": {"all_reduce": 0.09, "all_gather": 0.20, "reduce_scatter": 0.21, "all_to_all": 0.16},
    "v100": {"all_reduce": 0.13, "all_gather": 0.15, "reduce_scatter": 0.11, "all_to_all": 0.08},
    "l4": {"all_reduce": 0.09, "all_gather": 0.17, "reduce_scatter": 0.09, "all_to_all": 0.08},
    "a10g": {"all_reduce": 0.20, "all_gather": 0.28, "reduce_scatter": 0.27, "all_to_all": 0.18},
}
"""Mean relative error of the worst source and group size, by family and kind."""


@pytest.fixture(scope="module")
def calls(data_folder: Path) -> list[Calls]:
    return read_calls(data_folder)


def test_sentinels_and_what_profilers_count_are_cleaned(calls: list[Calls]) -> None:
    assert sum(len(c.seconds) for c in calls) == 5626
    assert max(c.seconds.max() for c in calls) < 10
    assert all(c.nbytes.min() >= 1e6 and c.nbytes.max() < 1e12 for c in calls)
    # A call takes about as long for what a member brings (all_gather) as for what all bring (reduce_scatter).
    by_kind = {(c.source, c.kind, c.ranks): c for c in calls}
    for source in ("mist-a100", "mist-v100", "aceso-v100"):
        gather, scatter = (by_kind[source, kind, 8] for kind in ("all_gather", "reduce_scatter"))
        rate = [np.median((c.nbytes / c.seconds)[c.nbytes > 2e8]) for c in (gather, scatter)]
        assert rate[0] == pytest.approx(rate[1], rel=0.15)
    assert not [c for c in calls if c.machine == "v100" and c.ranks == 2]


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_shipped_constants_are_those_of_the_published_calls(calls: list[Calls], name: str) -> None:
    found = fit_calls([c for c in calls if c.family == name])
    for field in FITTED:
        assert getattr(family(name), field) == pytest.approx(found.values[field], rel=0.02), field
    for kind in KINDS:
        assert max(e for (_, k, _), e in found.errors.items() if k == kind) < ERRORS[name][kind], kind


def test_a_fit_recovers_constants_that_made_the_times(calls: list[Calls]) -> None:
    truth = {
        "inner": 0.7,
        "fill": 0.3,
        "start": 30e-6,
        "exchange": 0.9,
        "host mist-a100": 30e-6,
        "member mist-a100": 4e-6,
    }
    own = [c for c in calls if c.source in ("vtrain-lut", "mist-a100") and c.family == "a100"]
    made = [replace(c, seconds=price(c, family("a100"), truth)) for c in own]
    found = fit_calls(made)
    for field in FITTED:
        assert found.values[field] == pytest.approx(truth[field], rel=0.1)
    assert max(found.errors.values()) < 0.03


def test_families_are_fitted_apart(calls: list[Calls]) -> None:
    with pytest.raises(ValueError, match="calls of one device family are fitted together"):
        fit_calls(calls)
