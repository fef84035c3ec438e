"""What this machine is: its devices, by the preset that names them where there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from ..cluster.model import DeviceType
from ..cluster.presets import Preset, local, presets
from .profile import Machine

FAMILY = "a100"
"""Whose constants are the guesses for a GPU that no preset names: the best known ones."""


def here(ranks: int = 0) -> tuple[torch.device, int, Machine]:
    """(device of a rank, number of ranks, machine): GPUs where there are any, else the cores.

    `ranks` 0: one a GPU, or one a core.
    """
    cores = os.cpu_count() or 1
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    if torch.cuda.is_available() and os.environ.get("MESHWRIGHT_DEVICE") != "cpu":
        count = min(ranks or torch.cuda.device_count(), torch.cuda.device_count())
        name = torch.cuda.get_device_name(0)
        return torch.device("cuda", 0), count, Machine(name, torch.__version__, count, threads, cores)
    count = ranks or cores
    return torch.device("cpu"), count, Machine(_processor(), torch.__version__, count, threads, cores)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else "CPU"


def device_type(device: torch.device, machine: Machine, ranks: int) -> tuple[DeviceType, bool]:
    """The device before anything is measured, and whether a data sheet stands behind its figures."""
    if device.type != "cuda":
        return replace(local(ranks).types[0], name="CPU"), False
    properties = torch.cuda.get_device_properties(device)
    memory = float(properties.total_memory)
    preset = preset_of(machine.device, memory)
    if preset is not None:
        return replace(preset.device, memory=memory), True
    peak: Mapping[str, float] = {"float32": 1e13}
    return DeviceType(machine.device, "gpu", memory, peak, 1e12, host_bandwidth=1e10, family=FAMILY), False


def preset_of(name: str, memory: float) -> Preset | None:
    """The preset of a GPU by what its driver calls it ("NVIDIA A100-SXM4-40GB") and its bytes of memory.

    Where several presets bear the name, the one whose memory is nearest.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    named = [p for key, p in presets().items() if key.split("-")[0] in words]
    return min(named, key=lambda p: abs(p.device.memory - memory), default=None)
