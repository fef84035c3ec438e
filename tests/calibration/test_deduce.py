"""From timings to constants: timings that the model itself made give back its constants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from meshwright.calibration.deduce import Timed, deduce, seconds_of
from meshwright.calibration.kernels import CPU_ATTENTION, GPU_PRODUCTS, Kernel, every, kernels
from meshwright.calibration.machine import preset_of
from meshwright.calibration.timing import Timing
from meshwright.cluster import presets
from meshwright.cost.analytic import FLASH_BACKWARD
from meshwright.cost.constants import family

H100 = presets()["h100"].device


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 1)


def products(dtype: str) -> list[Kernel]:
    return [k for k in every(torch.device("cuda")) if k.kind == "product" and k.dtype == dtype]


def test_the_constants_that_made_the_products_are_found_again() -> None:
    true = replace(family("h100"), gemm_16=0.81, gemm_8=0.6, depth=120.0, launch=4e-6)
    timed = []
    for dtype in ("bfloat16", "float8_e4m3fn"):
        rows = [Timed(k, timing(1.0)) for k in products(dtype)]
        assert len(rows) == len(GPU_PRODUCTS)
        timed += [Timed(r.kernel, timing(float(s))) for r, s in zip(rows, seconds_of(rows, H100, true), strict=True)]
    found = deduce(timed, H100, known=True)
    for name in ("gemm_16", "gemm_8", "depth", "launch"):
        assert found.family[name] == pytest.approx(getattr(true, name), rel=0.05), name
    for t in timed:
        assert found.predicted[t.kernel.name] == pytest.approx(t.timing.seconds, rel=0.02)


def test_attention_counts_causal_work_once_and_heads_of_64_apart() -> None:
    timed = []
    for k in every(torch.device("cuda")):
        if k.kind == "attention":
            b, h, s, d = k.sizes
            rate = H100.peak["bfloat16"] * 0.4 * (0.7 if d == 64 else 1.0) * (0.5 if k.kernel == "flash" else 1.0)
            work = 2.0 * b * h * s * s * d * (1.0 + FLASH_BACKWARD if k.backward else 1.0)
            timed.append(Timed(k, timing(work / rate)))
    found = deduce(timed, H100, known=True).family
    assert found["attention_flash"] == found["attention_modern"] == pytest.approx(0.4)
    assert found["small_head"] == pytest.approx(0.7)


def test_a_machine_without_a_sheet_has_the_best_rates_that_were_measured() -> None:
    cpu = replace(H100, name="CPU", kind="cpu", family="cpu", peak={"float64": 1.0})
    wanted = [k for k in every(torch.device("cpu")) if k.kind in ("product", "light")]
    timed = [Timed(k, timing(k.nbytes / 20e9 if k.kind == "light" else _at(k, 90e9))) for k in wanted]
    found = deduce(timed, cpu, known=False)
    assert found.device.peak["float32"] == pytest.approx(90e9)
    assert found.device.peak["float16"] == found.device.peak["bfloat16"] == pytest.approx(90e9)
    assert found.device.bandwidth == pytest.approx(20e9)
    assert found.family["memory"] == pytest.approx(0.98)


def _at(kernel: Kernel, rate: float) -> float:
    m, n, k = kernel.sizes
    return 2.0 * m * n * k / rate


def test_what_a_device_refuses_is_left_out() -> None:
    here = torch.device("cpu")
    names = {k.name for k in kernels(here)}
    assert {k.kind for k in kernels(here)} >= {
        "product",
        "attention",
        "light",
        "norm",
        "loss",
        "lookup",
        "optimizer",
        "launch",
    }
    assert len([n for n in names if n.startswith("attention")]) == 2 * len(CPU_ATTENTION)


@pytest.mark.parametrize(
    ("name", "memory", "preset"),
    [
        ("NVIDIA H100 80GB HBM3", 85e9, "h100"),
        ("NVIDIA H200", 150e9, "h200"),
        ("NVIDIA A100-SXM4-40GB", 42e9, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100"),
        ("Tesla V100-SXM2-16GB", 17e9, "v100-p3"),
        ("NVIDIA L4", 24e9, "l4"),
    ],
)
def test_gpus_are_told_by_what_their_driver_calls_them(name: str, memory: float, preset: str) -> None:
    found = preset_of(name, memory)
    assert found is not None and found.name == preset


def test_a_gpu_that_no_preset_names_has_none() -> None:
    assert preset_of("NVIDIA GeForce RTX 4090", 24e9) is None
