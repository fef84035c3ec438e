"""Rows and predictions with hand-made figures."""

from __future__ import annotations

from typing import Any

from meshwright.validation.models import Dense
from meshwright.validation.prediction import Prediction
from meshwright.validation.rows import Row

MODEL = Dense("gpt", 12, 768, 12, 12, 3072, 50304, 512)


def row(name: str, source: str, seconds: float, device: str = "a100", tp: int = 1, **more: Any) -> Row:
    given: dict[str, Any] = {
        "id": name, "source": source, "model": MODEL, "machine": device, "devices": 8, "node": 8, "nic": 0.0,
        "precision": "float16", "software": "unfused", "grad": "bfloat16", "pure": False, "dp": 8 // tp, "tp": tp, "pp": 1,
        "chunks": 1, "zero": 0, "sequence": False, "micro_batch": 2, "batch": 64, "recompute": "full", "seconds": seconds,
        "memory": 0.0,
    }  # fmt: skip
    return Row(**given | more)


def prediction(of: Row, seconds: float, baseline: float = 1.0, **more: Any) -> Prediction:
    return Prediction(of, seconds, baseline=baseline, own_baseline=baseline, **more)
