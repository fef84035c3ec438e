"""How a cross entropy holds its logits: most of the memory of a small model, and a matter of software alone.

Evidence for each way, and which software goes it, is in constants/software.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

LOSSES = frozenset({"cross_entropy_loss", "cross_entropy", "nll_loss"})
"""Kinds of ops."""
CROSS_ENTROPIES = LOSSES - {"nll_loss"}
"""Those that read logits; the other reads log-probabilities that something else made and keeps."""
Holding = Literal["plain", "in-place", "compiled", "fused"]
KEPT: Mapping[Holding, float] = {"plain": 4.0, "in-place": 4.0, "compiled": 2.0, "fused": 2.0}
"""Bytes kept per logit from the forward to the backward: float32 log-probabilities, a float32 softmax, or the 16-bit logits."""
SPACE: Mapping[Holding, float] = {"plain": 8.0, "in-place": 2.0, "compiled": 2.0, "fused": 0.0}
"""Bytes per logit besides at the worst instant: gradients of both widths and logits, 16-bit logits or their gradient, nothing
where the gradient overwrites what is kept."""
BYTES: Mapping[Holding, Mapping[bool, float]] = {
    "plain": {True: 18.0, False: 30.0},
    "in-place": {True: 38.0, False: 14.0},
    "compiled": {True: 4.0, False: 4.0},
    "fused": {True: 6.0, False: 4.0},
}
"""Bytes moved per 16-bit logit by the forward (True) and the backward, kernel by kernel. Plain: to float32 6, log-softmax reads
twice and writes 12; gradient of the pick 4, log-softmax's reads two matrices twice and writes 20, to 16 bits 6 (measured on an
H200: 53 in all). In place: to float32 6, largest 4, less it 8, exponential 8, sum 4, quotient 8; times the gradient 8, to 16
bits 6. Compiled: read twice; read and written. Fused: read twice, the gradient written; scaled."""
