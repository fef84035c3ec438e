"""Ctrl-C: the first one ends the search and keeps its best plan, the second one ends the process with 130.

        first Ctrl-C                          second
search  KeyboardInterrupt in the planner,     exit 130
        which returns its best so far
writing is finished                           exit 130
before  exit 130: nothing to keep
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

STOPPED = 130


class Interrupt:
    """Use as a context manager around a command; `count` says how often Ctrl-C came."""

    def __init__(self) -> None:
        self.count = 0
        self.writing = False
        self._before: object = None

    def __enter__(self) -> Interrupt:
        self._before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            os._exit(STOPPED)
        if not self.writing:
            raise KeyboardInterrupt
