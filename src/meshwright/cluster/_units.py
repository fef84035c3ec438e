"""Quantities as people write them: "400 Gb/s" (bits), "50 GB/s" (bytes), "80 GiB", "10 us", "989 TFLOP/s"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|nan|inf)\s*(\S*)\s*", re.IGNORECASE)

BYTES = {f"{p}B": f for p, f in {**_DECIMAL, **_BINARY}.items()}
BYTES_PER_SECOND = {f"{p}B/s": f for p, f in {**_DECIMAL, **_BINARY}.items()} | {
    f"{p}b/s": f / 8 for p, f in _DECIMAL.items()
}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
FLOPS = {f"{p}{word}": f for p, f in _DECIMAL.items() for word in ("FLOP/s", "FLOPS")}

ADVICE = {
    "bandwidth": 'write "400 Gb/s" (bits) or "50 GB/s" (bytes)',
    "memory": 'write "80 GiB" (2^30 bytes) or "80 GB" (10^9 bytes)',
    "latency": 'write "10 us" or "0.5 ms"',
    "peak": 'write "989 TFLOP/s"',
}
UNITS: Mapping[str, Mapping[str, float]] = {
    "bandwidth": BYTES_PER_SECOND,
    "memory": BYTES,
    "latency": SECONDS,
    "peak": FLOPS,
}


class BadQuantity(ValueError):
    """What is wrong with a quantity: a clause that follows the name of its field."""


def quantity(text: object, kind: str, *, zero: bool = False) -> float:
    """Bytes, bytes/s, seconds or FLOP/s of `text`; `kind` is a key of `UNITS`.

    Raises:
        BadQuantity: no number, no unit, an unknown unit, not finite, or not above 0 (`zero` allows 0).
    """
    found = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    shown = f'"{text}"' if isinstance(text, str) else str(text)
    if found is None or found[2] not in UNITS[kind]:
        raise BadQuantity(f"= {shown} has no unit I know: {ADVICE[kind]}")
    value = float(found[1]) * UNITS[kind][found[2]]
    if not math.isfinite(value):
        raise BadQuantity(f"= {shown} is not finite: {ADVICE[kind]}")
    if value < 0 or (value == 0 and not zero):
        raise BadQuantity(f"= {shown} is not above 0: {ADVICE[kind]}")
    return value
