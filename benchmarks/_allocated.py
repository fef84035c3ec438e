"""What one rank really allocates during a step: every allocation of torch's CPU allocator, with who it is for.

torch.profiler reports each block that the allocator hands out and takes back (address, bytes, time). A block counts as

    weights       a parameter at rest (or its master, where both are one)
    optimizer     a master of its own, or optimizer state
    gradients     a master's gradient, or a buffer that lasts (in which gradients are summed)
    activations   any other block that outlives the action (one forward, one backward, the update) that made it
    workspace     any other block

Blocks that other libraries allocate for themselves (scratch of oneDNN, buffers of gloo) do not go through the allocator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import constants_of
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.runtime import Runtime
from meshwright.graph.ir import Graph
from meshwright.graph.source import ModelSource
from meshwright.graph.zoo import Shrink
from meshwright.lower.program import Program
from meshwright.plan.model import Plan

CATEGORIES = ("weights", "gradients", "optimizer", "activations", "workspace")
MARK = "mark "
LET_GO_SECONDS = 2e-3
TRIES = 5


@dataclass(frozen=True)
class Trial:
    program: Program
    graph: Graph
    plan: Plan
    source: ModelSource
    seq: int
    dtype: str
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    bucket_bytes: int
    shrink: Shrink | None = None


@dataclass(frozen=True)
class Peak:
    """The largest live bytes of the measured step."""

    by: Mapping[str, float]
    during: str
    """The action that ran: F3, B0, update."""
    largest: tuple[tuple[int, str, str], ...] = ()
    """(bytes, category, action that made it) of the largest blocks alive at the peak."""
    rows: tuple[tuple[str, float, float], ...] = ()
    """(action, bytes alive when it begins, most bytes alive while it runs)."""

    @property
    def total(self) -> float:
        return sum(self.by.values())


def measured(measure_once: Callable[[], list[Peak]]) -> list[Peak]:
    """Of each rank. Now and then torch's profiler hands over a record without a single allocation: then once more.

    Raises:
        RuntimeError: no try gave a record of every rank.
    """
    for _ in range(TRIES):
        found = measure_once()
        if all(peak.total > 0 for peak in found):
            return found
    raise RuntimeError(f"torch's profiler recorded no allocation in {TRIES} runs")


def measure(context: Context, trial: Trial) -> Peak:
    torch.set_num_threads(1)
    plan = trial.plan
    count = max(1, plan.schedule.micro_batches)
    given: dict[str, Any] = {"dtype": trial.dtype, "shrink": trial.shrink}
    module, _ = trial.source.build(trial.graph.samples, trial.seq, device="cpu", **given)
    generator = torch.Generator().manual_seed(0)
    batch = [trial.source.random_inputs(trial.graph.samples, trial.seq, generator, **given) for _ in range(count)]
    constants = constants_of(trial.graph, module)
    del module
    with _freed_here(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        runtime = Runtime(
            trial.program, trial.graph, plan, Values(0), constants, trial.optimizer,
            context.hardware, context.groups, rank=context.rank, bucket_bytes=trial.bucket_bytes,
        )  # fmt: skip
        held: dict[str, set[int]] = {}

        def gradients(*_: Any) -> None:
            found = [m.grad for m in runtime.masters.values() if m.grad is not None]
            held["gradients"] = {x.untyped_storage().data_ptr() for x in found}

        runtime.optimizer.register_step_pre_hook(gradients)
        for number, local in runtime.locals.items():
            local.runner = _Marked(local.runner, number)  # type: ignore[assignment]
        for k in range(2):
            with _mark("gradients" if k else "warm-up"):
                pass
            runtime.gradients(batch)
            with _mark("update"):
                runtime.update()
        with _mark("end"):
            pass
        held["weights"] = {
            x.untyped_storage().data_ptr() for local in runtime.locals.values() for x in local.params.values()
        }
        masters = {m.untyped_storage().data_ptr() for m in runtime.masters.values()}
        states = {
            x.untyped_storage().data_ptr()
            for state in runtime.optimizer.state.values()
            for x in state.values()
            if isinstance(x, Tensor)
        }
        held["optimizer"] = (masters | states) - held["weights"]
    return _peak(found.profiler.kineto_results.experimental_event_tree(), held)  # type: ignore[union-attr]


class _Marked:
    """A stage runner whose actions leave marks in the profile."""

    def __init__(self, runner: Any, stage: int) -> None:
        self._runner, self._stage = runner, stage

    def forward(self, flight: Any, **options: Any) -> None:
        with _mark(f"F{self._stage}.{flight.moment.micro_batch}"):
            self._runner.forward(flight, **options)

    def backward(self, flight: Any, *args: Any, **options: Any) -> None:
        with _mark(f"B{self._stage}.{flight.moment.micro_batch}"):
            self._runner.backward(flight, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


@contextmanager
def _freed_here() -> Iterator[None]:
    """The profiler sees this thread's frees alone: let gloo's thread drop what it holds of a collective first."""
    wait = dist.Work.wait

    def patient(work: dist.Work, *args: Any) -> Any:
        done = wait(work, *args)
        time.sleep(LET_GO_SECONDS)
        return done

    dist.Work.wait = patient  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        dist.Work.wait = wait  # type: ignore[method-assign]


@dataclass
class _Block:
    nbytes: int
    made_in: str
    number: int
    ended: int | None = None
    category: str = ""


def _tag(alive: Mapping[int, list[_Block]], category: str, addresses: set[int]) -> None:
    for address in addresses:
        for block in alive.get(address, ()):
            block.category = category


@contextmanager
def _mark(name: str) -> Iterator[None]:
    with record_function(MARK + name):
        pass
    yield


def _walk(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        yield from _walk(node.children)


def _peak(tree: Any, held: Mapping[str, set[int]]) -> Peak:
    """Plays the allocations of the second step."""
    events = []
    for node in _walk(tree):
        if node.name.startswith(MARK):
            events.append((node.start_time_ns, 0, node.name.removeprefix(MARK), 0))
        elif "Allocation" in str(node.tag):
            events.append((node.start_time_ns, node.extra_fields.ptr, "", node.extra_fields.alloc_size))
    events.sort(key=lambda e: e[0])
    alive: dict[int, list[_Block]] = {}  # by address; frees and new uses of an address may be seen in either order
    total = most = 0
    action, number, measuring = "", 0, False
    snapshot: list[_Block] = []
    resting: list[_Block] = []
    during, at = "", 0
    rows: list[list[Any]] = []
    for _, address, mark, nbytes in events:
        if mark:
            action, number = mark, number + 1
            if mark == "update" and measuring:
                _tag(alive, "gradients", held["gradients"])
            if mark == "gradients":
                resting = [block for found in alive.values() for block in found]
            if mark == "end":
                for block in resting:
                    if block.ended is None:
                        block.category = "gradients"  # what lasts all step long, unless it is one of these
                _tag(alive, "weights", held["weights"])
                _tag(alive, "optimizer", held["optimizer"])
            measuring = (measuring or mark == "gradients") and mark != "end"
            if measuring:
                rows.append([mark, total, total])
            continue
        blocks = alive.setdefault(address, [])
        if nbytes > 0:
            blocks.append(_Block(nbytes, action, number))
        elif blocks:
            blocks.pop(0).ended = number
        total += nbytes
        if measuring:
            rows[-1][2] = max(rows[-1][2], total)
            if total > most:
                most, during, at = total, action, number
                snapshot = [block for found in alive.values() for block in found]
    by = dict.fromkeys(CATEGORIES, 0.0)
    largest = []
    for block in snapshot:
        passing = "workspace" if block.number == at and block.ended == at else "activations"
        category = block.category or passing
        by[category] += block.nbytes
        largest.append((block.nbytes, category, block.made_in))
    return Peak(by, during, tuple(sorted(largest, reverse=True)[:200]), tuple(map(tuple, rows)))  # type: ignore[arg-type]
