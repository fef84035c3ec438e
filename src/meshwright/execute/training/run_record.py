"""What a run was asked for, what it has done so far, and how it is to be gone on with when it ends early."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ExecutionError
from ..saved import folders
from .trainer import Stepped


@dataclass(frozen=True, slots=True)
class StepReport:
    step: int
    """From 1."""
    loss: float
    """Mean over the micro-batches."""
    reference: float | None
    """One process's loss on the same samples, if asked for."""
    seconds: tuple[float, ...] = ()
    """Per rank, measured."""


@dataclass(frozen=True, slots=True)
class RunResult:
    steps: tuple[StepReport, ...]
    ranks: int
    checkpoint: Path | None
    """The last one written."""
    dtype: str = "float32"
    """What the ranks computed in."""
    spent: tuple[Mapping[str, float], ...] = ()
    """Per rank: seconds by what it did ("step": all of it), over all steps but the first; empty after one step."""


@dataclass(slots=True)
class Run:
    steps: int
    folder: Path | None
    save_every: int
    resume: Path | None
    dtype: str
    on_step: Callable[[StepReport], None]
    begun: int = 0
    """Steps that the checkpoint to go on from had taken."""
    done: list[StepReport] = field(default_factory=list)
    saves: list[Path] = field(default_factory=list)
    """Checkpoints that were begun, in order."""

    @property
    def at(self) -> int:
        """The step that is being taken, from 1."""
        return self.begun + len(self.done) + 1

    def tidy(self) -> None:
        """What an interrupted run left in the folder is ended. One process does it, before the ranks begin to save."""
        if self.folder is not None:
            folders.tidy(self.folder, "step-*")

    def report(self, number: int, stepped: Sequence[Stepped], reference: float | None) -> StepReport:
        """Of step `number` from what all ranks say of it.

        Raises:
            ExecutionError: the loss is no number: what comes after it would be none either.
        """
        first = stepped[0]
        loss = sum(first.losses) / len(first.losses)
        if not first.finite:
            raise ExecutionError(no_number(number, stepped) + self.go_on())
        self.done.append(StepReport(number, loss, reference, tuple(s.seconds for s in stepped)))
        return self.done[-1]

    def save_at(self, number: int) -> Path | None:
        """Where a checkpoint is to be written after step `number`, if it is."""
        regular = self.save_every > 0 and number % self.save_every == 0
        if self.folder is None or not (regular or len(self.done) == self.steps):
            return None
        self.saves.append(self.folder / f"step-{number}")
        return self.saves[-1]

    def last(self) -> Path | None:
        """The newest checkpoint that is complete: of this run, or the one that it went on from."""
        return newest(self.saves) or self.resume

    @property
    def how(self) -> str:
        last = self.last()
        return f"--resume {last}" if last is not None else ""

    def go_on(self) -> str:
        """UX: "; go on with --resume run/step-10 (loads under any plan)"."""
        return go_on(self.how)

    def result(self, ranks: int, spent: Sequence[Mapping[str, float]]) -> RunResult:
        measured = tuple(spent) if len(self.done) > 1 else ()
        return RunResult(tuple(self.done), ranks, self.saves[-1] if self.saves else None, self.dtype, measured)


def newest(saves: Iterable[Path]) -> Path | None:
    """The last of these checkpoints, in the order in which they were begun, that is complete."""
    return next((s for s in reversed(list(saves)) if folders.whole(s) is not None), None)


def go_on(how: str) -> str:
    """UX: "; go on with --resume run/step-10 (loads under any plan)"; nothing where there is no checkpoint."""
    return f"; go on with {how} (loads under any plan)" if how else ""


def another_ended(number: int, how: str) -> ExecutionError:
    """Of a rank that `lost` another one in step `number`. `how`: see `go_on`."""
    return ExecutionError(f"another rank ended at step {number}, so this one was stopped{go_on(how)}")


def no_number(number: int, stepped: Sequence[Stepped]) -> str:
    """ "the loss is nan at step 14, which rank 2 made first (operator log)", from what all ranks say of the step."""
    loss = sum(stepped[0].losses) / len(stepped[0].losses)
    what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of the gradients is {stepped[0].grad_norm}"
    made = next(((r, s.origin) for r, s in enumerate(stepped) if s.origin), None)
    where = f", which rank {made[0]} made first ({made[1]})" if made else f" on rank {_holder(stepped)}"
    return f"the {what} at step {number}{where}"


def _holder(stepped: Sequence[Stepped]) -> int:
    """The first rank whose own loss is no number."""
    return next((r for r, s in enumerate(stepped) if not all(map(math.isfinite, s.own_losses))), 0)
