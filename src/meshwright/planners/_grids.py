"""What `summa_2d`, `tesseract_2_5d` and `cube_3d` share: which grids a cluster and a model allow, as candidates."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from functools import partial

from ..errors import Infeasible, InputError
from ..layouts.expert import Expert, expert_of
from ..plan.problem import Problem
from ._products import Scheme, choices_on
from ._schemes import Candidate, Judge, SchemePlanner
from .types import Json, Run


class GridPlanner(SchemePlanner):
    """A grid, copied over replicas that share the samples."""

    def __init__(
        self, *, q: int | None, data: int | None, micro_batch: int | None, recompute: str | None, judge: Judge
    ) -> None:
        super().__init__(judge=judge, micro_batch=micro_batch, recompute=recompute)
        for name, value in (("q", q), ("data", data)):
            if value is not None and value < 1:
                raise InputError(f"{self.info.name}: {name} = {value} must be 1 or more")
        self.q, self.data = q, data

    @abc.abstractmethod
    def schemes(self, devices: int) -> Iterator[Scheme]:
        """Grids of at most `devices` devices, smallest first; none of a single one."""

    @abc.abstractmethod
    def rule(self) -> str:
        """How many devices a grid takes, as in "q² devices"."""

    def search(self, problem: Problem, run: Run) -> Json:
        """Every grid that divides the devices, the heads and the samples; each micro-batch, each recomputation."""
        expert, found, reasons = expert_of(problem.graph), [], []
        for scheme, replicas in self._shapes(self.devices(problem)):
            reason = self._reason(problem, expert, scheme, replicas)
            if reason:
                reasons.append(reason)
                continue
            parts = replicas * scheme.parts
            for b in self.sizes(problem.recipe.samples // parts):
                for recompute in self.recomputed():
                    choices = partial(choices_on, problem.graph, expert, scheme, recompute)
                    found.append(Candidate(scheme.words(replicas), scheme.mesh(replicas), choices, parts, b, recompute))
        if not found:
            raise Infeasible(f"{self.info.name}: {reasons[0]}")
        self.priced(problem, run, found)
        return None

    def _shapes(self, devices: int) -> list[tuple[Scheme, int]]:
        """(grid, replicas) that together are all devices."""
        name = self.info.name
        able = [s for s in self.schemes(devices) if devices % s.size == 0]
        if self.data is not None:
            able = [s for s in able if devices // s.size == self.data]
        if self.q is not None:
            able = [s for s in able if s.q == self.q]
        if not able:
            wish = "".join(f", {k} = {v}" for k, v in (("q", self.q), ("data", self.data)) if v is not None)
            raise Infeasible(
                f"{name} needs {self.rule()}, or data-parallel copies of such a grid: {devices} devices are none"
                + (f" with {wish[2:]}" if wish else "")
            )
        return [(s, devices // s.size) for s in able]

    def _reason(self, problem: Problem, expert: Expert, scheme: Scheme, replicas: int) -> str:
        """Why a model cannot be cut so; "" if it can."""
        q, parts, samples = scheme.q, replicas * scheme.parts, problem.recipe.samples
        if expert.experts:
            return "experts have one matrix each, and the grid cuts products with one matrix for all: take megatron or grid"
        if samples % parts:
            return (
                f"whole sequences are dealt over {parts} token groups ({scheme.words(replicas)}), which do not divide the batch "
                f"of {samples:,}: take a multiple of {parts}"
            )
        if heads := expert.uncut_heads(q):
            return f"q = {q} does not divide {heads}"
        if q not in expert.tensor_degrees(q):
            return f"q = {q} divides the features of no matrix product, or products are not most of the work"
        return ""
