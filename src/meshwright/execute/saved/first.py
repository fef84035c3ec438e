"""What one rank does for all, such as making a file, and all learn how it went."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist


def as_first(action: Callable[[], object], rank: int, group: dist.ProcessGroup | None = None) -> None:
    """Rank 0 does it; if it fails, every rank raises the same. Collective over `group`, by default over all ranks."""
    outcome: list[Exception | None] = [None]
    if rank == 0:
        try:
            action()
        except Exception as error:
            outcome = [error]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, 0, group=group)
    if outcome[0] is not None:
        raise outcome[0]
