"""Runs a program on torch.distributed, and proves that a plan computes what one device computes.

Names are loaded at use: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .optimizer import SGD, AdamW
    from .pool import Pool
    from .training import RunResult, StepReport, train
    from .verification import Mismatch, VerifyResult, verify

_WHERE = {
    "AdamW": "optimizer",
    "Mismatch": "verification",
    "Pool": "pool",
    "RunResult": "training",
    "SGD": "optimizer",
    "StepReport": "training",
    "VerifyResult": "verification",
    "train": "training",
    "verify": "verification",
}

__all__ = ["SGD", "AdamW", "Mismatch", "Pool", "RunResult", "StepReport", "VerifyResult", "train", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
