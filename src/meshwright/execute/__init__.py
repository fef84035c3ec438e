"""Runs a program on torch.distributed, and proves that a plan computes what one device computes.

Names are loaded at use: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import Text, read_text, tokenised
    from .optimizer import SGD, AdamW
    from .pool import Pool
    from .refusal import Refusal, refusals, why_not
    from .run_record import RunResult, StepReport
    from .training import train
    from .verification import Mismatch, VerifyResult, verify

_WHERE = {
    "AdamW": "optimizer",
    "Mismatch": "verification",
    "Pool": "pool",
    "Refusal": "refusal",
    "RunResult": "run_record",
    "SGD": "optimizer",
    "StepReport": "run_record",
    "VerifyResult": "verification",
    "Text": "data",
    "read_text": "data",
    "refusals": "refusal",
    "tokenised": "data",
    "train": "training",
    "verify": "verification",
    "why_not": "refusal",
}

__all__ = [
    "SGD", "AdamW", "Mismatch", "Pool", "Refusal", "RunResult", "StepReport", "Text", "VerifyResult", "read_text",
    "refusals", "tokenised", "train", "verify", "why_not",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
