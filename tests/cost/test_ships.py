"""Which predictions are made by the constants that ship: of these alone is known how far they are off."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.calibration import Profile
from meshwright.cluster import resolve
from meshwright.cost import Analytic, DistIR
from meshwright.cost.constants import family, generation, software

DEVICES = resolve("h100x8").types


@pytest.mark.parametrize("name", sorted(software()))
def test_every_generation_ships(name: str) -> None:
    assert Analytic(software=name).ships("step", DEVICES) and Analytic(software=name).ships("memory", DEVICES)


def test_a_profile_changes_what_is_predicted_for_the_devices_that_it_names() -> None:
    cost = Profile("ours", families={"h100": {"gemm_16": 0.5}}).cost("bfloat16")
    assert not cost.ships("step", DEVICES) and cost.ships("memory", DEVICES)
    assert cost.ships("step", resolve("a100x8").types)


def test_constants_of_software_count_for_all_devices() -> None:
    learnt = Profile("ours", "eager", generations={"eager": {"floor_forward": 1.0}}).cost("bfloat16")
    assert not learnt.ships("step", DEVICES) and learnt.ships("memory", DEVICES)
    other = Analytic(families={"h100": replace(family("h100"), workspace=1.0)})
    assert not other.ships("memory", DEVICES)
    held = replace(generation("modern"), deterministic=True, dropout=False, loss="plain")
    assert not Analytic(software=held).ships("memory", DEVICES)


def test_other_models_have_constants_of_their_own() -> None:
    class Mine(Analytic):
        """Prices as it likes."""

    assert not DistIR().ships("step", DEVICES) and not Mine().ships("step", DEVICES)
