"""Why a plan cannot run, decided before anything starts: from its fields, its lowering, and the local form of every op.

    the plan's own words ─▶ lowering ─▶ local form of each op      no process is started, no tensor is made

What passes here runs: the ranks build the same local forms from the same program. The list of reasons is closed, and
stands in docs/refusals.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ...errors import Unsupported
from ...graph.ir import Graph
from ...lower import lower
from ...lower.program import Program
from ...plan.copies import copies_of, copies_that_run
from ...plan.model import Action, Plan
from ...plan.problem import Recipe
from ...plan.schedules import rows, workers
from ...plan.schedules.dealt import DEALT

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "samples": "The samples of a step do not fall into equal micro-batches.",
        "schedule": "The schedule says what no rank carries out: transfers or single ops written out, pipes "
        "that are no copies of each other, replicas that take turns under other schedules than 1f1b, gpipe and pipedream.",
        "flush": "Weights change without a flush, but not as in pipedream or 2bw: under another schedule, with a weight in "
        "stages of other numbers of replicas, or several stages on one device.",
        "frozen": "Some parameters are frozen, or activations in front of them are kept from step to step.",
        "rewritten": "The plan speaks of a rewritten graph: the module that is run computes the original one.",
        "meshes": "A device stands twice in one mesh.",
        "weighted": "A cut with weights, whose parts are unequal on purpose, of a window or of a product that runs as SUMMA.",
        "factor": "An op is cut along what its kernel must see whole: a window, recurrent time steps, a sort, a state.",
        "layout": "A tensor rests cut where the ops around it have no border.",
        "storage": "A gradient or optimizer state rests cut otherwise than the parameter, and not just further.",
        "statistic": "An op is cut inside a statistic that only whole values give: classes of a loss of one token, "
        "the vocabulary of an embedding bag; or two stages renew the same running statistics.",
        "summa": "An op runs as SUMMA that is no product of rows with a matrix, or on a grid that is not square.",
        "backward": "Gradients of one op that are made at once are cut otherwise than each other, or than their op where it is made "
        "of parameters alone or runs as SUMMA; or a gradient that another stage takes rests otherwise than its value.",
        "halo": "A window is cut into parts smaller than what a neighbour reads of them.",
        "code": "The graph is a recorded profile, whose ops have no code, or one whose backward is written out or that has none.",
        "op": "An op is of a kind that has no rule for running on parts.",
        "integers": "An op draws integers at random, which would differ from plan to plan.",
        "scale": "For `verify` only: no scaled-down form has the same structure; verify at full size.",
    }
)
"""Every reason why a legal plan can be priced but not run, and what it means."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why one plan cannot run."""

    reason: str
    """A key of `REASONS`."""
    sentence: str
    """What is in the way, where, and what would run."""


def why_not(plan: Plan, graph: Graph) -> str | None:
    """Why `plan` cannot run, in one sentence; None if it can.

    Raises:
        InputError: the plan is not one of this graph.
    """
    return next((r.sentence for r in _refusals(plan, graph)), None)


def refusals(plan: Plan, graph: Graph) -> tuple[Refusal, ...]:
    """Every reason, each sentence once; empty if the plan can run. See `why_not`."""
    return tuple(dict.fromkeys(_refusals(plan, graph)))


def must_run(plan: Plan, graph: Graph) -> None:
    """Raises Unsupported, with the sentence of `why_not`, unless the plan can run."""
    for refusal in _refusals(plan, graph):
        raise Unsupported(refusal.sentence, reason=refusal.reason)


def _refusals(plan: Plan, graph: Graph) -> Iterator[Refusal]:
    without = _of_graph(graph)
    if without is not None:
        yield without
        return
    said = False
    for refusal in (*_of_fields(plan), *_of_schedule(plan)):
        said = True
        yield refusal
    if said and plan.rewritten is not None:
        return  # its names are those of another graph
    try:
        program = lower(graph, plan, Recipe(plan.samples, compute_dtype="float32"))
    except Unsupported as error:
        yield Refusal(error.reason, error.message)
        return
    yield from _of_weights(plan, program)
    yield from _of_statistics(plan, program, graph)
    yield from _of_ops(program, graph)


def _of_graph(graph: Graph) -> Refusal | None:
    """Graphs that say what to price, not what to run."""
    if graph.ops and not any(op.call for op in graph.ops):
        return Refusal(
            "code", "the plan is for a recorded profile, whose ops have prices but no code: plan the model itself"
        )
    if graph.training == "none":
        return Refusal(
            "code", "the plan is for a graph without training, and what runs is a training step: plan the model itself"
        )
    if graph.training == "explicit":
        return Refusal(
            "code",
            "the plan places the ops of a backward that is written out, while torch derives the one that runs: plan the model "
            "itself",
        )
    return None


def _of_fields(plan: Plan) -> Iterator[Refusal]:
    """What the executor would leave out without a word."""
    micro_batches = max(1, plan.schedule.micro_batches)
    if plan.samples % micro_batches:
        yield Refusal(
            "samples",
            f"{plan.samples} samples do not fall into {micro_batches} equal micro-batches, which is priced, not run: "
            f"take {-(-plan.samples // micro_batches) * micro_batches} samples",
        )
    endless = workers(plan.schedule, len(plan.stages))
    if not plan.schedule.weights.flush and not endless:
        yield Refusal(
            "flush",
            f"schedule {plan.schedule.name} changes weights without a flush, but has no order of updates: take pipedream or 2bw",
        )
    if plan.schedule.weights.flush and endless:
        yield Refusal(
            "flush",
            f"schedule {plan.schedule.name} never flushes, but the plan's weights say that it does: set flush = false",
        )
    if plan.frozen or plan.cached:
        name = min(plan.frozen or plan.cached)
        yield Refusal("frozen", f"the plan freezes {name}, which is priced, not run: leave frozen and cached empty")
    if plan.rewritten is not None:
        yield Refusal(
            "rewritten", "the plan is for a rewritten graph, which is priced, not run: plan without rewriting"
        )
    for k, stage in enumerate(plan.stages):
        if stage.deal and plan.schedule.name not in (*DEALT, "pipedream"):
            yield Refusal(
                "schedule",
                f"stage {k} deals micro-batches to its replicas in turn, which runs under schedules {', '.join(DEALT)} and "
                "pipedream only: cut the samples instead",
            )
        if len(set(stage.mesh.devices)) != len(stage.mesh.devices):
            yield Refusal(
                "meshes",
                f"stage {k} holds a device twice, which only the simulator can price: give each part its own",
            )


def _of_schedule(plan: Plan) -> Iterator[Refusal]:
    schedule = plan.schedule
    table = rows(plan)
    endless = bool(workers(schedule, len(plan.stages)))
    for action in (a for row in table for pair in row.actions for a in (pair if isinstance(pair, tuple) else (pair,))):
        if not _runs(action, endless):
            yield Refusal(
                "schedule",
                f"schedule {schedule.name} has actions {action.kind}, which are priced, not run: take 1f1b",
            )
            return


def _runs(action: Action, endless: bool) -> bool:
    known = ("F", "B", "UPDATE") if endless else ("F", "B", "I", "W", "REDUCE")
    return action.kind in known and isinstance(action.on, int)


def _of_weights(plan: Plan, program: Program) -> Iterator[Refusal]:
    """What weights that change without a flush cannot be."""
    from ..stage.gathers import gathers_of

    weights = plan.schedule.weights
    if weights.flush:
        return
    copies = copies_of(plan)
    for code in program.stages:
        own = copies[code.stage]
        for p in code.params:
            other = next((copies[s] for s in p.shared if copies[s].replicas != own.replicas), None)
            if other is not None:
                yield Refusal(
                    "flush",
                    f"{p.name} is in stages {own.stage} and {other.stage}, whose {own.replicas} and {other.replicas} replicas "
                    "change it after other numbers of micro-batches without a flush: give them equally many, or one stage",
                )
                return
        if not weights.stash and gathers_of(code):
            yield Refusal(
                "flush",
                f"stage {code.stage} gathers its weights for use, and its backward would read others than were gathered: "
                "set stash = true, or let parameters rest whole",
            )
            return
    devices = [d for code in program.stages for d in code.mesh.devices]
    if len(set(devices)) < len(devices):
        yield Refusal(
            "flush", f"device {_twice(devices)} has several stages, which change without a flush: give each its own"
        )


def _of_statistics(plan: Plan, program: Program, graph: Graph) -> Iterator[Refusal]:
    """Running statistics are renewed in one place."""
    copies = copies_that_run(graph, plan)
    place: dict[str, int] = {}
    for code in program.stages:
        for op in (i.on for segment in code.segments for i in segment.forward if i.on in graph.running):
            name, own = graph.running[op].mean, copies[code.stage]
            if (other := place.setdefault(name, own.base)) != own.base:
                yield Refusal(
                    "statistic",
                    f"stages {other} and {own.base} both renew the running statistics {name}: put the ops of this norm into one "
                    "stage",
                )
                return


def _twice(devices: Sequence[int]) -> int:
    return next(d for k, d in enumerate(devices) if d in devices[:k])


def _of_ops(program: Program, graph: Graph) -> Iterator[Refusal]:
    """Builds the local form of every op as ranks do when they start; those at the ends of a mesh speak for all."""
    import torch

    from ..ops.calls import Place, sites_of
    from ..ops.twins import localise
    from ..ranks.mesh_groups import Groups, MeshView, ranks_of

    ranks = ranks_of(program)
    for code in program.stages:
        for device in dict.fromkeys((code.mesh.devices[0], code.mesh.devices[-1])):
            place = Place(graph, MeshView(code.mesh, ranks[device], ranks, Groups()), torch.device("cpu"))
            for site in (site for segment in code.segments for site in sites_of(segment, place)):
                try:
                    localise(site)
                except Unsupported as error:
                    yield Refusal(error.reason or "op", error.message)
