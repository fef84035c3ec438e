"""From a schedule's name and arguments to its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

from ...errors import InputError
from ..model import Action, Plan, Row, Schedule
from .breadth_first import breadth_first
from .gpipe import gpipe
from .interleaved import interleaved
from .one_f_one_b import one_f_one_b
from .zero_bubble import zb_h1

Generator = Callable[[int, int, int, int], tuple[Action, ...]]
"""(p, m, r, v) -> actions of rank r."""

GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        "gpipe": lambda p, m, r, v: gpipe(p, m, r),
        "1f1b": lambda p, m, r, v: one_f_one_b(p, m, r),
        "interleaved": lambda p, m, r, v: interleaved(p, m, r, v),
        "bfs": lambda p, m, r, v: breadth_first(p, m, r, v),
        "zb-h1": lambda p, m, r, v: zb_h1(p, m, r),
    }
)
CHUNKED = frozenset({"interleaved", "bfs"})
"""Names that take v > 1."""
SPLIT = frozenset({"zb-h1"})
"""Names whose backward is two actions, I and W."""


def conditions(name: str, p: int, m: int, v: int = 1, args: Mapping[str, int | float | str] | None = None) -> str:
    """Why this table does not exist, in one sentence; "" if it does."""
    if name not in GENERATORS:
        return f'no schedule "{name}": there are {", ".join(GENERATORS)}, custom and dataflow'
    for field in args or {}:
        return f'schedule {name} has no argument "{field}": it takes {"v" if name in CHUNKED else "none"}'
    if p < 1 or m < 1 or v < 1:
        return f"schedule {name} needs at least 1 rank, micro-batch and chunk: got p = {p}, m = {m}, v = {v}"
    if v > 1 and name not in CHUNKED:
        return f"schedule {name} has one stage a rank: v = {v} needs {' or '.join(sorted(CHUNKED))}"
    if name == "interleaved" and v > 1 and m % p:
        up = -(-m // p) * p
        return f"schedule interleaved needs micro-batches in a multiple of its {p} ranks: {m} are not, {up} would be"
    return ""


def generate(name: str, p: int, m: int, v: int = 1, **args: int | float | str) -> tuple[Row, ...]:
    """One row for each of `p` ranks, with `m` micro-batches and `v` chunks a rank.

    Raises:
        InputError: unknown name or argument, or a combination that the schedule is not defined for.
    """
    problem = conditions(name, p, m, v, args)
    if problem:
        raise InputError(problem)
    return _generate(name, p, m, v)


@lru_cache(maxsize=64)
def _generate(name: str, p: int, m: int, v: int) -> tuple[Row, ...]:
    make = GENERATORS[name]
    return tuple(Row((r,), make(p, m, r, v)) for r in range(p))


def chunks_of(schedule: Schedule) -> int:
    """Stages a rank: the argument "v" of the schedule, 1 if it has none."""
    v = schedule.args.get("v", 1)
    if not isinstance(v, int) or v < 1:
        raise InputError(f"schedule {schedule.name}: v = {v!r} must be a whole number of chunks, 1 or more")
    return v


def rows(plan: Plan) -> tuple[Row, ...]:
    """Rows of a plan: its own for "custom", none for "dataflow", generated for all other names.

    Raises:
        InputError: stages that do not divide into v a rank, or what `generate` refuses.
    """
    schedule = plan.schedule
    if schedule.name in ("custom", "dataflow"):
        return schedule.rows
    v = chunks_of(schedule)
    stages = len(plan.stages)
    if stages % v:
        raise InputError(f"schedule {schedule.name}: {stages} stages do not divide into v = {v} a rank")
    rest = {name: value for name, value in schedule.args.items() if name != "v"}
    return generate(schedule.name, stages // v, schedule.micro_batches, v, **rest)
