"""Where the time of one rank goes: seconds by what it does, measured while it does it.

    with clock.span("backward"):          12.0 s
        with clock.span("all_reduce"):     2.5 s     backward 9.5, all_reduce 2.5

An inner span's seconds are taken off the outer one, so that the names add up to the time inside the outermost spans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
TRANSFER = "send"
"""Waiting for, or handing over, values of other stages."""


class Clock:
    """Spans of one thread. Costs under a microsecond a span; autograd runs a CPU's backward in the calling thread."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._open: list[str] = []
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def span(self, name: str) -> Clock:
        """Use it in a `with` statement."""
        self._turn()
        self._open.append(name)
        return self

    def __enter__(self) -> None:
        """The span began when it was asked for."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn()
        self._open.pop()

    def _turn(self) -> None:
        """What went by since the last turn belongs to the innermost span."""
        at = self._now()
        if self._open:
            name = self._open[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + at - self._since
        self._since = at

    def taken(self) -> Mapping[str, float]:
        """Seconds by name since the last call; what is open goes on."""
        self._turn()
        found, self._seconds = self._seconds, {}
        return found
