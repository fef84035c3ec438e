"""Legality of a plan's schedule: name, arguments, rows, and which devices its ranks stand for."""

from __future__ import annotations

from itertools import combinations, pairwise

from ..errors import InputError
from .model import Action, Plan
from .schedules.check import exchanges
from .schedules.rows import chunks_of, conditions, home, pipes

_STAGE_KINDS = frozenset({"F", "B", "I", "W", "UPDATE", "REDUCE", "GATHER", "FREE"})


def check_schedule(plan: Plan) -> None:
    """Raises InputError unless the schedule exists for this number of stages and its rows name what is there."""
    schedule = plan.schedule
    if schedule.micro_batches < 1:
        raise InputError(f"schedule {schedule.name}: {schedule.micro_batches} micro-batches, it must have at least 1")
    if schedule.micro_batches > plan.samples:
        raise InputError(
            f"schedule {schedule.name}: {plan.samples} samples cannot make {schedule.micro_batches} micro-batches: "
            f"each needs 1, so at most {plan.samples}"
        )
    weights = schedule.weights
    if weights.update_every < 0 or weights.sync_every < 0 or weights.distance < -1:
        raise InputError(
            f"schedule {schedule.name}: weights count micro-batches, so update_every and sync_every are 0 or more"
        )
    if schedule.name == "custom":
        _check_rows(plan)
        return
    if schedule.rows:
        raise InputError(f'schedule {schedule.name} makes its own rows: rows are for "custom" only')
    if schedule.name == "dataflow":
        return
    wanted, found = pipes(schedule), len({stage.pipe for stage in plan.stages})
    if found != wanted:
        raise InputError(
            f"schedule {schedule.name} runs {_several(wanted, 'pipe')}: the plan has {found if wanted > 1 else 'several'}"
        )
    v = chunks_of(schedule)
    rest = {name: value for name, value in schedule.args.items() if name != "v"}
    if len(plan.stages) % v:
        raise InputError(f"schedule {schedule.name}: {len(plan.stages)} stages do not divide into v = {v} a rank")
    p = len(plan.stages) // v
    problem = conditions(schedule.name, p, schedule.micro_batches, v, rest)
    if problem:
        raise InputError(problem)
    if len({stage.pipe for stage in plan.stages}) > 1:
        for s, stage in enumerate(plan.stages):
            if stage.pipe != s // p:
                raise InputError(f"schedule {schedule.name}: stage {s} is of pipe {stage.pipe}, it must be {s // p}")
    _check_ranks(plan, p)


def _several(n: int, word: str) -> str:
    return f"one {word}" if n == 1 else f"{n} {word}s"


def _check_ranks(plan: Plan, p: int) -> None:
    for s, stage in enumerate(plan.stages[p:], p):
        r = home(plan.schedule, p, s)
        # Of the first p stages each rank holds one, under the number of the rank.
        first = plan.stages[r].mesh.devices
        if stage.mesh.devices != first and tuple(stage.mesh.devices) != tuple(first):
            raise InputError(f"stages {r} and {s} are chunks of rank {r}: they must be on the same devices")
    spans = sorted((min(st.mesh.devices), max(st.mesh.devices), r) for r, st in enumerate(plan.stages[:p]))
    if all(a[1] < b[0] for a, b in pairwise(spans)):
        return
    own = [frozenset(stage.mesh.devices) for stage in plan.stages[:p]]
    for a, b in combinations(range(p), 2):
        shared = own[a] & own[b]
        if shared:
            raise InputError(
                f"stages {a} and {b} share device {min(shared)}: schedule {plan.schedule.name} needs its own devices for each rank"
            )


def _check_rows(plan: Plan) -> None:
    if not plan.schedule.rows:
        raise InputError('schedule "custom" has no rows')
    ran: set[tuple[str, int, int]] = set()
    for r, row in enumerate(plan.schedule.rows):
        for entry in row.actions:
            for action in entry if isinstance(entry, tuple) else (entry,):
                _check_action(plan, r, action, ran)
    if ran:
        _check_complete(plan, ran)
        if len({stage.pipe for stage in plan.stages}) == 1:
            exchanges(plan.schedule.rows)  # refuses an order that no messages can run


def _check_complete(plan: Plan, ran: set[tuple[str, int, int]]) -> None:
    """Each stage of a pipe runs the pipe's micro-batches forward and, if at all, backward: whole, or as I and W."""
    done: dict[tuple[str, int], set[int]] = {}
    for kind, at_stage, j in ran:
        done.setdefault((kind, at_stage), set()).add(j)
    pipes: dict[int, tuple[int, set[int]]] = {}
    for s, stage in enumerate(plan.stages):
        forward, whole, first, second = (done.get((kind, s), set()) for kind in "FBIW")
        at, wanted = pipes.setdefault(stage.pipe, (s, forward))
        if forward != wanted:
            j = min(forward ^ wanted)
            raise InputError(
                f"schedule rows: micro-batch {j} runs forward through only one of stages {at} and {s} of a pipe"
            )
        if first != second or whole & first:
            j = min((first ^ second) or (whole & first))
            raise InputError(
                f"schedule rows: micro-batch {j} runs backward through stage {s} neither as one B nor as one I and W"
            )
        if (whole | first) not in (forward, set()):
            j = min(forward ^ (whole | first))
            raise InputError(f"schedule rows: micro-batch {j} runs through stage {s} in one direction only")
    missing = set(range(plan.schedule.micro_batches)).difference(*(own for _, own in pipes.values()))
    if missing:
        raise InputError(
            f"schedule rows: micro-batch {min(missing)} of {plan.schedule.micro_batches} runs through no stage"
        )


def _check_action(plan: Plan, r: int, action: Action, ran: set[tuple[str, int, int]]) -> None:
    where = f"schedule row {r}, {action.kind} of {action.on}"
    if action.kind not in _STAGE_KINDS:
        return
    if not isinstance(action.on, int) or not 0 <= action.on < len(plan.stages):
        raise InputError(f"{where}: stages are numbered 0 to {len(plan.stages) - 1}")
    if action.kind not in ("F", "B", "I", "W"):
        return
    last = action.micro_batch + action.span
    if action.span < 1 or action.micro_batch < 0 or last > plan.schedule.micro_batches:
        raise InputError(f"{where}: micro-batches {action.micro_batch} to {last - 1} of {plan.schedule.micro_batches}")
    for j in range(action.micro_batch, last):
        key = (action.kind, action.on, j)
        if key in ran:
            raise InputError(f"{where}: micro-batch {j} runs twice")
        ran.add(key)
