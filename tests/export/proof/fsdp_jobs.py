"""How often FSDP2 gathers weights and sums gradients in one step, wrapped as torchtitan wraps a decoder (distributed/fsdp.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.stage import PipelineStage

from meshwright.execute.ranks.worker import Context

WIDTH = 8


@dataclass(frozen=True)
class Case:
    """Ranks are pp × replicate × shard; a block is one layer, each stage of each rank holds one."""

    pp: int
    replicate: int
    shard: int
    micro_batches: int
    keep: bool
    """Weights stay gathered after the forward ("never")."""
    chunks: int = 1


Counts = dict[str, int]


def counted(context: Context, case: Case) -> tuple[Counts, bool]:
    """Calls of collectives over a block in one step on this rank, and whether weights are cut when it is over."""
    mesh = init_device_mesh("cpu", (case.pp, case.replicate, case.shard), mesh_dim_names=("pp", "replicate", "shard"))
    torch.manual_seed(0)
    blocks = [_Block(nn.Linear(WIDTH, WIDTH, bias=False)) for _ in range(case.chunks)]
    for block in blocks:
        over = mesh["replicate", "shard"] if case.replicate > 1 else mesh["shard"]
        fully_shard(block.layer, mesh=over, reshard_after_forward=not case.keep)
        fully_shard(block, mesh=over)
        for module in block.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    x = torch.ones(case.micro_batches, WIDTH)
    step = _plain(blocks[0], x) if case.pp == 1 else _piped(case, mesh, blocks, x)
    step()  # the first of a pipeline also finds out shapes
    with _counting() as counts:
        step()
    local: Any = next(blocks[0].parameters())
    return counts, local.to_local().numel() == WIDTH * WIDTH // case.shard


class _Block(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def _plain(block: _Block, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        for one in x.split(1):
            block(one).square().sum().backward()

    return step


def _piped(case: Case, mesh: Any, blocks: list[_Block], x: torch.Tensor) -> Callable[[], None]:
    group, rank, stages = mesh.get_group("pp"), mesh.get_local_rank("pp"), case.pp * case.chunks
    mine = [c * case.pp + rank for c in range(case.chunks)]
    made = [PipelineStage(b, s, stages, torch.device("cpu"), group=group) for b, s in zip(blocks, mine, strict=True)]

    def loss(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (y - t).square().sum()

    schedule: Any = (
        Schedule1F1B(made[0], case.micro_batches, loss_fn=loss, scale_grads=False)
        if case.chunks == 1
        else ScheduleInterleaved1F1B(list(made), case.micro_batches, loss_fn=loss, scale_grads=False)
    )
    target = {"target": torch.zeros_like(x)} if mine[-1] == stages - 1 else {}

    def step() -> None:
        schedule.step(*([x] if mine[0] == 0 else []), **target)

    return step


@contextmanager
def _counting() -> Iterator[Counts]:
    counts = {"gather": 0, "cut": 0, "sum": 0}
    names = {"all_gather_single": "gather", "reduce_scatter_single": "cut", "all_reduce": "sum"}
    kept = {name: getattr(dist, name) for name in names}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            group = more.get("group")
            counts[names[name]] += group is None or group.size() > 1
            return kept[name](*args, **more)

        return call

    for name in names:
        setattr(dist, name, wrapped(name))
    try:
        yield counts
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)
