"""`mw.parallelize`: from a user's module and a plan to a `Job`, with every mismatch told before anything is allocated."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn

from . import output_folder as folders
from ._words import plural
from .cluster.launch import Shape, torchrun_line
from .errors import InputError
from .execute.proof.refusal import must_run
from .execute.proof.scale import fitted
from .execute.saved.pretrained import first_values, from_rank_0
from .execute.saved.weights import Weights
from .execute.step.endless import check_clip
from .execute.step.statistics import EACH, Each
from .execute.training.one_rank import join
from .execute.training.trainer import MakeScheduler, Setup
from .graph.ir import Graph
from .graph.user_model import Batch, Feed, Like, Loss, graph_of, is_transformers, like, twin_of
from .job import Job, Priced
from .lower import lower
from .lower.program import unrolled
from .plan.match import check_match
from .plan.model import Plan
from .plan.problem import Recipe
from .report.outcome import Outcome
from .request import PRECISIONS
from .save import Opened, open_plan
from .simulate.result import Simulation
from .stated import state

if TYPE_CHECKING:
    from .execute.step.optimizer import MakeOptimizer


TIMEOUT_SECONDS = 1800.0
"""That a rank waits for another one, as is torch's default: loops evaluate and write between steps."""


@dataclass(frozen=True)
class _Known:
    """A plan with what is known beside it."""

    plan: Plan
    shapes: Mapping[str, Sequence[int]] | None
    """Of the parameters that it was made for."""
    priced: Priced | None


def parallelize(
    model: nn.Module,
    plan: Plan | Outcome | str | Path,
    *,
    optimizer: MakeOptimizer,
    loss: Loss | None = None,
    inputs: Batch | None = None,
    weights: str | Path | None = None,
    clip: float | None = None,
    scheduler: MakeScheduler | None = None,
    precision: str | None = None,
    seed: int = 0,
    compile: str | None = None,
    batch_norm: Each = "mini-batch",
) -> Job:
    """A `Job` that trains `model` under `plan`: this process is one rank of it, started by torchrun, or the only one.

    Args:
        model: any module, on the meta device or real; it is read, never changed. Rank 0's real values are where training
            starts.
        plan: of `mw.load` or `mw.plan`, or the folder of one.
        optimizer: makes an optimizer of torch.optim from a list of parameters: this rank's float32 parts.
        loss: loss(output, batch), one number, the mean over the batch; None: the model returns its loss.
        inputs: one batch of any number of samples; None: the plan says what it is fed.
        weights: a .safetensors file or a folder with them; each rank reads its own slices.
        clip: largest global norm of the gradients.
        scheduler: makes a scheduler of torch.optim.lr_scheduler from the optimizer; stepped after each step, saved and loaded.
        precision: "bf16", "fp16" or "fp32", what is computed in; None: the plan's. Masters are float32.
        compile: a backend of torch.compile, such as "inductor", for what a stage does between its collectives.
        batch_norm: the running statistics of batch norms take one update a step, as one process makes that sees the whole
            mini-batch ("mini-batch"), or one for each "micro-batch", as a loop over them makes.
        seed: of dropout, and of parameters on meta that nothing gives values.

    Raises:
        InputError: another number of ranks than devices; a plan of another model; weights or buffers that are missing.
        CaptureError: the model or the loss cannot be captured. Unsupported: the plan can be priced, not run.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is of type {type(model).__name__}: give a torch.nn.Module, such as build() returns"
        )
    if batch_norm not in EACH:
        raise InputError(f'no batch_norm "{batch_norm}": use one of {", ".join(EACH)}')
    known = _known(plan)
    rank, world = _place(known.plan)
    dtype = _dtype(precision, known.plan)
    feed, likeness = _fed(model, known.plan, inputs, loss)
    micro_batches = max(1, known.plan.schedule.micro_batches)
    if known.plan.samples % micro_batches:
        raise InputError(
            f"{known.plan.samples} samples do not fall into {micro_batches} equal micro-batches, which is priced, not run"
        )
    samples = known.plan.samples // micro_batches
    capture: Callable[..., Graph] = partial(graph_of, twin_of(model), feed, likeness, samples, loss=loss, dtype=dtype)
    graph, own, capture = _captured(model, known, capture)
    must_run(own, graph)
    check_clip(own.schedule.weights, clip)
    program = unrolled(lower(graph, own, Recipe(own.samples, compute_dtype=dtype or "float32")), graph)
    files = Weights.open(weights) if weights is not None else None
    values, constants = first_values(graph, model, files, seed)
    if world > 1 and not dist.is_initialized():
        join(TIMEOUT_SECONDS)
    if world > 1:
        values.given, constants = from_rank_0(values.given), from_rank_0(constants)
    setup = Setup(program, graph, own, values, constants, optimizer, seed, scheduler, clip, compile, batch_norm)
    return Job(setup, feed, rank, world, known.priced, partial(capture, train=False))


def _known(plan: Plan | Outcome | str | Path) -> _Known:
    if isinstance(plan, Outcome):
        if plan.plan is None or plan.simulation is None:
            raise InputError(f"there is no plan to run: {plan.reason or 'none fits'}")
        simulation, cluster = plan.simulation, plan.question.cluster.name
        shapes = {t.name: t.shape for t in plan.question.graph.params()}
        return _Known(plan.plan, shapes, lambda: (simulation, cluster))
    if not isinstance(plan, Plan):
        from .api import load

        plan = load(plan)
    if not plan.folder or not (Path(plan.folder) / folders.PROBLEM).is_file():
        return _Known(plan, None, None)
    opened = open_plan(Path(plan.folder))
    return _Known(plan, opened.answer.get("problem", {}).get("shapes"), partial(_priced, opened))


def _priced(opened: Opened) -> tuple[Simulation, str]:
    from .simulate.simulator import simulate

    stated = state(opened.request)
    return simulate(stated.problem, opened.plan), stated.problem.cluster.name


def _place(plan: Plan) -> tuple[int, int]:
    """(rank, ranks) of this process, which must be as many as the plan has devices."""
    needed = len({d for s in plan.stages for d in s.mesh.devices})
    if dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    else:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world != needed:
        script = sys.argv[0] or "train.py"
        line = torchrun_line(Shape(1, needed), [script, *sys.argv[1:]])
        started = "this is a single process" if world == 1 else f"{world} ranks were started"
        raise InputError(f"the plan has {plural(needed, 'device')} and {started}: start it with {line}")
    return rank, world


def _dtype(precision: str | None, plan: Plan) -> str:
    """A torch dtype by name; "" = the model's own."""
    if precision is None:
        return plan.precision
    if precision not in PRECISIONS:
        raise InputError(f'no precision "{precision}": use one of {", ".join(PRECISIONS)}')
    if plan.precision == "float32" != PRECISIONS[precision]:
        raise InputError(
            f'the plan is for fp32, where a model has no casts: plan it with precision="{precision}" to compute in that'
        )
    return PRECISIONS[precision]


def _fed(model: nn.Module, plan: Plan, inputs: Batch | None, loss: Loss | None) -> tuple[Feed, Like]:
    """What a batch is to the model, and what its entries look like."""
    if inputs is not None:
        feed = Feed.of(model, inputs, loss)
        return feed, like(feed.named(inputs))
    if not plan.inputs:
        raise InputError(
            f"the plan does not say what {type(model).__name__} is fed: give inputs=, one batch of any number of samples"
        )
    return Feed.named_like(model, tuple(plan.inputs), loss), plan.inputs


def _captured(
    model: nn.Module, known: _Known, capture: Callable[..., Graph]
) -> tuple[Graph, Plan, Callable[..., Graph]]:
    """The graph of one micro-batch, the plan in its terms, and how it was captured. A transformers model is taken as plans by
    name take it, with attention that can be cut, or else as it was built."""
    failed: InputError | None = None
    for as_built in (False, True) if is_transformers(model) else (True,):
        chosen = partial(capture, as_built=as_built)
        graph = chosen()
        own = fitted(known.plan, graph)
        try:
            check_match(own, graph, type(model).__name__, known.shapes)
            return graph, own, chosen
        except InputError as error:
            failed = failed or error
    assert failed is not None
    raise failed
