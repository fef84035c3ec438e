"""Training under a plan: on ranks of this machine started here, or as one rank under torchrun.

parent ─ batch of step k ─▶ every rank: forward, backward, update ─ losses ─▶ parent (─▶ one process, side by side)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as load_state

from ..errors import ExecutionError, InputError, Unsupported
from ..graph.ir import Graph
from ..graph.source import ModelSource
from ..lower import lower
from ..lower.program import Program, unrolled
from ..plan.model import Plan
from ..plan.problem import Recipe
from . import checkpoint
from .data import Text, read_text, tokenised
from .device import hardware
from .mesh_groups import Groups, ranks_of
from .optimizer import AdamW, MakeOptimizer, memory, prepare_memory
from .params import Values
from .pool import Died, Pool
from .runtime import MicroBatch, Runtime
from .scale import fitted
from .verification import constants_of, load_values, loss_of

if TYPE_CHECKING:
    from .worker import Context


@dataclass(frozen=True, slots=True)
class StepReport:
    step: int
    """From 1."""
    loss: float
    """Mean over the micro-batches."""
    reference: float | None
    """One process's loss on the same samples, if asked for."""


@dataclass(frozen=True, slots=True)
class RunResult:
    steps: tuple[StepReport, ...]
    ranks: int
    checkpoint: Path | None
    """The last one written."""
    dtype: str = "float32"
    """What the ranks computed in."""


@dataclass(frozen=True, slots=True)
class Job:
    """What each rank needs once."""

    program: Program
    graph: Graph
    plan: Plan
    values: Values
    constants: Mapping[str, Tensor]
    optimizer: MakeOptimizer
    seed: int


# ---------------------------------------------------------- jobs of the ranks

_running: dict[str, Runtime] = {}
"""The runtime of this rank process."""


def start(context: Context, job: Job) -> None:
    _running["it"] = _runtime(job, context.rank, context.groups)


def step(context: Context, batch: Sequence[MicroBatch]) -> list[float]:
    return list(_running["it"].train_step(batch).losses)


def save(context: Context, folder: str) -> str:
    return str(checkpoint.save(_running["it"], folder))


def load(context: Context, folder: str) -> int:
    return checkpoint.load(_running["it"], folder)


def _runtime(job: Job, rank: int, groups: Groups) -> Runtime:
    return Runtime(
        job.program, job.graph, job.plan, job.values, job.constants, job.optimizer, hardware(), groups,
        rank=rank, seed=job.seed,
    )  # fmt: skip


# -------------------------------------------------------------------- parent


class Samples:
    """The samples of each step: text for language models, else random inputs; the same in every process."""

    def __init__(
        self, source: ModelSource, micro_batch: int, count: int, seq: int, seed: int, data: str | None
    ) -> None:
        self.source, self.micro_batch, self.count, self.seq, self.seed = source, micro_batch, count, seq, seed
        self.text: Text | None = None
        if source.text:
            self.text = tokenised(read_text(data), self._vocabulary())
        elif data is not None:
            raise InputError(f"{source.name} reads no text, so it cannot be trained on {data}: leave --data out")

    def _vocabulary(self) -> int:
        module, _ = self.source.build(self.micro_batch, self.seq, device="meta")
        table = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
        if table is None:
            raise Unsupported(f"{self.source.name} has no embedding, so its tokens have no known number")
        return table.num_embeddings

    def batch(self, step: int) -> list[MicroBatch]:
        """The micro-batches of step 0, 1, …, whole."""
        if self.text is None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            return [self.source.random_inputs(self.micro_batch, self.seq, generator) for _ in range(self.count)]
        tokens = self.text.windows(self.micro_batch * self.count, self.seq, step, self.seed)
        return [self.source.text_inputs(t) for t in tokens.split(self.micro_batch)]  # type: ignore[no-untyped-call]


class OneProcess:
    """The user's own module, trained in this process on the same samples."""

    def __init__(self, graph: Graph, module: nn.Module, values: Values, optimizer: MakeOptimizer) -> None:
        self.module = module
        load_values(graph, module, values)
        self._names = {t.name for t in graph.params()}
        self._optimizer = optimizer(list(module.parameters()))

    def resume(self, folder: str | Path, step: int) -> None:
        """Weights and moments of a checkpoint that a run wrote under any plan."""
        params = {name: p for name, p in self.module.named_parameters() if name in self._names}
        prepare_memory(self._optimizer)
        moments = {f"optimizer.{m}.{n}": x for n, p in params.items() for m, x in memory(self._optimizer, p).items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is what is meant
            load_state({**params, **moments}, checkpoint_id=str(folder), no_dist=True)
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"] = torch.tensor(float(step))

    def step(self, batch: Sequence[MicroBatch]) -> float:
        self._optimizer.zero_grad()
        total = 0.0
        for one in batch:
            loss = loss_of(self.module(**one))
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / len(batch)
        self._optimizer.step()
        return total


def train(
    plan: Plan,
    source: ModelSource,
    *,
    steps: int,
    seq: int = 0,
    seed: int = 0,
    optimizer: MakeOptimizer | None = None,
    data: str | None = None,
    folder: str | Path | None = None,
    save_every: int = 0,
    resume: str | Path | None = None,
    reference: bool = False,
    dtype: str = "float32",
    on_step: Callable[[StepReport], None] = lambda report: None,
    timeout: float = 600.0,
) -> RunResult:
    """Trains `source` under `plan` for `steps` steps.

    Under torchrun (RANK and WORLD_SIZE are set) this process is one rank, and only rank 0 calls `on_step`. Otherwise one
    process a device of the plan is started on this machine.

    Args:
        plan: of the graph of `source`, with as many devices as there are ranks.
        folder: where checkpoints go, as step-N; none without it.
        save_every: steps between checkpoints; 0 = one at the end (if there is a folder).
        resume: a checkpoint written under any plan of the same model.
        reference: train the user's module in this process too, side by side.
        timeout: seconds that one step may take.

    Raises:
        ExecutionError: a rank died; all others are ended first.
        InputError: no such checkpoint, a text that is too short.
    """
    job, samples, one = prepare(
        plan, source, seq=seq, seed=seed, optimizer=optimizer, data=data, dtype=dtype, reference=reference
    )
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _as_rank(job, samples, one, steps, folder, save_every, resume, on_step)
    ranks = len(ranks_of(job.program))
    done: list[StepReport] = []
    last: Path | None = Path(resume) if resume else None
    with Pool(ranks, backend="auto", timeout=timeout) as pool:
        at = 0
        try:
            pool.run("meshwright.execute.training:start", job, timeout=timeout)
            if resume is not None:
                at = int(pool.run("meshwright.execute.training:load", str(resume))[0])
                if one is not None:
                    one.resume(resume, at)
            for k in range(at, at + steps):
                batch = samples.batch(k)
                losses = next(x for x in pool.run("meshwright.execute.training:step", batch, timeout=timeout) if x)
                at = k + 1
                done.append(_report(at, losses, one, batch))
                on_step(done[-1])
                if folder is not None and _due(at, len(done), steps, save_every):
                    last = Path(pool.run("meshwright.execute.training:save", str(Path(folder) / f"step-{at}"))[0])
        except Died as error:
            raise _death(error, at + 1, last) from error
    return RunResult(tuple(done), ranks, last if last and last != resume else None, dtype)


def prepare(
    plan: Plan,
    source: ModelSource,
    *,
    seq: int = 0,
    seed: int = 0,
    optimizer: MakeOptimizer | None = None,
    data: str | None = None,
    dtype: str = "float32",
    reference: bool = False,
) -> tuple[Job, Samples, OneProcess | None]:
    """The program for one micro-batch, its first values and its samples."""
    seq, count = seq or source.default_seq, max(1, plan.schedule.micro_batches)
    if plan.samples % count:
        raise Unsupported(
            f"{plan.samples} samples do not fall into {count} equal micro-batches, which is priced, not run"
        )
    micro_batch = plan.samples // count
    graph = source.graph(micro_batch, seq, dtype)
    plan = fitted(plan, graph)
    program = unrolled(lower(graph, plan, Recipe(plan.samples, compute_dtype=dtype)), graph)
    module, _ = source.build(micro_batch, seq, dtype, device="cpu", attention="eager")
    values, rule = Values(seed), optimizer or AdamW()
    job = Job(program, graph, plan, values, constants_of(graph, module), rule, seed)
    samples = Samples(source, micro_batch, count, seq, seed, data)
    return job, samples, OneProcess(graph, module, values, rule) if reference else None


def _report(number: int, losses: Sequence[float], one: OneProcess | None, batch: Sequence[MicroBatch]) -> StepReport:
    return StepReport(number, sum(losses) / len(losses), one.step(batch) if one is not None else None)


def _due(at: int, ran: int, steps: int, every: int) -> bool:
    return ran == steps or (every > 0 and at % every == 0)


def _death(error: Died, at: int, last: Path | None) -> ExecutionError:
    """UX: "rank 5 was killed by signal 9 at step 14; the other 7 were stopped; go on with --resume run/step-10 …"."""
    text = error.sentence(f"at step {at}")
    if last is not None:
        text += f"; go on with --resume {last} (loads under any plan)"
    return ExecutionError(text, hint=error.hint)


def _as_rank(
    job: Job,
    samples: Samples,
    one: OneProcess | None,
    steps: int,
    folder: str | Path | None,
    save_every: int,
    resume: str | Path | None,
    on_step: Callable[[StepReport], None],
) -> RunResult:
    """One rank of a group that torchrun started."""
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    needed = len(ranks_of(job.program))
    if world != needed:
        raise InputError(f"torchrun started {world} ranks, the plan has {needed} devices: start {needed}")
    place = hardware()
    if not dist.is_initialized():
        dist.init_process_group(place.backend)
    runtime = _runtime(job, rank, Groups())
    at = checkpoint.load(runtime, resume) if resume is not None else 0
    if one is not None and resume is not None:
        one.resume(resume, at)
    done: list[StepReport] = []
    last: Path | None = None
    for k in range(at, at + steps):
        batch = samples.batch(k)
        shared: list[list[float] | None] = [None] * world
        dist.all_gather_object(shared, list(runtime.train_step(batch).losses))
        losses = next(x for x in shared if x)
        done.append(_report(k + 1, losses, one if rank == 0 else None, batch))
        if rank == 0:
            on_step(done[-1])
        if folder is not None and _due(k + 1, k - at + 1, steps, save_every):
            last = checkpoint.save(runtime, Path(folder) / f"step-{k + 1}")
    dist.destroy_process_group()
    return RunResult(tuple(done), world, last)
