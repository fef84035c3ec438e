"""The one choice of hardware: cuda with NCCL where there is one, else the CPU with gloo."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Hardware:
    device: torch.device
    backend: str


def hardware(local_rank: int | None = None) -> Hardware:
    """What this rank computes on. `local_rank`: its number on this machine, torchrun's LOCAL_RANK by default.

    MESHWRIGHT_DEVICE=cpu keeps a machine with GPUs on its CPU: checking a plan needs more ranks than it has GPUs.
    """
    if os.environ.get("MESHWRIGHT_DEVICE") == "cpu" or not torch.cuda.is_available():
        return Hardware(torch.device("cpu"), "gloo")
    index = int(os.environ.get("LOCAL_RANK", 0)) if local_rank is None else local_rank
    torch.cuda.set_device(index % torch.cuda.device_count())
    return Hardware(torch.device("cuda", index % torch.cuda.device_count()), "nccl")
