"""One step of a chain of layers under a table of actions, once by our runtime and once by torch's own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
from torch.distributed.pipelining.stage import PipelineStage

from execute.chain import Batch
from execute.step_jobs import runtime_of
from meshwright.execute.proof.verification import Task
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.optimizer import SGD


@dataclass(frozen=True)
class Step:
    task: Task
    table: str
    """CSV of all ranks' actions."""
    layers: Sequence[tuple[Tensor, Tensor]]
    """Weight and bias of each layer: one layer a stage."""
    mine: Sequence[tuple[int, ...]]
    """Stages of each rank."""
    batch: Sequence[Batch]


Gradients = dict[str, Tensor]


def both(context: Context, step: Step) -> tuple[Gradients, Gradients, list[float], list[float]]:
    """Gradients by parameter and losses, ours and torch's, of this rank's stages."""
    runtime = runtime_of(context, step.task, SGD(lr=0.1))
    ours: Gradients = {}
    runtime.seen = lambda stage, name, grad: ours.__setitem__(name, grad.clone())
    losses = runtime.gradients(step.batch)
    theirs, their_losses = _by_torch(step, step.mine[context.rank])
    return ours, theirs, [float(x) for x in (losses.values() if isinstance(losses, dict) else losses)], their_losses


def _by_torch(step: Step, mine: Sequence[int]) -> tuple[Gradients, list[float]]:
    modules = {s: _layer(*step.layers[s]) for s in mine}
    stages = [PipelineStage(m, s, len(step.layers), torch.device("cpu")) for s, m in modules.items()]
    runtime = _PipelineScheduleRuntime(stages, len(step.batch), loss_fn=lambda y, t: (y - t).square().mean())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        file.write_text(step.table)
        runtime._load_csv(str(file))
    x, t = (torch.cat([one[n] for one in step.batch]) for n in ("x", "t"))
    losses: list[Tensor] = []
    last = len(step.layers) - 1 in modules
    runtime.step(*([x] if 0 in modules else []), **({"target": t, "losses": losses} if last else {}))
    grads = {}
    for s, module in modules.items():
        linear = module[0]
        assert linear.weight.grad is not None
        grads |= {f"layers.{s}.weight": linear.weight.grad, f"layers.{s}.bias": linear.bias.grad}
    return grads, [float(x) for x in losses]


def _layer(weight: Tensor, bias: Tensor) -> nn.Sequential:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return nn.Sequential(linear, nn.Tanh())
