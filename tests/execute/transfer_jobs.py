"""A job that writes down every message between stages."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from meshwright.execute.proof.verification import Task
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.optimizer import SGD
from meshwright.execute.step.runtime import Runtime

Message = tuple[int, int, str, int]
"""(sender, receiver, name of the process group, tag), in the order of the calls."""


def messages(context: Context, task: Task) -> tuple[list[Message], list[Message]]:
    """(what this rank sends, what it receives) in one step."""
    sent: list[Message] = []
    received: list[Message] = []
    send, recv = dist.isend, dist.recv

    def noted_send(x: Any, peer: int, group: Any = None, tag: int = 0) -> Any:
        sent.append((context.rank, peer, group.group_name, tag))
        return send(x, peer, group=group, tag=tag)

    def noted_recv(x: Any, peer: int, group: Any = None, tag: int = 0) -> Any:
        received.append((peer, context.rank, group.group_name, tag))
        return recv(x, peer, group=group, tag=tag)

    with patch.object(dist, "isend", noted_send), patch.object(dist, "recv", noted_recv):
        runtime = Runtime(
            task.program, task.graph, task.plan, task.values, task.constants, SGD(), context.hardware, context.groups,
            rank=context.rank,
        )  # fmt: skip
        runtime.gradients(task.batch)
    return sent, received
