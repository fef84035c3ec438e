"""Runs a program on torch.distributed, and proves that a plan computes what one device computes.

Names are loaded at use: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .proof.refusal import Refusal, refusals, why_not
    from .proof.verification import Mismatch, VerifyResult, verify
    from .ranks.pool import Pool
    from .step.optimizer import SGD, AdamW
    from .training.data import Text, read_text, tokenised
    from .training.run_record import RunResult, StepReport
    from .training.training import train

_WHERE = {
    "AdamW": "step.optimizer",
    "Mismatch": "proof.verification",
    "Pool": "ranks.pool",
    "Refusal": "proof.refusal",
    "RunResult": "training.run_record",
    "SGD": "step.optimizer",
    "StepReport": "training.run_record",
    "VerifyResult": "proof.verification",
    "Text": "training.data",
    "read_text": "training.data",
    "refusals": "proof.refusal",
    "tokenised": "training.data",
    "train": "training.training",
    "verify": "proof.verification",
    "why_not": "proof.refusal",
}

__all__ = [
    "SGD", "AdamW", "Mismatch", "Pool", "Refusal", "RunResult", "StepReport", "Text", "VerifyResult", "read_text",
    "refusals", "tokenised", "train", "verify", "why_not",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
