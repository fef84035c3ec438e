"""What is timed: a device may refuse a kernel, but a mistake of ours must not look like a refusal."""

from __future__ import annotations

import pytest
import torch

from meshwright.calibration.kernels import Kernel, every, runs
from meshwright.calibration.timing import Work


def test_a_cpu_refuses_no_kernel() -> None:
    cpu = torch.device("cpu")
    assert [k for k in every(cpu) if not runs(k, cpu)] == []


def _that_raises(error: Exception) -> Kernel:
    def make(device: torch.device) -> Work:
        raise error

    return Kernel("x", "light", "float32", (1,), make)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), NotImplementedError("of fp8"), AttributeError("_grouped_mm")]
)
def test_what_a_device_or_a_release_of_torch_does_not_have_is_left_out(error: Exception) -> None:
    assert not runs(_that_raises(error), torch.device("cpu"))


@pytest.mark.parametrize("error", [ValueError("a size"), AssertionError("a shape"), KeyError("a name")])
def test_a_mistake_of_ours_is_none_of_them(error: Exception) -> None:
    with pytest.raises(type(error)):
        runs(_that_raises(error), torch.device("cpu"))
