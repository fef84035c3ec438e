"""Jobs that tests of checkpoints send to ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from meshwright.execute.ops.site import own_part
from meshwright.execute.ranks.mesh_groups import MeshView
from meshwright.execute.ranks.worker import Context
from meshwright.execute.saved.export import export_safetensors
from meshwright.execute.step.runtime import MicroBatch
from meshwright.execute.training.trainer import Setup, Trainer


@dataclass(frozen=True)
class Course:
    """Steps of a run, and what is read before and written between them."""

    setup: Setup
    batches: Mapping[int, tuple[MicroBatch, ...]]
    """Step, from 0 -> its micro-batches."""
    resume: Path | None = None
    save: Mapping[int, Path] | None = None
    """Steps done -> where a checkpoint goes."""
    export: Path | None = None
    """The weights of the end."""


@dataclass(frozen=True)
class Outcome:
    losses: dict[int, float]
    """Step -> mean loss, on the ranks that computed it."""
    drawn: Tensor
    """What torch's own generator gave first."""
    rates: list[float]
    """Learning rate after each step."""


def followed(context: Context, course: Course) -> Outcome:
    torch.manual_seed(1000 + context.rank)  # what user code draws differs by rank
    trainer = Trainer(course.setup, context.rank, context.groups)
    if course.resume is not None:
        trainer.resume(course.resume)
    drawn, losses, rates = torch.rand(3), {}, []
    for step, batch in sorted(course.batches.items()):
        stepped = trainer.step(batch)
        if stepped.losses:
            losses[step] = sum(stepped.losses) / len(stepped.losses)
        rates.append(trainer.runtime.optimizer.param_groups[0]["lr"])
        if course.save and step + 1 in course.save:
            trainer.checkpoints.save(course.save[step + 1], {"document": 7, "offset": torch.tensor([step])})
            drawn = torch.rand(3)
    trainer.checkpoints.wait()
    if course.export is not None:
        export_safetensors(trainer.runtime, course.export)
    return Outcome(losses, drawn, rates)


def unequal_parts(context: Context, payload: tuple[Setup, Path, Mapping[str, Tensor]]) -> list[str]:
    """Resumes; names of masters and resting parameters that are not the parts of the whole ones."""
    setup, folder, whole = payload
    trainer = Trainer(setup, context.rank, context.groups)
    trainer.resume(folder)
    odd = []
    for (stage, name), master in trainer.runtime.masters.items():
        local, param = trainer.runtime.locals[stage], trainer.runtime.param(stage, name)
        view: MeshView = local.view
        if not torch.equal(master.detach(), own_part(whole[name], param.state, view)):
            odd.append(f"master of {name}")
        rest = own_part(whole[name], param.rest, view).to(local.params[name].dtype)
        if not torch.equal(local.params[name].detach(), rest):
            odd.append(f"{name} at rest")
    return odd
