"""The search's only contact with the world: best plan so far, bound, budget, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf, isnan, nan

import numpy as np

from ..plan.model import Plan
from .types import Budget, Choice, Considered

Progress = Callable[[str, int, int, float], None]
"""(phase, done, total, best objective so far)"""
EVERY = 0.05
"""Seconds between two calls of the progress callback in one phase: redraws faster than the eye cost search time."""


class Stop(Exception):
    """The budget is used up; `Planner.plan` turns it into the best so far."""


class SearchRun:
    """The `Run` of one call of `Planner.plan`."""

    def __init__(self, budget: Budget, seed: int, progress: Progress | None) -> None:
        self.rng = np.random.default_rng(seed)
        self.budget = budget
        self.progress = progress
        self.started = time.monotonic()
        self.evaluations = 0
        self.best: Choice | None = None
        self.proven: float | None = None
        self.frontier: list[Choice] = []
        self.considered: tuple[Considered, ...] = ()
        self.space = (0, 0)
        self.why_unproven = ""
        self._last = ("", -inf)

    def offer(self, objective: float, plan: Callable[[], Plan], memory: float = nan) -> None:
        """Keep this plan if it is better than all before; of equals the first stays, so that order decides nothing else."""
        if isnan(objective):
            raise ValueError("a planner offered a plan of objective nan: its cost model gave no number")
        if objective < (self.best.objective if self.best else inf):
            self.best = Choice(plan(), objective, memory)

    def bound(self, value: float) -> None:
        """A proven lower bound of the objective; the largest counts."""
        self.proven = value if self.proven is None else max(self.proven, value)

    def keep(self, choice: Choice) -> None:
        """One more point for `Result.frontier`."""
        self.frontier.append(choice)

    def show(self, rows: Sequence[Considered], space: tuple[int, int] = (0, 0)) -> None:
        """Rows for `Result.considered`; the last call counts."""
        self.considered, self.space = tuple(rows), space

    def left(self) -> float:
        """Seconds of the budget that are left, at least 0; inf without such a budget."""
        seconds = self.budget.seconds
        return inf if seconds is None else max(0.0, seconds - (time.monotonic() - self.started))

    def unproven(self, reason: str) -> None:
        """Why a search that went to its end proves no more, one sentence; shown unless the bound proves the plan after all."""
        self.why_unproven = reason

    def tick(self, evaluations: int = 1, phase: str = "", done: int = 0, total: int = 0) -> None:
        """Call after each piece of work.

        Raises:
            Stop: that was the last evaluation of the budget, or its seconds are over.
        """
        self.evaluations += evaluations
        now = time.monotonic()
        if self.progress is not None and (phase != self._last[0] or now - self._last[1] >= EVERY or done == total):
            self._last = (phase, now)
            self.progress(phase, done, total, self.best.objective if self.best else inf)
        limit, seconds = self.budget.evaluations, self.budget.seconds
        if limit is not None and evaluations and self.evaluations >= limit:
            raise Stop(f"stopped after {self.evaluations:,} evaluations, the budget")
        if seconds is not None and now - self.started >= seconds:
            raise Stop(f"stopped after {seconds:g} s, the budget")
