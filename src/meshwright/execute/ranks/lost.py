"""Another rank is gone: how torch says so."""

from __future__ import annotations

import torch.distributed as dist


def lost(error: BaseException) -> bool:
    """Whether it says that another rank is gone: it failed or was killed, and says itself why."""
    return isinstance(error, ConnectionError | dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
