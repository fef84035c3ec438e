"""Checkpoints that are written while training goes on, and load under any plan.

    save     parts ─ copy ─▶ staging memory ─ thread, torch.distributed.checkpoint ─▶ NAME.part ─ rename ─▶ NAME
    NAME/    *.distcp, .metadata   weights (float32 masters) under their names in the user's module; what the optimizer
                                   keeps of "layers.0.weight" is "optimizer.exp_avg.layers.0.weight"; running statistics
             training.pt           hyperparameters of the optimizer's groups, scheduler, position in the data
             plan.json             the plan that wrote it
             meshwright.json       step, seed, ranks; written last

All ranks see one file system. Dropout hashes seed and step, so both go on alone; torch's own generators, which the user's
code may draw from, are saved per rank and restored where that rank exists again.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import ExecutionError, InputError, MeshwrightError, Unsupported
from ...plan.model import Plan
from ...plan.serial import save as save_plan
from ..ranks.lost import lost
from ..step.exchange import exchanged
from ..step.runtime import Runtime
from . import folders
from .box_planners import described, read, write
from .first import as_first
from .parts import Part

OPTIMIZER, GENERATOR = "optimizer.", "generator."
TRAINING, PLAN = "training.pt", "plan.json"


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint says of itself."""

    folder: Path
    step: int
    """Optimizer steps done."""
    seed: int
    ranks: int
    optimizer: str
    """Class of the optimizer that wrote it."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Position in the data, as the caller gave it to `Checkpoints.save`."""


def info(folder: str | Path) -> Saved:
    """Raises InputError: no complete checkpoint of that name."""
    about = folders.facts(Path(folder))
    data = _training(folders.whole(Path(folder)) or Path(folder))["data"]
    return Saved(Path(folder), about["step"], about["seed"], about["ranks"], about["optimizer"], data)


class Checkpoints:
    """Writes the checkpoints of one runtime, one at a time, on a thread and a process group beside the steps."""

    def __init__(self, runtime: Runtime, plan: Plan | None = None, scheduler: Any = None) -> None:
        """Collective over all ranks. `scheduler`: anything with `state_dict`, such as those of torch.optim.lr_scheduler."""
        self._runtime, self._plan, self._scheduler = runtime, plan, scheduler
        self._group = runtime.groups.aside()
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self.last: Path | None = None
        """The last one that is complete."""

    def save(self, folder: str | Path, data: Mapping[str, Any] | None = None) -> None:
        """Copies this rank's parts and returns; the copy is written while training goes on. Collective.

        Waits for the one before, if that is still being written. `data`: where the next step's samples begin.

        Raises:
            ExecutionError: the one before could not be written.
            Unsupported: the optimizer keeps something that is neither one number nor one number an element; `data` or the
                scheduler hold objects that torch.load would not give back.
        """
        self.wait()
        runtime = self._runtime
        runtime.settle()
        staged = {name: [p.staged() for p in parts] for name, parts in _everything(runtime).items()}
        training = _packed({
            "groups": _hyperparameters(runtime.optimizer),
            "scheduler": self._scheduler.state_dict() if self._scheduler is not None else None,
            "scheduler_class": _class(self._scheduler),
            "data": dict(data or {}),
        })  # fmt: skip
        about = {
            "step": runtime.step, "seed": runtime.seed, "ranks": _world(), "graph": runtime.program.graph,
            "optimizer": type(runtime.optimizer).__name__,
        }  # fmt: skip
        work = (Path(folder), staged, training, about)
        self._thread = threading.Thread(target=self._guarded, args=work, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> Path | None:
        """Until what was saved last is complete on disk; its folder. Raises ExecutionError if it could not be written,
        or what `lost` knows: another rank is gone."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        return self.last

    def _guarded(self, *work: Any) -> None:
        try:
            self._write(*work)
        except MeshwrightError as error:
            self._failed = error
        except Exception as error:  # told by `wait`, on the thread that trains
            self._failed = error if lost(error) else ExecutionError(f"{work[0]}: could not be written: {error}")

    def _write(self, target: Path, staged: dict[str, list[Part]], training: bytes, about: dict[str, Any]) -> None:
        part = folders.aside(target)

        def finish() -> None:
            (part / TRAINING).write_bytes(training)
            if self._plan is not None:
                save_plan(self._plan, part / PLAN)
            folders.publish(target, about)

        as_first(lambda: folders.begin(target), self._runtime.rank, self._group)
        write(staged, part, self._group)
        as_first(finish, self._runtime.rank, self._group)
        self.last = target


def load(runtime: Runtime, folder: str | Path, scheduler: Any = None) -> Saved:
    """Fills this rank's parts from a checkpoint written under any plan. Collective.

    Raises:
        InputError: no complete checkpoint, one of another model, of another optimizer or of another scheduler.
    """
    own = dict(_generators(runtime.rank))
    more = [(name, Part.whole(x)) for name, x in own.items()]
    more += [(h.name, h.part) for h in runtime.statistics.held()]
    saved = _load(list(_holdings(runtime)), runtime.optimizer, Path(folder), scheduler, more, _everyone())
    runtime.spread()
    _set_generators(own)
    runtime.step = saved.step
    return saved


def load_module(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: str | Path,
    names: Collection[str],
    scheduler: Any = None,
) -> Saved:
    """The same for a plain module on one process. `names`: its parameters and buffers that the plan knows; ties stand once.

    Raises:
        InputError: as `load`.
    """
    found = [_Holding(n, p, 0, Part.whole) for n, p in module.named_parameters() if n in names]
    more = [(n, Part.whole(b)) for n, b in module.named_buffers() if n in names]
    return _load(found, optimizer, Path(folder), scheduler, more, None)


def _load(
    holdings: Sequence[_Holding],
    optimizer: torch.optim.Optimizer,
    folder: Path,
    scheduler: Any,
    more: Sequence[tuple[str, Part]],
    group: dist.ProcessGroup | None,
) -> Saved:
    """`more`: what else is read, as far as the folder has it."""
    saved = info(folder)
    source = folders.whole(folder) or folder
    training = _checked(saved, _training(source), optimizer, scheduler)
    held = described(source)
    parts: dict[str, list[Part]] = {}
    for name, part in more:
        if name in held:
            parts.setdefault(name, []).append(part)
    keys = {name.removeprefix(OPTIMIZER).partition(".")[::2] for name in held if name.startswith(OPTIMIZER)}
    states: list[tuple[nn.Parameter, dict[str, Tensor]]] = []
    on_device = any(g.get("capturable") or g.get("fused") for g in training["groups"])
    for h in holdings:
        parts.setdefault(h.name, []).append(h.place(h.master.detach()))
        state: dict[str, Tensor] = {}
        for key in sorted(key for key, name in keys if name == h.name):
            name = f"{OPTIMIZER}{key}.{h.name}"
            shape, dtype = held[name]
            if shape == held.get(h.name, (None,))[0]:
                state[key] = torch.zeros_like(h.master, dtype=dtype, requires_grad=False)
                parts.setdefault(name, []).append(h.place(state[key]))
            else:
                state[key] = torch.zeros(shape, dtype=dtype, device=h.master.device if on_device else "cpu")
                parts.setdefault(name, []).append(Part.whole(state[key]))
        states.append((h.master, state))
    with torch.no_grad():
        read(parts, source, group)
    optimizer.state.clear()
    optimizer.state.update({master: state for master, state in states if state})
    for own, values in zip(optimizer.param_groups, training["groups"], strict=True):
        own.update(values)
    if scheduler is not None:
        scheduler.load_state_dict(training["scheduler"])
    return saved


def _checked(saved: Saved, training: Any, optimizer: torch.optim.Optimizer, scheduler: Any) -> Any:
    """Raises InputError unless the optimizer and scheduler can go on from what was saved."""
    kind = type(optimizer).__name__
    if saved.optimizer != kind:
        raise InputError(f"{saved.folder}: written by {saved.optimizer}, whose state {kind} cannot go on from")
    before, now = len(training["groups"]), len(optimizer.param_groups)
    if before != now:
        raise InputError(f"{saved.folder}: its optimizer had {before} groups of parameters, this one has {now}")
    if scheduler is not None and training["scheduler"] is None:
        raise InputError(f"{saved.folder}: written without a learning-rate scheduler")
    if training["scheduler"] is not None:
        wrote, goes_on = training.get("scheduler_class"), _class(scheduler)  # older checkpoints name no class
        if goes_on is None:
            raise InputError(
                f"{saved.folder}: written with the learning-rate scheduler {wrote or '(of a class it does not name)'}: "
                "give the same one to go on"
            )
        if wrote not in (None, goes_on):
            raise InputError(
                f"{saved.folder}: written with the learning-rate scheduler {wrote}, whose state {goes_on} cannot go on from"
            )
    return training


def _class(scheduler: Any) -> str | None:
    return type(scheduler).__name__ if scheduler is not None else None


# ------------------------------------------------------------- what is saved


@dataclass(frozen=True, slots=True)
class _Holding:
    """One parameter as this rank holds it."""

    name: str
    master: nn.Parameter
    stage: int
    place: Callable[[Tensor], Part]
    """What tensors of the master's shape are part of."""


def _holdings(runtime: Runtime) -> Iterator[_Holding]:
    """Several of one name where several of this rank's stages hold a tied weight."""
    for (stage, name), master in runtime.masters.items():
        param, shape = runtime.param(stage, name), runtime.graph.tensor[name].shape
        place = partial(Part.of, shape=shape, layout=param.state, view=runtime.locals[stage].view)
        yield _Holding(name, master, stage, place)


def _everything(runtime: Runtime) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {name: [Part.whole(state)] for name, state in _generators(runtime.rank)}
    for s in runtime.statistics.held():
        found.setdefault(s.name, []).append(s.part)
    apart = exchanged(runtime.program)  # held in unlike parts, which would overlap: the first stage writes its own
    for h in _holdings(runtime):
        if h.stage > min(apart.get(h.name, (h.stage,))):
            continue
        found.setdefault(h.name, []).append(h.place(h.master.detach()))
        for key, value in runtime.optimizer.state.get(h.master, {}).items():
            name = f"{OPTIMIZER}{key}.{h.name}"
            if value is None:
                continue
            if not isinstance(value, Tensor) or value.shape not in (h.master.shape, ()):
                kind = (
                    f"a tensor of shape {tuple(value.shape)}"
                    if isinstance(value, Tensor)
                    else f"a {type(value).__name__}"
                )
                raise Unsupported(
                    f"{type(runtime.optimizer).__name__} keeps {kind} as {key} of {h.name}: what can be saved under a plan is "
                    "one number, or one an element"
                )
            whole = value.shape != h.master.shape
            found.setdefault(name, []).append(Part.whole(value) if whole else h.place(value))
    return found


def _hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _packed(training: Mapping[str, Any]) -> bytes:
    """As of now, in a form that loads without running code."""
    buffer = io.BytesIO()
    try:
        torch.save(training, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:  # whatever pickling raises
        reason = str(error).strip().splitlines()[-1:]
        raise Unsupported(
            "the position in the data and the scheduler must consist of numbers, strings, tensors, lists and dicts to be "
            f"saved: {''.join(reason)}"
        ) from error
    return buffer.getvalue()


def _training(source: Path) -> dict[str, Any]:
    try:
        return torch.load(source / TRAINING, weights_only=True)  # type: ignore[no-any-return]
    except Exception as error:  # whatever unpickling a damaged file raises
        raise InputError(f"{source / TRAINING}: damaged: {error}") from error


def _generators(rank: int) -> Iterator[tuple[str, Tensor]]:
    """torch's own generators, one name a rank."""
    yield f"{GENERATOR}cpu.{rank}", torch.get_rng_state()
    if torch.cuda.is_available():
        yield f"{GENERATOR}cuda.{rank}", torch.cuda.get_rng_state()


def _set_generators(states: Mapping[str, Tensor]) -> None:
    for name, state in states.items():
        set_state = torch.set_rng_state if name.startswith(f"{GENERATOR}cpu.") else torch.cuda.set_rng_state
        set_state(state)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _everyone() -> dist.ProcessGroup | None:
    return dist.group.WORLD if _world() > 1 else None
