"""One rank of a pool: runs the jobs that its parent sends. See `nursery` for how it starts."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Client, Connection
from typing import Any

import torch
import torch.distributed as dist

from ...errors import ExecutionError, MeshwrightError
from .device import Hardware, hardware
from .lost import lost
from .mesh_groups import Groups


@dataclass(frozen=True, slots=True)
class Context:
    """What a job knows of its rank."""

    rank: int
    world: int
    hardware: Hardware
    groups: Groups = field(default_factory=Groups)
    event: Callable[[Any], None] = lambda value: None
    """Sends something to the parent while the job goes on."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What one job leaves for the next."""


def end_with(parent: int) -> None:
    """Leaves as soon as the parent is gone, even inside a collective; also if it was gone before this began."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def join(meeting: str, rank: int, world: int, timeout: float, place: Hardware) -> None:
    """Makes the world's process group; the ranks meet through a file."""
    if place.backend == "gloo" and sys.platform == "linux":  # one machine: no name to look up
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        place.backend,
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )


def serve(link: Connection, context: Context) -> None:
    """Runs jobs until the parent closes the connection."""

    def send(kind: str, value: Any) -> None:
        link.send_bytes(pickle.dumps((kind, value)))

    own = Context(context.rank, context.world, context.hardware, context.groups, lambda value: send("event", value))
    while True:
        try:
            message = link.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            name, payload = pickle.loads(message)
            module, _, function = name.partition(":")
            send("result", getattr(importlib.import_module(module), function)(own, payload))
        except MeshwrightError as error:
            send("error", error)
        except Exception as error:
            failed = ExecutionError(
                f"rank {context.rank} failed: {type(error).__name__}: {error}", hint=traceback.format_exc()
            )
            if lost(error):
                failed.code = "lost"
            send("error", failed)


def work(address: str, key: bytes, meeting: str, timeout: float, parent: int) -> None:
    """A rank's life, from its start on; RANK and WORLD_SIZE are in the environment. It ends with the process `parent`."""
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    place = hardware()
    with Client(address, "AF_UNIX", authkey=key) as link:
        link.send(rank)
        join(meeting, rank, world, timeout, place)
        serve(link, Context(rank, world, place))
    dist.destroy_process_group()
