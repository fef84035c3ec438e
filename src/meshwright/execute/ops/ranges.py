"""Numbers that name rows or classes must be among them: torch's kernels see to it only where they hold them all."""

from __future__ import annotations

import torch
from torch import Tensor


def must_be_below(count: int, numbers: Tensor, what: str, ignored: int | None = None) -> None:
    """Every one of `numbers` is in 0 … count - 1, or is `ignored`. Traceable; on CUDA the device says so later.

    Raises:
        RuntimeError: one is not; `what` names the numbers and their op.
    """
    legal = (numbers >= 0) & (numbers < count)
    if ignored is not None:
        legal = legal | (numbers == ignored)
    also = f" or {ignored}, which is ignored" if ignored is not None else ""
    torch.ops.aten._assert_async.msg(legal.all(), f"{what} out of range: they must be 0 to {count - 1:,}{also}")
