"""DistIR's cost functions by hand, and its calibration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Cluster, DeviceType, Level, Link, Mesh
from meshwright.cost.base import Group
from meshwright.cost.distir import GIGABIT, DistIR, calibrated
from meshwright.errors import InputError, Unsupported
from meshwright.testing.tiny import mlp

GPU = DeviceType("v100", "gpu", 32e9, {"float32": 1.4e13}, 9e11)
FOUR = Cluster("four", (GPU,), 4, levels=(Level("pair", 2, 50 * GIGABIT), Level("all", 4, 25 * GIGABIT)))
MODEL = DistIR(precision="float32")
OPS = {op.kind: op for op in mlp(2, width=512, samples=64).ops}


def seconds(kind: str, phase: str, sizes: list[int]) -> float:
    return float(MODEL.compute(OPS[kind], np.array([sizes]), GPU, phase)[0])  # type: ignore[arg-type]


def test_pieces_of_the_published_first_row() -> None:
    """Products of 64 x 512 by 512 x 512 in float32, and element-wise ops on 64 x 512."""
    assert seconds("linear", "forward", [64, 512, 512]) == pytest.approx(1.370747e-5, rel=1e-6)
    assert seconds("linear", "backward", [64, 512, 512]) == pytest.approx(2.639548e-5, rel=1e-6)
    assert seconds("relu", "forward", [64, 512]) == pytest.approx(1.014797e-5, rel=1e-6)
    assert seconds("relu", "backward", [64, 512]) == pytest.approx(1.029361e-5, rel=1e-6)
    assert float(MODEL.traffic(np.array([2.0 * 4 * 512 * 512]), GPU)[0]) == pytest.approx(1.234889e-5, rel=1e-6)
    assert float(MODEL.traffic(np.array([0.0]), GPU)[0]) == 1e-5


def test_a_backward_is_its_two_products() -> None:
    both = seconds("linear", "input_grad", [64, 512, 256]) + seconds("linear", "weight_grad", [64, 512, 256])
    assert seconds("linear", "backward", [64, 512, 256]) == pytest.approx(both, rel=1e-12)


def test_collectives_by_the_mean_bandwidth_of_their_pairs() -> None:
    mesh = Mesh(range(4), ("dp", "tp"), (2, 2))
    one = np.array([1e9])
    near, far = (float(MODEL.collective("all_reduce", one, Group(FOUR, mesh, (a,)))[0]) for a in ("tp", "dp"))
    assert near == pytest.approx(2 * 1e9 * 0.5 / (50 * GIGABIT))
    assert far == pytest.approx(2 * near)
    mean = (2 * 50 + 4 * 25) / 6 * GIGABIT
    assert float(MODEL.collective("all_reduce", one, Group(FOUR, mesh, ("dp", "tp")))[0]) == pytest.approx(1.5e9 / mean)
    gather = float(MODEL.collective("all_gather", one, Group(FOUR, mesh, ("tp",)))[0])
    assert gather == pytest.approx(2 * 1e9 * 0.5 / (50 * GIGABIT))
    assert float(MODEL.collective("broadcast", one, Group(FOUR, mesh, ("tp",)))[0]) == 0.0


def test_a_send_takes_the_link_of_its_pair() -> None:
    assert float(MODEL.transfer(np.array([1e9]), 0, 1, FOUR)[0]) == pytest.approx(1e9 / (50 * GIGABIT))
    assert float(MODEL.transfer(np.array([1e9]), 0, 0, FOUR)[0]) == 0.0
    linked = Cluster("linked", (GPU,), 2, links=(Link(0, 1, 1e9),))
    assert float(MODEL.transfer(np.array([1e9]), 0, 1, linked)[0]) == 1.0
    with pytest.raises(Unsupported, match="devices 1 and 0 of linked are not connected"):
        MODEL.transfer(np.array([1e9]), 1, 0, linked)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e10, 1e12), st.floats(1e12, 1e15), st.floats(0, 1e-4), st.floats(1e9, 1e11))
def test_calibration_finds_the_rates_that_made_the_measurements(
    memory: float, rate: float, launch: float, link: float
) -> None:
    sizes = [(1e6, 1e9), (1e8, 1e9), (1e6, 1e12), (5e8, 3e12), (2e7, 8e10)]
    found = calibrated(
        [(b, f, b / memory + f / rate + launch) for b, f in sizes],
        [(s, n, s / GIGABIT * 0.01 * n + 1e-5) for n in (2, 4) for s in (1e6, 1e8, 1e9)],
        [(0, 1, s, s / link) for s in (1e6, 1e9)],
    )
    model = DistIR(precision="float32", calibration=found)
    for b, f in sizes:
        assert b / found.memory + f / found.rate + found.launch == pytest.approx(
            b / memory + f / rate + launch, rel=1e-4
        )
    assert model.launch == found.launch
    got = model.collective("all_reduce", np.array([3e8]), Group(FOUR, Mesh(range(4), ("dp",), (4,)), ("dp",)))
    assert float(got[0]) == pytest.approx(3e8 / GIGABIT * 0.04 + 1e-5, rel=1e-6)
    assert float(model.transfer(np.array([1e8]), 0, 1, FOUR)[0]) == pytest.approx(1e8 / link, rel=1e-6)


def test_measurements_that_say_too_little_are_refused() -> None:
    with pytest.raises(InputError, match="2 measured products cannot fix 3 unknowns: measure more sizes"):
        calibrated([(1.0, 1.0, 1.0)] * 2)
    with pytest.raises(InputError, match="measured products must take more than 0 seconds: got 0"):
        calibrated([(1.0, 1.0, 0.0)] * 3)
    with pytest.raises(InputError, match='no precision "x"'):
        DistIR(precision="x")
    with pytest.raises(Unsupported, match="v100 has no peak for float16: it has float32"):
        DistIR(precision="float16").traffic(np.array([1.0]), GPU)
