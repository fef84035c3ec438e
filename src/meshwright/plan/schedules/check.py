"""Can a table get stuck when a send waits for its receive (rendezvous, no buffers)?

Between two computations X and Y of a rank stands one exchange: it sends what X made and receives what is due, all posted
together, as 1F1B runtimes batch a send with the opposite receive. The rank goes on when every message of the exchange is
through; a message is through when both sides have posted it. (One after the other instead, 1F1B itself would stop: rank
r in its send forward, rank r + 1 in its send backward.)

    rank 0   F0 | send F0 | F1 | send F1, receive B0 | B0 | ...
    rank 1   | receive F0 | F0 | ...                                 (last rank: F0 makes no message)

Where a message is used long after it is made (chunks in turn), a receive posted just before its use would hold up the
sender, and a circle of such waits is a deadlock. So `exchanges` walks through the table once on a clock and puts a
message into both lists at the moment it is made: the sender's exchange after X, the receiver's next exchange. All lists
then agree with one order of events. `stuck` takes nothing on trust: it plays any lists with zero buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from ...errors import InputError
from ..model import Action, Row
from .text import action_text

UNIT: Mapping[str, float] = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
"""Clock of the walk: any positive times give lists without a deadlock, these put receives where they are due."""

Key: TypeAlias = tuple[str, int, int]
"""(kind, stage, micro-batch) of one computation; kind B also stands for I, which gives the same gradient."""


@dataclass(frozen=True, slots=True)
class Message:
    """A boundary value (forward) or its gradient that one rank sends to another."""

    forward: bool
    src_stage: int
    dst_stage: int
    micro_batch: int
    src: int
    dst: int

    @property
    def key(self) -> Key:
        """The computation that makes it."""
        return ("F" if self.forward else "B", self.src_stage, self.micro_batch)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one rank posts at once between two computations."""

    sends: tuple[Message, ...] = ()
    receives: tuple[Message, ...] = ()


Exchanges: TypeAlias = tuple[tuple[Exchange, ...], ...]
"""Per row one exchange before each action, and one after the last."""


def exchanges(rows: Sequence[Row], links: Sequence[tuple[int, int]] | None = None) -> Exchanges:
    """Where each message of a table is sent and received, without a deadlock.

    Args:
        rows: a schedule; ranks are positions in it.
        links: pairs of stages (from, to) between which forward values go; None = each stage to the next.

    Raises:
        InputError: an order that cannot run, however messages go; names the action each rank stops at.
    """
    table = Table(rows, links)
    posted: list[list[tuple[list[Message], list[Message]]]] = [[([], []) for _ in (*row.actions, 0)] for row in rows]
    at, ends, clock = [0] * len(rows), [0.0] * len(rows), 0.0
    running: list[tuple[Key, ...]] = [()] * len(rows)
    done: set[Key] = set()
    while True:
        for r in range(len(rows)):
            if running[r] and ends[r] <= clock:
                done.update(running[r])
                for message in (m for key in running[r] for m in table.sends(key, r)):
                    posted[r][at[r]][0].append(message)
                    posted[message.dst][at[message.dst]][1].append(message)
                running[r] = ()
        # Messages first, starts second: a message made at this moment belongs before what starts at this moment.
        busy = []
        for r, row in enumerate(rows):
            idle = ends[r] <= clock
            while idle and at[r] < len(row.actions) and all(k in done for k in table.needs(row.actions[at[r]])):
                action = row.actions[at[r]]
                at[r] += 1
                running[r] = tuple(keys_of(action))
                length = sum(UNIT.get(a.kind, 0.0) * a.span for a in members(action))
                ends[r] = clock + length
                idle = length == 0
            if ends[r] > clock:
                busy.append(ends[r])
        if not busy:
            break
        clock = min(busy)
    if any(at[r] < len(row.actions) for r, row in enumerate(rows)):
        waiting = [a + (a == len(row.actions)) for a, row in zip(at, rows)]
        raise InputError("no order of messages can run this table: " + _places(rows, waiting))
    return tuple(tuple(Exchange(tuple(s), tuple(q)) for s, q in lists) for lists in posted)


def stuck(rows: Sequence[Row], lists: Exchanges, links: Sequence[tuple[int, int]] | None = None) -> str:
    """Plays the lists with zero buffers: where they stop, in one sentence, or "" when all ranks reach their end.

    A rank also stops at a computation whose input it has neither received nor made, and at a send of what it has not made.
    """
    table = Table(rows, links)
    at = [0] * len(rows)
    have: list[set[Key]] = [set() for _ in rows]
    sent, received = set(chain.from_iterable(own[0].sends for own in lists)), set[Message]()
    received.update(chain.from_iterable(own[0].receives for own in lists))
    moved = True
    while moved:
        moved = False
        for r, row in enumerate(rows):
            while at[r] <= len(row.actions):
                now = lists[r][at[r]]
                if not all(m in sent and m in received for m in (*now.sends, *now.receives)):
                    break
                if not all(m.key in have[r] for m in now.sends):
                    break
                have[r].update(m.key for m in now.receives)
                if at[r] < len(row.actions):
                    action = row.actions[at[r]]
                    if not have[r].issuperset(table.needs(action)):
                        break
                    have[r].update(keys_of(action))
                    sent.update(lists[r][at[r] + 1].sends)
                    received.update(lists[r][at[r] + 1].receives)
                at[r] += 1
                moved = True
    if all(at[r] > len(row.actions) for r, row in enumerate(rows)):
        return ""
    return "ranks wait for each other: " + _places(rows, at)


def deadlock_free(rows: Sequence[Row], links: Sequence[tuple[int, int]] | None = None) -> bool:
    """Does this table run to its end with zero-buffer sends, exchanged as `exchanges` says?"""
    try:
        return not stuck(rows, exchanges(rows, links), links)
    except InputError:
        return False


class Table:
    """Who computes what, and what each computation needs."""

    def __init__(self, rows: Sequence[Row], links: Sequence[tuple[int, int]] | None) -> None:
        self.rank = {key: r for r, row in enumerate(rows) for action in row.actions for key in keys_of(action)}
        if links is None:
            stages = {stage for _, stage, _ in self.rank}
            links = [(s, s + 1) for s in sorted(stages) if s + 1 in stages]
        self.after: dict[int, list[int]] = {}
        self.before: dict[int, list[int]] = {}
        for src, dst in links:
            self.after.setdefault(src, []).append(dst)
            self.before.setdefault(dst, []).append(src)

    def needs(self, action: Action | tuple[Action, Action]) -> Iterator[Key]:
        """Computations that must be done first; both of a pair start together."""
        own = set(keys_of(action))
        for kind, stage, j in own:
            if kind == "F":
                found = [("F", s, j) for s in self.before.get(stage, ())]
            elif kind == "B":
                found = [("F", stage, j), *(("B", s, j) for s in self.after.get(stage, ()))]
            else:
                found = [("B", stage, j)]
            yield from (key for key in found if key not in own)

    def sends(self, key: Key, r: int) -> Iterator[Message]:
        """Messages that leave rank `r` when `key` is done: to every rank that computes with its result."""
        kind, stage, j = key
        if kind == "W":
            return
        forward = kind == "F"
        for other in (self.after if forward else self.before).get(stage, ()):
            peer = self.rank.get((kind, other, j), r)
            if peer != r:
                yield Message(forward, stage, other, j, r, peer)


def members(action: Action | tuple[Action, Action]) -> tuple[Action, ...]:
    return action if isinstance(action, tuple) else (action,)


def keys_of(action: Action | tuple[Action, Action]) -> list[Key]:
    return [
        ("B" if a.kind == "I" else a.kind, a.on, j)
        for a in members(action)
        if a.kind in UNIT and isinstance(a.on, int)
        for j in range(a.micro_batch, a.micro_batch + a.span)
    ]


def _places(rows: Sequence[Row], at: Sequence[int]) -> str:
    waiting = [(r, row.actions[at[r]]) for r, row in enumerate(rows) if at[r] < len(row.actions)]
    ended = [r for r, row in enumerate(rows) if at[r] == len(row.actions)]
    texts = [f"rank {r} before {action_text(action)}" for r, action in waiting]
    return ", ".join(texts + [f"rank {r} after its last action" for r in ended])
