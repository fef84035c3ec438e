"""Work space of libraries, against what Megatron-LM's tests hold between steps beyond their parameters and optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.cluster import presets
from meshwright.cost import Analytic
from meshwright.cost.constants import generation

MIB = 2.0**20


@pytest.mark.parametrize(
    ("device", "deterministic", "grouped", "mib"),
    [
        ("a100", True, False, 68.0),
        ("h100", True, False, 96.0),
        ("a100", True, True, 84.0),
        ("h100", True, True, 224.0),
        ("a100", False, False, 20.25),
        ("h100", False, False, 96.0),
    ],
)
def test_of_transformer_engine(device: str, deterministic: bool, grouped: bool, mib: float) -> None:
    cost = Analytic(software=replace(generation("overlapped"), deterministic=deterministic))
    assert cost.workspace(presets()[device].device, grouped) == mib * MIB


def test_of_torch_alone() -> None:
    cost = Analytic(software="eager")
    assert cost.workspace(presets()["a100"].device) == 16.25 * MIB
    assert cost.workspace(presets()["h100"].device, grouped=True) == 64.0 * MIB
