"""Schedules as torch.distributed.pipelining has them (2.13.0, schedules.py): under a name where its table is ours, else as a CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from ..errors import InputError
from ..plan.model import Action, ActionKind, Row, Schedule
from ..plan.schedules import GENERATORS, conditions, generate, home, rows_of, to_csv
from ..plan.schedules.kinds import Args

SINGLE = ("1F1B", "GPipe")
"""One stage a rank."""
LOOPED = ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble")
"""Stage s on rank s mod p."""
TURNED = ("ZBVZeroBubble", "DualPipeV")
"""Two stages a rank, there and back."""
NAMES = (*SINGLE, *LOOPED, *TURNED)
SPLIT = ("InterleavedZeroBubble", *TURNED)
"""The backward is two actions."""
ENDLESS = ("pipedream", "2bw", "dataflow")
TABLE = {False: "Interleaved1F1B", True: "ZBVZeroBubble"}
"""Beside a CSV the name says only where stages are: in a loop, or there and back."""


def named(schedule: Schedule, p: int, stages: int) -> str:
    """torch's name of the schedule with the same table; "" if there is none.

    Its GPipe runs backwards first to last; ours, last to first, is LoopedBFS with one stage a rank.
    """
    name, m, v = schedule.name, schedule.micro_batches, stages // p
    if name == "1f1b" or (name == "interleaved" and v == 1):
        return "1F1B" if m >= stages else ""
    if name == "interleaved":
        return "Interleaved1F1B" if m > p or schedule.args.get("short") else ""
    return {"gpipe": "LoopedBFS", "bfs": "LoopedBFS", "zb-v": "ZBVZeroBubble", "dualpipev": "DualPipeV"}.get(name, "")


def table(schedule: Schedule, stages: int) -> str:
    """The text of the CSV."""
    return to_csv(rows_of(schedule, stages))


def why_not(schedule: Schedule, p: int, stages: int) -> str:
    """Why no name and no CSV says this schedule; "" if one does."""
    if schedule.name in ENDLESS:
        return f"schedule {schedule.name} has no table with an end"
    if schedule.name in GENERATORS:
        v, args = stages // p, {k: x for k, x in schedule.args.items() if k != "v"}
        broken = conditions(schedule.name, p, schedule.micro_batches, int(schedule.args.get("v", v)), args)
        if broken or schedule.args.get("v", v) != v:
            return broken or f"schedule {schedule.name} says v = {schedule.args['v']}, but there are {v} stages a rank"
    ranks = tuple(home(schedule, p, s) for s in range(stages))
    if ranks not in (_loop(p, stages), _there_and_back(p, stages)):
        return f"schedule {schedule.name} places {stages // p} stages a rank otherwise than in a loop, or, with 2 a rank, there and back"
    other = [a for a in _actions(rows_of(schedule, stages)) if a.kind not in "FBIW" or a.span > 1]
    if other:
        return f"its table says {other[0].kind}{f' of {other[0].span} micro-batches' if other[0].span > 1 else ''}, torch's has F, B, I and W of one"
    return ""


def turned(schedule: Schedule, p: int, stages: int) -> bool:
    """Whether stages go there and back, not in a loop."""
    return stages > p and home(schedule, p, p) != 0


def split(schedule: Schedule, stages: int) -> bool:
    """Whether a backward is two actions."""
    kind = GENERATORS.get(schedule.name)
    return kind.split if kind is not None else any(a.kind == "I" for a in _actions(rows_of(schedule, stages)))


def schedule_of(name: str, p: int, m: int, v: int) -> Schedule:
    """Ours for a name of torch's; rows where there is no name for its table.

    Raises:
        InputError: torch refuses such a table; the sentence says what it needs.
    """
    stages = p * v
    if name in ("1F1B", "DualPipeV") and m < stages:
        raise InputError(f"schedule {name} needs at least as many micro-batches as stages: {m} for {stages}")
    if name == "1F1B":
        return Schedule("1f1b", m)
    if name == "GPipe" or (name == "LoopedBFS" and v == 1):
        return Schedule("gpipe", m)
    if name == "LoopedBFS":
        return Schedule("bfs", m, {"v": v})
    if name in TURNED:
        return Schedule("zb-v" if name == "ZBVZeroBubble" else "dualpipev", m)
    rounds = max(1, m // p)
    if m % rounds:
        near = m // rounds * rounds
        raise InputError(
            f"schedule {name} needs micro-batches in a multiple of its {rounds} rounds: {m} are not, {near} or {near + rounds} would be"
        )
    ours = Schedule("interleaved", m, {"v": v, "short": 1} if m == p else {"v": v})
    if name == "Interleaved1F1B" and v > 1 and m % p == 0:
        return ours
    zero_bubble = name == "InterleavedZeroBubble"
    return recognised(tuple(Row((r,), tuple(_in_rounds(p, m, r, v, zero_bubble))) for r in range(p)), p, m, False)


def recognised(rows: tuple[Row, ...], p: int, m: int, there_and_back: bool, hint: Schedule | None = None) -> Schedule:
    """The named schedule with this table, else one of its own.

    Args:
        hint: what whoever wrote the table called it, with arguments: believed only if it makes the table.

    Raises:
        InputError: a table of its own on stages that go there and back: only named schedules place them so.
    """
    stages = 1 + max((int(a.on) for a in _actions(rows)), default=0)
    v, odd = divmod(stages, p)
    if odd or len(rows) != p:
        raise InputError(
            f"its schedule table has {len(rows)} rows for {stages} stages, but there are {p} pipeline ranks: one row a rank"
        )
    if hint is not None and hint.name == "custom" and not there_and_back:
        return Schedule("custom", m, {}, rows)
    wanted = tuple(row.actions for row in rows)
    candidates: list[Schedule] = [*((hint,) if hint else ()), *_known(m, v)]
    for schedule in candidates:
        args = {k: x for k, x in schedule.args.items() if k != "v"}
        if schedule.name not in GENERATORS or conditions(schedule.name, p, m, v, args):
            continue
        if turned(schedule, p, stages) != there_and_back:
            continue
        if tuple(row.actions for row in generate(schedule.name, p, m, v, **args)) == wanted:
            return schedule
    if there_and_back:
        raise InputError(
            "its schedule table goes there and back over the ranks and is none of zb-v, v-half, v-min, hanayo"
        )
    return Schedule("custom", m, {}, rows)


def _known(m: int, v: int) -> Iterator[Schedule]:
    extra: Mapping[str, tuple[Args, ...]] = {"interleaved": ({}, {"short": 1}), "dapple": ({}, {"policy": "B"})}
    for name, kind in GENERATORS.items():
        if name in ENDLESS or kind.lay == "pipes":
            continue
        for args in extra.get(name, ({},)):
            yield Schedule(name, m, {**({"v": v} if v > 1 and not kind.chunks else {}), **args})


def _in_rounds(p: int, m: int, r: int, v: int, zero_bubble: bool) -> Iterator[Action]:
    """Rank r of Interleaved1F1B and InterleavedZeroBubble: micro-batches go through the chunks in rounds of equal size, the
    fewest that are p or more each; with zero bubble, each weight gradient waits for r backwards."""
    size, total = m // max(1, m // p), m * v
    warm_up = min(total, (v - 1) * size + (1 if zero_bubble else 2) * (p - 1 - r))
    forward, backward, weight = ([count() for _ in range(v)] for _ in range(3))

    def at(kind: ActionKind, k: int, counters: list[count[int]]) -> Action:
        chunk = k // size % v if kind == "F" else v - 1 - k // size % v
        return Action(kind, chunk * p + r, next(counters[chunk]))

    yield from (at("F", k, forward) for k in range(warm_up))
    for k in range(total):
        if warm_up + k < total:
            yield at("F", warm_up + k, forward)
        yield at("I" if zero_bubble else "B", k, backward)
        if zero_bubble and k >= r:
            yield at("W", k - r, weight)
    if zero_bubble:
        yield from (at("W", k, weight) for k in range(max(0, total - r), total))


def _actions(rows: tuple[Row, ...]) -> Iterator[Action]:
    for row in rows:
        for entry in row.actions:
            yield from entry if isinstance(entry, tuple) else (entry,)


def _loop(p: int, stages: int) -> tuple[int, ...]:
    return tuple(s % p for s in range(stages))


def _there_and_back(p: int, stages: int) -> tuple[int, ...]:
    return tuple(s if s < p else 2 * p - 1 - s for s in range(stages)) if stages == 2 * p else ()
