"""From a schedule's name and arguments to its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from ...errors import InputError
from ..model import Plan, Row, Schedule
from .asynchronous import Worker, double_buffered_workers, pipedream_workers
from .dealt import DEALT, dealt_rows
from .kinds import KINDS, Args, Kind, Value, pipes_of, rank_of, replicas_of

GENERATORS: Mapping[str, Kind] = KINDS


def conditions(name: str, p: int, m: int, v: int = 1, args: Args | None = None) -> str:
    """Why this table does not exist, in one sentence; "" if it does."""
    if name not in KINDS:
        return f'no schedule "{name}": there are {", ".join(KINDS)}, custom and dataflow'
    kind = KINDS[name]
    for field, value in (args or {}).items():
        if field not in kind.args:
            takes = ", ".join([*(["v"] if kind.chunks != 1 else []), *kind.args]) or "none"
            return f'schedule {name} has no argument "{field}": it takes {takes}'
        default = kind.args[field]
        wanted: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, wanted) or isinstance(value, bool):
            return f'schedule {name}: argument "{field}" is {value!r}, it must be like {default!r}'
    if p < 1 or m < 1 or v < 1:
        return f"schedule {name} needs at least 1 rank, micro-batch and chunk: got p = {p}, m = {m}, v = {v}"
    if kind.chunks == 1 and v > 1:
        chunked = sorted(other for other, k in KINDS.items() if k.chunks == 0)
        return f"schedule {name} has one stage a rank: v = {v} needs {', '.join(chunked[:-1])} or {chunked[-1]}"
    full: Args = {**kind.args, **(args or {})}
    fixed = _fixed_chunks(kind, full)
    if fixed and v != fixed:
        return f"schedule {name} has {fixed} stages a rank: got v = {v}"
    wants = kind.asks(p, m, v, full)
    return f"schedule {name} needs {wants}" if wants else ""


def generate(name: str, p: int, m: int, v: int | None = None, **args: Value) -> tuple[Row, ...]:
    """One row for each of `p` ranks (PipeDream: for each replica of each stage), with `m` micro-batches.

    Args:
        v: stages a rank; None = what the schedule has, 1 where it takes any.
        args: of the schedule, see `kinds.KINDS`; those not given have their defaults.

    Raises:
        InputError: unknown name or argument, or a combination that the schedule is not defined for.
    """
    if v is None:
        v = (_fixed_chunks(KINDS[name], args) or 1) if name in KINDS else 1
    problem = conditions(name, p, m, v, args)
    if problem:
        raise InputError(problem)
    return _generate(name, p, m, v, tuple(sorted({**KINDS[name].args, **args}.items())))


@lru_cache(maxsize=64)
def _generate(name: str, p: int, m: int, v: int, args: tuple[tuple[str, Value], ...]) -> tuple[Row, ...]:
    return tuple(Row((r,), actions) for r, actions in enumerate(KINDS[name].make(p, m, v, dict(args))))


def links(name: str, p: int, v: int | None = None, **args: Value) -> list[tuple[int, int]]:
    """Pairs of stages (from, to) between which forward values go: within a pipe, from each stage to the next."""
    stages = p * (v if v is not None else _fixed_chunks(KINDS[name], args) or 1)
    borders = range(p, stages, p) if KINDS[name].lay == "pipes" else ()
    return [(s - 1, s) for s in range(1, stages) if s not in borders]


def pipes(schedule: Schedule) -> int:
    """Copies of the model whose stages this schedule runs side by side."""
    kind = KINDS.get(schedule.name)
    return 1 if kind is None or kind.lay != "pipes" else pipes_of(schedule.args)


def home(schedule: Schedule, p: int, stage: int) -> int:
    """The rank, of p, that holds a stage."""
    return rank_of(schedule.name, p, stage, schedule.args) if schedule.name in KINDS else stage % p


def chunks_of(schedule: Schedule) -> int:
    """Stages a rank: what the schedule has, else its argument "v", 1 if it has none."""
    kind = KINDS.get(schedule.name)
    v = schedule.args.get("v", (_fixed_chunks(kind, schedule.args) or 1) if kind is not None else 1)
    if not isinstance(v, int) or v < 1:
        raise InputError(f"schedule {schedule.name}: v = {v!r} must be a whole number of chunks, 1 or more")
    return v


def plain(schedule: Schedule) -> Schedule:
    """The same schedule without the arguments that say what it has anyway: the chunks of one that has a fixed number, defaults."""
    kind = KINDS.get(schedule.name)
    if kind is None:
        return schedule
    fixed = _fixed_chunks(kind, schedule.args)
    idle = {**kind.args, **({"v": fixed} if fixed else {})}
    return replace(schedule, args={k: x for k, x in schedule.args.items() if k not in idle or idle[k] != x})


def rows(plan: Plan) -> tuple[Row, ...]:
    """Rows of a plan: its own for "custom", none for "dataflow", generated for all other names.

    Where replicas take turns (`Stage.deal`) in a step with a flush, each has a row of its own, and actions name copies of
    stages (`copies.copies_of`) instead of stages.

    Raises:
        InputError: stages that do not divide into v a rank, or what `generate` refuses.
    """
    replicas = [stage.mesh.size(stage.deal) if stage.deal else 1 for stage in plan.stages]
    if max(replicas) > 1 and plan.schedule.name in DEALT:
        return dealt_rows(plan.schedule.name, replicas, max(1, plan.schedule.micro_batches))
    return rows_of(plan.schedule, len(plan.stages))


def rows_of(schedule: Schedule, stages: int) -> tuple[Row, ...]:
    """The same for a schedule over `stages` stages."""
    if schedule.name in ("custom", "dataflow"):
        return schedule.rows
    v = chunks_of(schedule)
    if stages % v:
        raise InputError(f"schedule {schedule.name}: {stages} stages do not divide into v = {v} a rank")
    rest = {name: value for name, value in schedule.args.items() if name != "v"}
    return generate(schedule.name, stages // v, schedule.micro_batches, v, **rest)


def workers(schedule: Schedule, stages: int) -> tuple[Worker, ...]:
    """Who runs what without end, of pipedream and 2bw; none of all others, whose steps end with a flush."""
    if schedule.name == "pipedream":
        return pipedream_workers(replicas_of(schedule.args, stages), max(1, schedule.weights.update_every))
    if schedule.name == "2bw":
        return double_buffered_workers(stages, schedule.micro_batches)
    return ()


def _fixed_chunks(kind: Kind, args: Args) -> int:
    """Stages a rank, where the schedule leaves no choice; 0 where it takes any v."""
    if kind.lay == "pipes":
        f = args.get("f", 1)
        return pipes_of(args) if isinstance(f, int) else 2
    return kind.chunks
