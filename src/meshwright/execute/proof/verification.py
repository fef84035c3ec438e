"""Does the plan compute what one device computes? Every rank's loss and gradients against the user's own module.

scaled-down model ─ lower ─▶ program ─ CPU ranks ─▶ losses, gradients, updated weights, collectives counted
                └─ user's unmodified eager module, one process ─▶ loss, gradients ─┐
                                                                      compared element by element
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import ExecutionError
from ...graph.ir import Graph
from ...graph.source import ModelSource
from ...lower import lower
from ...lower.program import Program, unrolled
from ...plan.model import Plan
from ...plan.problem import Recipe
from ..ops.params import Values
from ..ops.site import own_part
from ..ranks.mesh_groups import Groups, MeshView, ranks_of
from ..ranks.pool import Pool
from ..step.actions import forwards_of, parted
from ..step.optimizer import SGD
from ..step.runtime import MicroBatch, Runtime
from . import late
from .counting import Call, Counting, expected
from .refusal import must_run
from .scale import full_size, scaled

if TYPE_CHECKING:
    from ..ranks.worker import Context

LIMIT = 1e-5
"""Largest |difference| of a gradient over the larger of its own largest element and `FLOOR` of the model's."""
FLOOR = 1e-3
ROUNDING = 16.0
"""A loss or gradient may differ by so many times what one process differs from float64: a plan sums in another order.
Over the matrix the most that was seen is 9, in a norm behind fifteen products."""
BLIND = 0.1
"""A missing or doubled sum changes a gradient by more than this share of it: where `ROUNDING` allows as much, nothing is
proved, and it is said so. Over the matrix it allows at most 0.0011."""
LOSS_LIMIT = 1e-5
"""Relative."""
BUCKET = 1 << 14
"""Bytes of gradients summed together: small, so that a model scaled down has several buckets."""
STEP = 1.0
"""Learning rate of the plain step that checks the update: w − g."""


class Mismatch(ExecutionError):
    """The plan does not compute what one device computes."""

    code = "mismatch"


@dataclass(frozen=True, slots=True)
class Reference:
    """One process's answer."""

    losses: tuple[float, ...]
    gradients: Mapping[str, Tensor]
    """Of the mean loss over the micro-batches."""
    rounding: Mapping[str, float]
    """Largest difference of each gradient to the one that the same module has in float64."""
    values: Values
    loss_rounding: float = 0.0
    """The same of the losses."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    equal: bool
    loss: tuple[float, float]
    """(one process, the plan)."""
    gradients: int
    """Tensors compared, on every rank that holds a part."""
    worst: tuple[str, float]
    """(parameter, error): the largest."""
    limit: float
    collectives: Mapping[str, tuple[int, int]]
    """Kind -> (predicted, ran) in one step, over all ranks."""
    problems: tuple[str, ...] = ()
    """One sentence each; empty if equal."""
    scaled: str = ""
    """What was scaled down for the check."""
    not_verified: tuple[str, ...] = ()
    seconds: float = 0.0
    updates: int = 0
    """Without a flush: those of the stage that updates most, each compared; 0 = one step with a flush."""

    def check(self) -> VerifyResult:
        """Raises Mismatch with the first problem unless equal."""
        if not self.equal:
            raise Mismatch(self.problems[0])
        return self


@dataclass(frozen=True, slots=True)
class Task:
    """What each rank gets."""

    program: Program
    graph: Graph
    plan: Plan
    values: Values
    constants: Mapping[str, Tensor]
    batch: Sequence[MicroBatch]
    dropout: bool = False
    """The user's module draws other numbers than a plan does: off while comparing with it."""
    bucket_bytes: int = BUCKET


@dataclass(slots=True)
class Answer:
    """What each rank gives back."""

    losses: dict[int, float]
    """By micro-batch, those that the rank computed."""
    gradients: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """(stage, parameter) -> own part, in the layout of its state."""
    updated: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """(stage, parameter) -> own part at rest after one plain step."""
    calls: Counter[Call] = field(default_factory=Counter)


def answer(context: Context, task: Task) -> Answer:
    """Runs in each rank: one step, counted."""
    return answered(runtime_of(context, task), task.batch)


def runtime_of(context: Context, task: Task) -> Runtime:
    """This rank's, before the plain step."""
    return Runtime(
        task.program,
        task.graph,
        task.plan,
        task.values,
        task.constants,
        SGD(lr=STEP),
        context.hardware,
        context.groups,
        rank=context.rank,
        dropout=task.dropout,
        bucket_bytes=task.bucket_bytes,
    )


def answered(runtime: Runtime, batch: Sequence[MicroBatch]) -> Answer:
    """One step, counted. Gradients and weights are those of the runtime, whose next step changes them."""
    found = Answer({})

    def seen(stage: int, name: str, grad: Tensor) -> None:
        found.gradients[stage, name] = grad.detach().cpu()

    unseen, runtime.seen = runtime.seen, seen
    with Counting() as counting:
        found.losses = {k: loss for (_, k), loss in runtime.gradients(batch).items()}
        runtime.update()
    runtime.seen = unseen
    found.calls = counting.calls
    for number, local in runtime.locals.items():
        found.updated |= {(number, name): x.detach().cpu() for name, x in local.params.items()}
    return found


def constants_of(graph: Graph, module: nn.Module) -> dict[str, Tensor]:
    """Buffers of a real module and constants baked by capture, by the graph's names."""
    buffers = dict(module.named_buffers(remove_duplicate=False))
    kept = {name for r in graph.running.values() for name in (r.mean, r.var, r.count)}
    wanted = {t.name for t in graph.tensors if t.role == "buffer"} | kept
    found = {name: x for name, x in buffers.items() if name in wanted}
    for name, array in graph.values.items():
        if name in graph.tensor and name not in found:
            found[name] = torch.as_tensor(array).to(getattr(torch, graph.tensor[name].dtype))
    return found


def loss_of(output: Any) -> Tensor:
    """The scalar that a module's output holds: a tensor, a "loss" key or attribute, or the first scalar of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output["loss"]  # type: ignore[no-any-return]
    if hasattr(output, "loss"):
        return output.loss  # type: ignore[no-any-return]
    return next(x for x in output if isinstance(x, Tensor) and x.dim() == 0)


def load_values(graph: Graph, module: nn.Module, values: Values) -> None:
    """Writes first values into a user's module."""
    named = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for described in graph.params():
            named[described.name].copy_(values.whole(described).to(named[described.name].dtype))


def reference(graph: Graph, module: nn.Module, batch: Sequence[MicroBatch], values: Values) -> Reference:
    """Losses and gradients of the user's module in this process, in its dtype, for the mean loss of the micro-batches."""
    losses, grads = _one_process(graph, module, batch, values)
    rounding, loss_rounding = dict.fromkeys(grads, 0.0), 0.0
    wide = [{k: x.double() if x.is_floating_point() else x for k, x in one.items()} for one in batch]
    with contextlib.suppress(RuntimeError):  # some kernels (grouped products) have no float64 form
        exact_losses, exact = _one_process(graph, copy.deepcopy(module).double(), wide, values)
        rounding = {name: float((g - exact[name]).abs().max()) if g.numel() else 0.0 for name, g in grads.items()}
        loss_rounding = max(abs(a - b) for a, b in zip(losses, exact_losses, strict=True))
    return Reference(losses, grads, rounding, values, loss_rounding)


def _one_process(
    graph: Graph, module: nn.Module, batch: Sequence[MicroBatch], values: Values
) -> tuple[tuple[float, ...], dict[str, Tensor]]:
    load_values(graph, module, values)
    module.zero_grad(set_to_none=True)
    losses = []
    for one in batch:
        loss = loss_of(module(**one))
        (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
    named = dict(module.named_parameters(remove_duplicate=False))
    grads: dict[str, Tensor] = {}
    for described in graph.params():
        grad = named[described.name].grad
        grads[described.name] = torch.zeros(described.shape) if grad is None else grad.detach().clone()
    return tuple(losses), grads


def compare(task: Task, truth: Reference, answers: Sequence[Answer], promised: Program | None = None) -> VerifyResult:
    """Every rank's answer against one process's. `promised`: the program whose collectives must have run."""
    problems: list[str] = []
    mean = sum(truth.losses) / len(truth.losses)
    found = {k: loss for a in answers for k, loss in a.losses.items()}
    for rank, a in enumerate(answers):
        for k, got in a.losses.items():
            wanted = truth.losses[k]
            if not abs(got - wanted) <= max(LOSS_LIMIT * max(1.0, abs(wanted)), ROUNDING * truth.loss_rounding):
                problems.append(f"rank {rank} has loss {got:.7g} in micro-batch {k}, one process has {wanted:.7g}")
    if sorted(found) != list(range(len(truth.losses))):
        problems.append(f"ranks computed the losses of micro-batches {sorted(found)} of {len(truth.losses)}")
    worst, compared, blind = ("", 0.0), set(), set()
    ranks = ranks_of(task.program)
    sizes = {name: float(g.abs().max()) if g.numel() else 0.0 for name, g in truth.gradients.items()}
    largest = max(sizes.values(), default=0.0)
    for code in task.program.stages:
        views = [MeshView(code.mesh, rank, ranks, Groups()) for rank in sorted({ranks[d] for d in code.mesh.devices})]
        for p in code.params:
            gradient = truth.gradients[p.name]
            after = truth.values.whole(task.graph.tensor[p.name]).sub(gradient, alpha=STEP)
            scale = max(sizes[p.name], FLOOR * largest, 1e-30)
            rounding = ROUNDING * truth.rounding[p.name]
            if rounding > BLIND * scale:
                blind.add(p.name)
            scale = max(scale, rounding / LIMIT)
            compared.add(p.name)
            for view in views:
                own = answers[view.rank]
                error = _error(own.gradients.get((code.stage, p.name)), own_part(gradient, p.state, view), scale)
                if not error <= worst[1]:
                    worst = (p.name, error)
                if not error <= LIMIT:
                    problems.append(
                        f"the gradient of {p.name} differs by {error:.1e} on rank {view.rank}, limit {LIMIT:.0e}"
                    )
                want = own_part(after, p.rest, view)
                problems += _updated(p.name, own.updated.get((code.stage, p.name)), want, view.rank, scale)
    missing = [t.name for t in task.graph.params() if t.name not in compared]
    problems += [f"no stage holds parameter {name}" for name in missing]
    counts, odd = _collectives(task, answers, promised or task.program)
    problems += odd
    return VerifyResult(
        not problems,
        (mean, sum(found.values()) / len(found) if found else float("nan")),
        len(compared),
        worst,
        LIMIT,
        counts,
        tuple(problems),
        not_verified=tuple(f"the gradient of {name}: float32 keeps no digit of it" for name in sorted(blind)),
    )


def _error(got: Tensor | None, want: Tensor, scale: float) -> float:
    if got is None or got.shape != want.shape:
        return float("inf")
    if want.numel() == 0:
        return 0.0
    difference = float((got.to(want.dtype) - want).abs().max())
    return difference / scale if difference == difference else float("inf")


def _updated(name: str, got: Tensor | None, want: Tensor, rank: int, scale: float) -> list[str]:
    """The weight at rest after w − g; rounding of w adds to the gradient's own error."""
    size = float(want.abs().max()) if want.numel() else 0.0
    allowed = STEP * LIMIT * scale + 4 * torch.finfo(want.dtype).eps * size
    error = _error(got, want, 1.0)
    if error <= allowed:
        return []
    return [f"{name} after one step differs by {error:.1e} on rank {rank}, limit {allowed:.0e}"]


def _collectives(
    task: Task, answers: Sequence[Answer], promised: Program
) -> tuple[Mapping[str, tuple[int, int]], list[str]]:
    counts: dict[str, list[float]] = {}
    problems = []
    for rank, a in enumerate(answers):
        want = expected(
            promised,
            task.graph,
            forwards_of(task.plan, promised),
            rank,
            task.bucket_bytes,
            parted=parted(task.plan),
        )
        ran = Counter({call: n for call, n in a.calls.items() if call[0] not in ("send", "recv")})
        for calls, column in ((want, 0), (ran, 1)):
            for (kind, _, members), n in calls.items():
                counts.setdefault(kind, [0.0, 0.0])[column] += n / len(members)
        for kind, size, members in sorted(set(want) | set(ran)):
            call = kind, size, members
            if want[call] != ran[call]:
                problems.append(
                    f"rank {rank}: {kind.replace('_', '-')} of {size:,} bytes over ranks {members}: "
                    f"{want[call]} predicted, {ran[call]} ran"
                )
    return {kind: (round(a), round(b)) for kind, (a, b) in sorted(counts.items())}, problems


def check(task: Task, truth: Reference, pool: Pool, promised: Program | None = None) -> VerifyResult:
    """Runs `task` on the pool's ranks and compares."""
    start = time.monotonic()
    answers = pool.run("meshwright.execute.proof.verification:answer", task)
    return replace(compare(task, truth, answers, promised), seconds=time.monotonic() - start)


def verify(
    plan: Plan,
    graph: Graph,
    source: ModelSource,
    *,
    seq: int = 0,
    ranks: int = 4,
    whole: bool = False,
    seed: int = 0,
    pool: Pool | None = None,
    progress: Callable[[str], None] = lambda phase: None,
) -> VerifyResult:
    """Loss and every gradient of `plan` on CPU ranks of this machine, against one process.

    Args:
        plan: of `graph`, for any number of devices.
        seq: tokens a sample at full size; 0 = the model's default.
        ranks: about how many processes; each mesh axis needs 2 of them.
        whole: the plan and the model as they are, nothing scaled down.
        progress: told what is going on: "scale", "one process", "ranks".

    Raises:
        Unsupported: a plan that can be priced but not run, in one sentence.
        ExecutionError: a rank died or did not answer.
    """
    start = time.monotonic()
    must_run(plan, graph)
    progress("scale")
    small = (
        full_size(plan, graph, source, seq or source.default_seq) if whole else scaled(plan, graph, source, seq, ranks)
    )
    program = unrolled(lower(small.graph, small.plan, Recipe(small.plan.samples, compute_dtype="float32")), small.graph)
    progress("one process")
    count = small.graph.samples
    module, _ = source.build(count, small.seq, small.dtype, device="cpu", shrink=small.shrink, attention="eager")
    generator = torch.Generator().manual_seed(seed)
    batch = [
        source.random_inputs(count, small.seq, generator, shrink=small.shrink, dtype=small.dtype)
        for _ in range(max(1, small.plan.schedule.micro_batches) * late.steps_of(small.plan))
    ]
    values = Values(seed, "uneven")
    task = Task(program, small.graph, small.plan, values, constants_of(small.graph, module), batch)
    flush = small.plan.schedule.weights.flush
    truth = reference(small.graph, module, batch, values) if flush else None
    progress("ranks")
    with contextlib.nullcontext(pool) if pool is not None else Pool(small.ranks) as used:
        result = check(task, truth, used) if truth is not None else late.check(task, module, used)
    unproved = (*small.not_verified, *result.not_verified)
    return replace(result, scaled=small.words, not_verified=unproved, seconds=time.monotonic() - start)
