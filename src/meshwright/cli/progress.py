"""What a command is doing, on stderr: three lines redrawn in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING

from .._words import number
from ..report.lines import encodable
from .screen import Screen, wants_color, width_of

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

REDRAWS_PER_SECOND = 8
SECONDS_BETWEEN_LINES = 10.0
BAR_CELLS = 35


class Progress:
    """Use as a context manager. `line` sets one of the lines; `search` is the callback that planners call."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lines: dict[str, str] = {}
        self._live: Live | None = None
        self._started = time.monotonic()
        self._last = -SECONDS_BETWEEN_LINES
        self._phase, self._phase_started = "", self._started
        self.planner = ""
        self.unit = "s"
        """Of the best objective so far."""
        """What searches, for the line of the search."""

    def __enter__(self) -> Progress:
        if not self._screen.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            color = wants_color(sys.stderr, self._screen.color)
            console = Console(stderr=True, no_color=not color, highlight=False, width=width_of(sys.stderr))
            self._live = Live(
                console=console, transient=True, refresh_per_second=REDRAWS_PER_SECOND, get_renderable=self._drawn
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, name: str, text: str, done: str = "") -> None:
        """Set the line called `name`; `done` stands at its right end."""
        self._lines[name] = f"{name:9}{text:70}{done:>20}".rstrip()
        if self._live is None:
            self._say(self._lines[name], force=not done and len(self._lines) == 1)

    def search(self, phase: str, done: int, total: int, best: float) -> None:
        """Progress of a search; `total` 0 = not known."""
        if phase != self._phase:
            self._phase, self._phase_started = phase, time.monotonic()
        spent = time.monotonic() - self._phase_started
        share = min(1.0, done / total) if total else 0.0
        filled = round(share * BAR_CELLS)
        bar = "━" * filled + ("╸" if filled < BAR_CELLS else "") + " " * (BAR_CELLS - filled - 1)
        words = [
            f"{self.planner or phase:8}{bar if total else ''}",
            f"{done:,} of {total:,}" if total else f"{done:,} priced",
        ]
        if 0 < best < inf:
            words.append(f"best {number(best)} {self.unit}".rstrip())
        # A search may end before it has seen all points, so this is the most that it can take.
        left = f", at most {_seconds(spent * (1 - share) / share)} left" if share > 0.02 and spent > 1 else ""
        words.append(f"{_seconds(spent)}{left}")
        self._lines["search"] = "search   " + "   ".join(words)
        if self._live is None:
            self._say(self._lines["search"].replace(bar, "").replace("    ", " "))

    def _drawn(self) -> Text:
        from rich.text import Text

        encoding = sys.stderr.encoding or "ascii"
        return Text("\n".join(encodable(t, encoding) for t in list(self._lines.values())[-3:]), no_wrap=True)

    def _say(self, text: str, force: bool = False) -> None:
        now = time.monotonic()
        if self._screen.quiet or (not force and now - max(self._last, self._started) < SECONDS_BETWEEN_LINES):
            return
        self._last = now
        self._screen.note(" ".join(text.split()))


def _seconds(spent: float) -> str:
    """Tenths at the start, whole seconds later: more would only flicker."""
    return f"{spent:.1f} s" if spent < 9.95 else f"{spent:,.0f} s"
