"""What is timed: a device may refuse a kernel, but a mistake of ours must not look like a refusal."""

from __future__ import annotations

import torch

from meshwright.calibration.kernels import every, runs


def test_a_cpu_refuses_no_kernel() -> None:
    cpu = torch.device("cpu")
    assert [k for k in every(cpu) if not runs(k, cpu)] == []
