"""The one choice of hardware: cuda with NCCL where there is one, else the CPU with gloo."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ...errors import ExecutionError


@dataclass(frozen=True, slots=True)
class Hardware:
    device: torch.device
    backend: str


def one_each(ranks: int) -> None:
    """Lets pass what is to run on the CPU, and ranks of which each has a GPU of this machine.

    Raises:
        ExecutionError: they have not: NCCL takes no two ranks on one.
    """
    if _on_cpu() or ranks <= (count := torch.cuda.device_count()):
        return
    raise ExecutionError(
        f"this machine has a GPU for {count} of {ranks} ranks, and each takes one of its own",
        hint="set MESHWRIGHT_DEVICE=cpu to run them on the CPU",
    )


def _on_cpu() -> bool:
    return os.environ.get("MESHWRIGHT_DEVICE") == "cpu" or not torch.cuda.is_available()


def hardware(local_rank: int | None = None) -> Hardware:
    """What this rank computes on. `local_rank`: its number on this machine, torchrun's LOCAL_RANK by default.

    MESHWRIGHT_DEVICE=cpu keeps a machine with GPUs on its CPU: checking a plan needs more ranks than it has GPUs.
    """
    if _on_cpu():
        return Hardware(torch.device("cpu"), "gloo")
    index = int(os.environ.get("LOCAL_RANK", 0)) if local_rank is None else local_rank
    index %= torch.cuda.device_count()  # launchers may show each rank its own GPU alone
    torch.cuda.set_device(index)
    return Hardware(torch.device("cuda", index), "nccl")
