"""A user's own training loop under a plan: `mw.parallelize(model, plan, …)` gives a `Job`, which takes steps.

model (meta or real, untouched) ─ capture, with the loss ─▶ graph ─ plan ─▶ program ─▶ this rank's parts
batch (this rank's samples)     ─ train_step ─▶ Metrics, equal on every rank
"""

from __future__ import annotations

import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ExecutionError, InputError, Unsupported
from .execute.ranks.lost import lost
from .execute.ranks.mesh_groups import Groups
from .execute.saved import checkpoint
from .execute.step.shares import Share, shares
from .execute.training.run_record import another_ended, newest, no_number
from .execute.training.trainer import Setup, Trainer
from .graph.eval_mode import other_in_eval
from .graph.ir import Graph
from .graph.user_model import Batch, Feed
from .plan.model import Plan
from .report.measured import Measured, measured
from .simulate.result import Simulation

if TYPE_CHECKING:
    from .execute.saved.dtensors import StateDict

T = TypeVar("T")
Priced: TypeAlias = Callable[[], tuple[Simulation, str]]
"""The plan's simulation with details, and the name of the cluster that it is for."""
SAMPLED = 1 << 16
"""Elements of each input that tell whether two ranks were given the same samples."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of one step; equal on every rank."""

    step: int
    """Steps taken so far, this one too."""
    loss: float
    """Mean over all samples of the step, before its update."""
    grad_norm: float
    """Global L2 norm of all gradients, before clipping."""
    step_s: float
    """Seconds of the slowest rank."""


class Job:
    """One rank's part of a training run, in the hands of the user's loop. Made by `parallelize`.

    Attributes:
        optimizer: of torch, over this rank's parts; schedulers of torch.optim.lr_scheduler work on it.
        data_rank, data_world: which share of the samples this rank is given, of how many.
        local_batch: samples of this share in one step, all micro-batches.
        local_first: number of its first sample in each micro-batch of the whole batch; shares may be unequal.
        clip: largest global norm of the gradients, or None.
    """

    def __init__(
        self,
        setup: Setup,
        feed: Feed,
        rank: int,
        world: int,
        priced: Priced | None = None,
        evaluated: Callable[[], Graph] | None = None,
    ) -> None:
        """`evaluated`: captures the model in evaluation mode, to see whether it computes the same there."""
        positive(setup.clip)
        self._setup, self._feed, self._evaluated = setup, feed, evaluated
        self._other_in_eval = ""
        self._shares = shares(setup.program, setup.graph)
        share: Share = self._shares[rank]
        self._micro_batches = max(1, setup.plan.schedule.micro_batches)
        self._trainer = Trainer(setup, rank, Groups())
        self._state: StateDict | None = None
        self._checked = False
        self._saves: list[Path] = []
        self._priced = priced
        self.rank, self.world = rank, world
        self.data_rank, self.data_world = share.rank, share.world
        self.local_batch = share.count * self._micro_batches
        self.local_first = share.first
        weakref.finalize(self, self._trainer.checkpoints.wait)  # when the job is gone or the process ends

    # -------------------------------------------------------------- the loop

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._trainer.runtime.optimizer

    @property
    def scheduler(self) -> Any:
        """What `scheduler=` made, or None."""
        return self._trainer.scheduler

    @property
    def plan(self) -> Plan:
        return self._setup.plan

    @property
    def step(self) -> int:
        """Steps taken, those before a resumed checkpoint too."""
        return self._trainer.runtime.step

    @property
    def clip(self) -> float | None:
        return self._trainer.clip

    @clip.setter
    def clip(self, value: float | None) -> None:
        self._trainer.clip = positive(value)

    def train_step(self, batch: Batch) -> Metrics:
        """Forward and backward of all micro-batches, and one update. Collective.

        Args:
            batch: `local_batch` samples of this rank's share; sample k · local_batch / micro-batches is the first of
                micro-batch k. Ranks with the same `data_rank` must be given the same.

        Raises:
            InputError: other entries, shapes or types than the plan's, or ranks of one share that were given different samples.
            ExecutionError: the loss or a gradient is no number; the update was left out, the weights are as before. Or another
                rank ended.
        """
        began = time.perf_counter()
        number = self.step + 1
        with self._together(number):
            given, mark = self._given(batch)
            stepped = self._trainer.step(given)
            rows = self._gather([time.perf_counter() - began, mark])
        self._same([r[1] for r in rows], number)
        if not stepped.finite:
            left = f"the weights are those of step {number - 1}"
            if not self.plan.schedule.weights.flush:
                left = "updates without a flush were made with it: load a checkpoint"
            raise ExecutionError(f"{no_number(number, self._told(stepped))}; {left}")
        return Metrics(number, sum(stepped.losses) / len(stepped.losses), stepped.grad_norm, max(r[0] for r in rows))

    def eval_step(self, batch: Batch) -> float:
        """The mean loss of a batch of the same size, without dropout, gradients and update, with the running statistics of
        batch norms; equal on every rank. Collective.

        Raises:
            Unsupported: a model that computes something else in eval mode besides. ExecutionError: another rank ended.
        """
        if self._evaluated is not None:
            self._other_in_eval, self._evaluated = other_in_eval(self._setup.graph, self._evaluated()), None
        if self._other_in_eval:
            raise Unsupported(
                f"in evaluation mode the model computes something else, first in {self._other_in_eval}: a plan runs the training "
                "mode, without dropout and with the running statistics of batch norms; evaluate in one process with the weights of "
                "a checkpoint"
            )
        with self._together(self.step):
            given, mark = self._given(batch)
            losses = self._trainer.runtime.evaluate(given)
            marks = [r[0] for r in self._gather([mark])]
        self._same(marks, self.step)
        return sum(losses) / len(losses)

    @contextmanager
    def _together(self, number: int) -> Iterator[None]:
        """What all ranks do at once in step `number`."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if not lost(error):
                raise
            last = newest(self._saves)
            raise another_ended(number, f'job.load("{last}")' if last is not None else "") from error

    def _given(self, batch: Batch) -> tuple[list[Any], float]:
        named = self._feed.named(batch)
        given = self._shares[self.rank].rows(named, self._setup.graph, self._micro_batches)
        mark = checksum(named)
        if not self._checked:  # later steps are checked when their metrics meet
            self._same([r[0] for r in self._gather([mark])], self.step + 1)
            self._checked = True
        return given, mark

    def _same(self, marks: list[float], step: int) -> None:
        first: dict[int, int] = {}
        for rank, mark in enumerate(marks):
            share = self._shares[rank].rank
            other = first.setdefault(share, rank)
            if marks[other] != mark:
                raise InputError(
                    f"ranks {other} and {rank} were given different samples in step {step}, but both have data_rank "
                    f"{share} of {self.data_world}: give every rank the samples of its job.data_rank"
                )

    def _gather(self, own: list[float]) -> list[list[float]]:
        """The numbers of every rank."""
        if self.world == 1:
            return [own]
        device = self._trainer.runtime.hardware.device
        row = torch.tensor(own, dtype=torch.float64, device=device)
        found = torch.empty(self.world * len(own), dtype=torch.float64, device=device)
        dist.all_gather_single(found, row)
        return found.reshape(self.world, len(own)).tolist()

    # ----------------------------------------------------------- checkpoints

    def save(self, path: str | Path, data: Mapping[str, Any] | None = None) -> None:
        """Begins to write a checkpoint: weights, optimizer, scheduler, step, seed, generators. Collective.

        The parts are copied, so training goes on while they are written; the folder appears when it is complete, and
        loads under any plan of the model. Waits for the one before, if that is still being written.

        Args:
            data: where the next samples begin, in the loop's own words; `load` gives it back.

        Raises:
            ExecutionError: the one before could not be written; another rank ended.
        """
        with self._together(self.step):
            self._trainer.checkpoints.save(path, data)
        self._saves = [*(s for s in self._saves if s != Path(path)), Path(path)]

    def wait(self) -> Path | None:
        """Until what was saved last is complete; its folder. Called when the process ends, too.

        Raises:
            ExecutionError: it could not be written; another rank ended.
        """
        with self._together(self.step):
            return self._trainer.checkpoints.wait()

    def load(self, path: str | Path) -> checkpoint.Saved:
        """Goes on from a checkpoint that was written under this plan or any other. Collective.

        Returns:
            what it says of itself: `.step`, `.data`.

        Raises:
            InputError: no complete checkpoint, one of another model, or of another seed, under which dropout would go on
                with other masks.
        """
        self.wait()
        seed = checkpoint.info(path).seed
        if seed != self._setup.seed:
            raise InputError(
                f"{path}: written with seed {seed}, the job has {self._setup.seed}: parallelize(…, seed={seed})"
            )
        saved = self._trainer.resume(path)
        self._saves = [Path(path)]
        return saved

    def state_dict(self) -> dict[str, Any]:
        """Name in the user's module -> DTensor of the float32 weight, for the parameters of this rank's stages. Collective.

        torch.distributed.checkpoint saves it, and loads into it in place; then `load_state_dict` tells the job. A tensor
        whose part is no box of the whole (a fused weight that is cut inside) is gathered and stands as a `Replicate` copy.
        In a single process without a process group the values are plain tensors.
        """
        return self._states().tensors()

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Puts values of `state_dict`, or whole tensors, back into the job. The optimizer stays as it is. Collective.

        Raises:
            InputError: a name is missing, or of another shape or placement.
        """
        self._states().load(values)

    def _states(self) -> StateDict:
        if self._state is None:
            from .execute.saved.dtensors import StateDict

            self._state = StateDict(self._trainer.runtime)
        return self._state

    # ---------------------------------------------------------------- report

    def report(self) -> Measured:
        """The predicted step beside the measured one, for every rank, and where the two part. Collective.

        Raises:
            InputError: nothing to compare: fewer than two steps, or a plan without its cluster.
        """
        if self._priced is None:
            raise InputError(
                "the plan does not say which cluster it is for: load it with mw.load from the folder that mw.plan wrote, or "
                "give the answer of mw.plan itself"
            )
        spent = self._trainer.spent()
        if not spent.get("step"):
            raise InputError("a report needs two steps at least: the first one warms up")
        everyone = self._told(spent)
        simulation, cluster = self._priced()
        return measured(self.plan, simulation, everyone, self._trainer.timed, priced_for=cluster)

    def _told(self, own: T) -> list[T]:
        """What every rank says."""
        everyone = [own] * self.world
        if self.world > 1:
            dist.all_gather_object(everyone, own)
        return everyone


def positive(clip: float | None) -> float | None:
    """The largest norm, if there is one.

    Raises:
        InputError: no positive number.
    """
    if clip is None or (isinstance(clip, Real) and not isinstance(clip, bool) and clip > 0):
        return clip
    raise InputError(f"clip is {clip!r}: give the largest norm of the gradients, a number above 0, or None")


def checksum(named: Mapping[str, Tensor]) -> float:
    """Of up to `SAMPLED` elements of each tensor, evenly spread: equal for equal batches."""
    value = 0
    for name, x in named.items():
        flat = x.detach().reshape(-1)
        flat = flat[:: -(-flat.numel() // SAMPLED)] if flat.numel() > SAMPLED else flat
        held = flat.contiguous().cpu()
        data = held.view(torch.uint8).numpy().tobytes() if held.numel() else b""
        value = zlib.crc32(data, zlib.crc32(f"{name} {tuple(x.shape)}".encode(), value))
    return float(value)
