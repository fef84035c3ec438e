"""Models with batch norms, trained on ranks: what their running statistics become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from meshwright.execute.proof.verification import Task
from meshwright.execute.ranks.worker import Context
from meshwright.execute.saved import checkpoint
from meshwright.execute.saved.export import export_safetensors
from meshwright.execute.step.optimizer import SGD
from meshwright.execute.step.runtime import Runtime
from meshwright.execute.step.statistics import Each

Batch = Mapping[str, Tensor]
RATE = 0.2


class Normed(nn.Module):
    """Two stages with a norm each; the second has no weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.first = nn.BatchNorm1d(6, momentum=0.3)
        self.outer = nn.Linear(6, 4)
        self.second = nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = torch.relu(self.first(self.inner(x)))
        return (self.second(self.outer(x)) - t).square().mean()


@dataclass(frozen=True)
class Course:
    task: Task
    batches: Sequence[Sequence[Batch]]
    each: Each = "mini-batch"
    folder: str = ""
    """Where a checkpoint goes after all steps, and a file of all weights."""
    resume: str = ""


@dataclass
class Ended:
    evaluated: tuple[float, ...] = ()
    """Losses of the last batch in evaluation mode, after all steps."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """Of this rank's stages."""


def trained(context: Context, course: Course) -> Ended:
    task = course.task
    runtime = Runtime(
        task.program, task.graph, task.plan, task.values, task.constants, SGD(RATE), context.hardware, context.groups,
        rank=context.rank, batch_norm=course.each,
    )  # fmt: skip
    if course.resume:
        checkpoint.load(runtime, course.resume)
    for batch in course.batches:
        runtime.train_step(batch)
    runtime.settle()
    if course.folder:
        saves = checkpoint.Checkpoints(runtime)
        saves.save(course.folder)
        saves.wait()
        export_safetensors(runtime, course.folder + ".safetensors")
    ended = Ended(runtime.evaluate(course.batches[-1]))
    ended.statistics = {h.name: h.tensor.clone() for h in runtime.statistics.held()}
    return ended
