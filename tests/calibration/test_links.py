"""Collectives to a wire: timings that the model itself made give back its wire; ranks that share cores take turns."""

from __future__ import annotations

import numpy as np
import pytest

from meshwright.calibration.links import CPU_BYTES, KINDS, _seconds, fit, talks
from meshwright.calibration.timing import Timing

TRUE = {"bandwidth": 2e9, "latency": 1.5e-4, "start": 2e-4, "fill": 0.2, "exchange": 0.8, "transfer": 0.5}


@pytest.mark.parametrize("cores", [4, 2])
def test_the_wire_that_made_the_timings_is_found_again(cores: int) -> None:
    wanted = talks(4, gpu=False)
    alone = _seconds(wanted, TRUE, 4)
    timings = [Timing(s, s, s, 1) for s in alone * (4 / cores)]
    found = fit(wanted, timings, 4, cores)
    assert found.bandwidth == pytest.approx(TRUE["bandwidth"], rel=0.1)
    assert found.latency == pytest.approx(TRUE["latency"], rel=0.1)
    for name in ("start", "exchange"):  # little speaks of "fill" apart from the bandwidth
        assert found.family[name] == pytest.approx(TRUE[name], rel=0.2), name
    assert found.software["transfer"] == pytest.approx(TRUE["transfer"], rel=0.1)
    off = [abs(m.predicted / m.seconds - 1) for m in found.measured.values()]
    assert np.max(off) < 0.06


def test_every_kind_is_timed_in_every_size_of_group() -> None:
    wanted = talks(4, gpu=False)
    assert {(t.kind, t.size) for t in wanted} == {(k, n) for k in KINDS for n in (2, 4) if k != "transfer" or n == 2}
    assert {t.nbytes for t in wanted} == set(CPU_BYTES)
    assert {t.size for t in talks(6, gpu=True)} == {2, 3, 6}
