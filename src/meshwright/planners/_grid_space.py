"""The points of the grid: every legal dp × ep × cp × tp × pp × chunks × micro-batch × ZeRO × recompute, as plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from .._words import whole_number
from ..errors import InputError
from ..graph.ir import Graph
from ..layouts.again import known
from ..layouts.build import plan_of
from ..layouts.expert import Expert
from ..layouts.point import Point
from ..layouts.style import CONTEXTS
from ..layouts.units import Units
from ..plan.model import Plan
from ..plan.problem import Problem

RECOMPUTE = ("none", "light", "full")
CHUNKS = (2, 3, 4, 5, 6, 8)
LONG = 16384
"""Positions from which context parallelism is tried unasked: below, cutting samples or features costs less."""


KEYS: Mapping[str, str] = {
    "dp": "dp", "ep": "ep", "cp": "cp", "tp": "tp", "pp": "pp", "sp": "sequence", "vpp": "chunks", "chunks": "chunks", "zero": "zero",
    "micro-batch": "micro_batch", "micro_batch": "micro_batch", "recompute": "recompute", "schedule": "schedule",
    "context": "context", "replicate": "replicate", "reshard": "reshard", "whole-experts": "whole_experts",
}  # fmt: skip
"""What `--fix` and `--allow` call the fields."""


@dataclass(frozen=True)
class Space:
    """Which points there are for a problem."""

    problem: Problem
    expert: Expert
    fix: Mapping[str, int | str | bool]
    allow: Mapping[str, Sequence[int | str | bool]]

    @cached_property
    def units(self) -> Units:
        return Units(self.expert.atoms.folded)

    def points(self) -> Iterator[Point]:
        """All legal points, cheapest kind first so that of equals the simpler one is kept."""
        cluster, batch = self.problem.cluster, self.problem.recipe.samples
        devices = min(cluster.count, self.problem.limits.devices or cluster.count)
        node = cluster.node_size
        for cp, context in self._contexts(node):
            for ep in self._some("ep", self.expert.expert_degrees(node)):
                for tp in self._some("tp", self.expert.tensor_degrees(node)):
                    rest, odd = divmod(devices, cp * ep * tp)
                    if odd:
                        continue
                    for pp in self._some("pp", [n for n in _divisors(rest) if n <= self.units.blocks]):
                        dp = rest // pp
                        if self._some("dp", [dp]) and batch % (dp * ep) == 0:
                            yield from self._of(dp, tp, pp, cp, ep, context, batch // (dp * ep))

    def _contexts(self, most: int) -> list[tuple[int, str]]:
        """Degrees and kinds of context parallelism."""
        found = [(1, CONTEXTS[0])]
        if self._long:
            found += [(cp, kind) for cp in range(2, most + 1) for kind in self.expert.contexts(cp)]
        return [(n, kind) for n, kind in found if self._some("cp", [n]) and (n == 1 or self._some("context", [kind]))]

    @cached_property
    def _long(self) -> bool:
        """Whether context parallelism is worth a try, or was asked for."""
        if not {"cp", "context"}.isdisjoint({*self.fix, *self.allow}):
            return True
        shapes = (self.graph.tensor[t].shape for t in self.graph.inputs)
        return max((shape[1] for shape in shapes if len(shape) == 2), default=1) >= LONG

    def _of(self, dp: int, tp: int, pp: int, cp: int, ep: int, context: str, samples: int) -> Iterator[Point]:
        sizes = [b for b in _divisors(samples) if b & (b - 1) == 0]
        if "micro_batch" in self.fix:
            sizes = _divisors(samples)
        for b in self._some("micro_batch", sizes):
            for schedule, chunks in self._schedules(pp, samples // b):
                for sequence in self._some("sequence", [False, True] if tp > 1 else [False]):
                    for zero, replicate, reshard in self._stored(dp):
                        for recompute in self._recomputed():
                            yield Point(
                                dp, tp, pp, sequence, chunks, b, zero, recompute, schedule, cp, ep, context,
                                replicate=replicate, reshard=reshard,
                            )  # fmt: skip

    def _stored(self, dp: int) -> Iterator[tuple[int, int, bool]]:
        """ZeRO stage, copies of what it cuts, and whether weights are gathered again for the backward; of the latter two
        what is not asked for is not tried."""
        for zero in self._some("zero", [0, 1, 2, 3] if dp > 1 else [0]):
            asked: dict[str, list[Any]] = {
                "replicate": [n for n in _divisors(dp) if n < dp] if zero else [1],
                "reshard": [True, False] if zero == 3 else [True],
            }
            copies, again = (vs if {k} & {*self.fix, *self.allow} else vs[:1] for k, vs in asked.items())
            for replicate in self._some("replicate", copies):
                for reshard in self._some("reshard", again):
                    yield zero, replicate, reshard

    def _recomputed(self) -> list[str]:
        """What is recomputed: of `again.WORDS` only what the grid tries, unless others are asked for."""
        wishes = [self.fix["recompute"]] if "recompute" in self.fix else self.allow.get("recompute", RECOMPUTE)
        return [how for how in map(str, wishes) if known(how)]

    def _schedules(self, pp: int, m: int) -> list[tuple[str, int]]:
        if pp == 1:
            return [("1f1b", 1)] if self._some("chunks", [1]) else []
        found = [("1f1b", 1), ("gpipe", 1), ("zb-h1", 1)]
        if m % pp == 0:
            found += [("interleaved", v) for v in CHUNKS if v * pp <= self.units.blocks]
        found += [("bfs", v) for v in CHUNKS[:1] if v * pp <= self.units.blocks]
        return [(s, v) for s, v in found if self._some("schedule", [s]) and self._some("chunks", [v])]

    def _some(self, field: str, values: list) -> list:  # type: ignore[type-arg]
        """`values` that the user's wishes leave."""
        if field in self.fix:
            return [v for v in values if v == self.fix[field]]
        if field in self.allow:
            return [v for v in values if v in self.allow[field]]
        return values

    def plan(self, point: Point, parts: Sequence[int]) -> Plan:
        """The plan of a point; `parts[s]` = units of stage s = chunk · pp + rank."""
        return plan_of(self.expert, self.units, point, parts, self.problem.recipe.samples)

    def on_first_devices(self, plan: Plan) -> Plan:
        """All stages on the devices of the first: for pricing pieces, whose number says nothing of the cluster's size."""
        mesh = plan.stages[0].mesh
        return replace(plan, stages=tuple(replace(s, mesh=mesh) for s in plan.stages))

    @property
    def graph(self) -> Graph:
        return self.problem.graph


def read_fix(fix: Mapping[str, object]) -> dict[str, int | str | bool]:
    """Keys and values of `--fix` as fields of `Point`.

    Raises:
        InputError: a key that no point has.
    """
    known = {f.name for f in fields(Point)}
    out: dict[str, int | str | bool] = {}
    for key, value in fix.items():
        name = KEYS.get(key, key)
        if name not in known:
            raise InputError(
                f'grid has nothing called "{key}" to fix: it has {", ".join(k for k in KEYS if "_" not in k)}'
            )
        if isinstance(value, str) and (written := whole_number(value)) is not None:
            value = written
        if name in ("sequence", "reshard", "whole_experts"):
            value = bool(value) if not isinstance(value, str) else value.lower() in ("true", "yes", "on")
        if name == "context" and value not in CONTEXTS:
            raise InputError(f'no context "{value}" of context parallelism: it may be {", ".join(CONTEXTS)}')
        out[name] = value  # type: ignore[assignment]
    return out


def _divisors(n: int) -> list[int]:
    small = [k for k in range(1, int(n**0.5) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})
