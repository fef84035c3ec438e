"""Training loops as people write them: on the ranks of a pool through `mw.parallelize`, and on one process by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

import meshwright as mw
from execute.layouts import Layout, plan_of
from execute.unlike import Unlike
from meshwright.execute.ranks.worker import Context
from meshwright.graph.samples import inputs_like
from meshwright.graph.user_model import Batch, Feed, Loss, graph_of, like
from meshwright.job import Job
from meshwright.plan.model import Plan

SAMPLES, MICRO_BATCHES = 8, 2


class Scorer(nn.Module):
    """Two inputs, dropout between, a head without a loss; written by somebody who never heard of plans."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 16)) for _ in range(4)
        )
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 6)

    def forward(self, tokens: Tensor, weight: Tensor) -> Tensor:
        x = self.embed(tokens) * weight[:, None, None]
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x).mean(1))


def score(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return functional.cross_entropy(output, batch["label"])


def scores(step: int, samples: int = SAMPLES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "tokens": torch.randint(0, 32, (samples, 8), generator=generator),
        "weight": torch.rand(samples, generator=generator),
        "label": torch.randint(0, 6, (samples,), generator=generator),
    }


def paired(output: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    return functional.cross_entropy(output, batch[2])


def pairs(step: int) -> tuple[Tensor, ...]:
    return tuple(scores(step).values())


def scorer() -> nn.Module:
    torch.manual_seed(0)
    return Scorer()


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return Scorer(0.3)


def frozen() -> nn.Module:
    model = scorer()
    model.embed.weight.requires_grad_(False)
    return model


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still))


def text(step: int) -> dict[str, Tensor]:
    tokens = torch.randint(0, 64, (SAMPLES, 16), generator=torch.Generator().manual_seed(step))
    return {"input_ids": tokens, "labels": tokens}


@dataclass(frozen=True)
class Loop:
    """A model, its batches and its loss. Names of functions here, so that ranks can find them."""

    build: str
    batches: str
    loss: str = ""

    @property
    def model(self) -> nn.Module:
        return globals()[self.build]()  # type: ignore[no-any-return]

    @property
    def batch(self) -> Callable[[int], Batch]:
        return globals()[self.batches]  # type: ignore[no-any-return]

    @property
    def criterion(self) -> Loss | None:
        return globals()[self.loss] if self.loss else None

    def plan(self, layout: Layout | Unlike, micro_batches: int = MICRO_BATCHES, dtype: str = "float32") -> Plan:
        model, batch = self.model, self.batch(0)
        feed = Feed.of(model, batch, self.criterion)
        graph = graph_of(
            model, feed, like(feed.named(batch)), SAMPLES // micro_batches, loss=self.criterion, dtype=dtype
        )
        unlike = isinstance(layout, Unlike)
        plan = layout.plan(graph, micro_batches) if unlike else plan_of(graph, layout, micro_batches)
        return replace(plan, inputs=inputs_like(graph), precision=dtype)


SCORER = Loop("scorer", "scores", "score")
PAIRS = Loop("scorer", "pairs", "paired")
DROPPING = Loop("dropping", "scores", "score")
FROZEN = Loop("frozen", "scores", "score")
GPT2 = Loop("gpt2", "text")


@dataclass(frozen=True)
class Task:
    loop: Loop
    plan: Plan
    steps: int = 3
    clip: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    odd_rank: int = -1
    """Is given the samples of another step."""
    on_meta: bool = False
    optimizer: str = "momentum"


@dataclass
class Ran:
    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    share: tuple[int, int, int]
    placements: dict[str, str]
    evaluated: float


def rows(whole: Batch, job: Job) -> Batch:
    """A rank's own samples out of a whole step's, as a sampler would give them."""
    count = max(1, job.plan.schedule.micro_batches)
    micro, own = SAMPLES // count, job.local_batch // count
    index = torch.cat([torch.arange(own) + k * micro + job.local_first for k in range(count)])
    if isinstance(whole, Mapping):
        return {name: x[index] for name, x in whole.items()}
    return tuple(x[index] for x in whole)


def adamw(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 1e-2)


def momentum(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1, momentum=0.9)


def job_of(task: Task) -> Job:
    with torch.device("meta" if task.on_meta else "cpu"):
        model = task.loop.model
    return mw.parallelize(
        model, task.plan, optimizer=globals()[task.optimizer], loss=task.loop.criterion, clip=task.clip, **task.options
    )


def trained(context: Context | None, task: Task) -> Ran:
    """A loop on one rank."""
    job = job_of(task)
    losses, norms = [], []
    for k in range(task.steps):
        batch = task.loop.batch(k + 100 if job.rank == task.odd_rank else k)
        metrics = job.train_step(rows(batch, job))
        assert metrics.step == k + 1
        losses.append(metrics.loss)
        norms.append(metrics.grad_norm)
    evaluated = job.eval_step(rows(task.loop.batch(50), job))
    state = job.state_dict() if context is not None and context.world > 1 else {}
    return Ran(
        losses, norms, {n: x.full_tensor() for n, x in state.items()}, (job.data_rank, job.data_world, job.local_batch),
        {n: str(x.placements) for n, x in state.items()}, evaluated,
    )  # fmt: skip


def by_hand(loop: Loop, steps: int = 3, clip: float | None = None, micro_batches: int = MICRO_BATCHES) -> Ran:
    """The loop that everybody writes, on one process."""
    model = loop.model
    optimizer = momentum([p for p in model.parameters() if p.requires_grad])
    feed = Feed.of(model, loop.batch(0), loop.criterion)

    def mean_loss(batch: Batch) -> Tensor:
        total = torch.zeros(())
        size = SAMPLES // micro_batches
        for k in range(micro_batches):
            part = {n: x[k * size : (k + 1) * size] for n, x in feed.named(batch).items()}
            output = model(**{n: part[n] for n in feed.model})
            loss = output.loss if loop.criterion is None else loop.criterion(output, feed.batch(part))
            total = total + loss / micro_batches
        return total

    losses, norms = [], []
    for k in range(steps):
        optimizer.zero_grad()
        loss = mean_loss(loop.batch(k))
        loss.backward()
        norms.append(float(clip_grad_norm_(model.parameters(), clip if clip is not None else float("inf"))))
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        evaluated = mean_loss(loop.batch(50)).item()
    return Ran(losses, norms, dict(model.state_dict()), (0, 1, SAMPLES), {}, evaluated)


# ------------------------------------------------------------- further jobs of ranks


@dataclass(frozen=True)
class Saving:
    task: Task
    folder: Path


def saved(context: Context, saving: Saving) -> list[float]:
    """Trains, saves in the middle, and goes on."""
    job = job_of(saving.task)
    losses = []
    for k in range(saving.task.steps):
        losses.append(job.train_step(rows(saving.task.loop.batch(k), job)).loss)
        if k == 1:
            job.save(saving.folder, {"at": k + 1})
    job.wait()
    return losses


def resumed(context: Context | None, saving: Saving) -> list[float]:
    """Goes on from what another plan saved."""
    job = job_of(saving.task)
    at = job.load(saving.folder)
    assert at.data["at"] == job.step == at.step
    return [job.train_step(rows(saving.task.loop.batch(k), job)).loss for k in range(job.step, saving.task.steps)]


def checkpointed_by_torch(context: Context, saving: Saving) -> list[float]:
    """torch.distributed.checkpoint alone, through the state dict: trained, saved, spoilt, loaded, evaluated."""
    import torch.distributed.checkpoint as dcp

    job = job_of(saving.task)
    for k in range(saving.task.steps):
        job.train_step(rows(saving.task.loop.batch(k), job))
    probe = rows(saving.task.loop.batch(50), job)
    before = job.eval_step(probe)
    dcp.save(job.state_dict(), checkpoint_id=saving.folder)
    job.train_step(probe)
    spoilt = job.eval_step(probe)
    state = job.state_dict()
    dcp.load(state, checkpoint_id=saving.folder)
    job.load_state_dict(state)
    return [before, spoilt, job.eval_step(probe)]


def refused(context: Context, task: Task) -> str:
    try:
        trained(context, task)
    except mw.MeshwrightError as error:
        return error.message
    return ""


def reported(context: Context, task: Task) -> list[str]:
    job = job_of(task)
    for k in range(task.steps):
        job.train_step(rows(task.loop.batch(k), job))
    return job.report().lines()


def unseeded(context: Context, task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
    """(values of this rank's module, whole values that the job trains, whether the module is as it was)."""
    torch.manual_seed(context.rank)
    model = Scorer()
    before = {n: x.clone() for n, x in model.state_dict().items()}
    job = mw.parallelize(model, task.plan, optimizer=momentum, loss=score)
    untouched = all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    return before, {n: x.full_tensor() for n, x in job.state_dict().items()}, untouched
