"""The points of the grid: every legal dp × ep × cp × tp × pp × chunks × micro-batch × ZeRO × recompute, as plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

from ..cluster.model import Mesh
from ..errors import InputError
from ..graph.ir import Graph
from ..lower.fold import Folded
from ..plan.lookup import span_entry
from ..plan.model import Plan, Schedule, Stage
from ..plan.problem import Problem
from ._expert_layout import CONTEXTS, CP, DP, EP, TP, Expert, Style

RECOMPUTE = ("none", "light", "full")
CHUNKS = (2, 3, 4, 5, 6, 8)
MARKS = {"ulysses": "+ul", "gather": "+kv", "halo": "+halo"}
LONG = 16384
"""Positions from which context parallelism is tried unasked: below, cutting samples or features costs less."""


@dataclass(frozen=True, slots=True)
class Point:
    """One layout of the whole cluster."""

    dp: int
    tp: int
    pp: int
    sequence: bool
    chunks: int
    micro_batch: int
    """Samples of one micro-batch on one replica."""
    zero: int
    recompute: str
    schedule: str
    cp: int = 1
    ep: int = 1
    context: str = "ulysses"
    """Says nothing where cp is 1."""
    whole_experts: bool = False
    """Experts are cut over tp as over ep, none inside: not tried by the grid itself."""

    @property
    def style(self) -> Style:
        return Style(
            self.tp, self.sequence, self.zero, self.recompute, self.cp, self.ep, self.context, self.whole_experts
        )

    @property
    def replicas(self) -> int:
        """Parts into which a micro-batch is cut."""
        return self.dp * self.ep

    @property
    def size(self) -> int:
        """Devices of one stage."""
        return self.dp * self.ep * self.cp * self.tp

    def mesh(self, rank: int) -> Mesh:
        """Devices of a pipeline rank; axes of length 1 other than dp and tp are left out."""
        axes = [(DP, self.dp), *((a, n) for a, n in ((EP, self.ep), (CP, self.cp)) if n > 1), (TP, self.tp)]
        devices = range(rank * self.size, (rank + 1) * self.size)
        return Mesh(devices, tuple(a for a, _ in axes), tuple(n for _, n in axes))

    def words(self) -> str:
        parts = [f"dp{self.dp}"] if self.dp > 1 or self.size * self.pp == 1 else []
        parts += [f"ep{self.ep}"] if self.ep > 1 else []
        parts += [f"cp{self.cp}" + MARKS[self.context]] if self.cp > 1 else []
        parts += [f"tp{self.tp}" + ("+sp" if self.sequence else "")] if self.tp > 1 else []
        parts += [f"pp{self.pp}" + (f"×{self.chunks}" if self.chunks > 1 else "")] if self.pp > 1 else []
        parts += [f"z{self.zero}"] if self.zero else []
        return " ".join(parts)


KEYS: Mapping[str, str] = {
    "dp": "dp", "ep": "ep", "cp": "cp", "tp": "tp", "pp": "pp", "sp": "sequence", "vpp": "chunks", "chunks": "chunks", "zero": "zero",
    "micro-batch": "micro_batch", "micro_batch": "micro_batch", "recompute": "recompute", "schedule": "schedule",
    "context": "context",
}  # fmt: skip
"""What `--fix` and `--allow` call the fields."""


class Units:
    """The model as a chain of pieces that a stage takes whole: each block of a run, each stretch between runs."""

    def __init__(self, folded: Folded) -> None:
        self.folded = folded
        self.runs = {r.name: r for r in folded.graph.runs}
        self.piece: list[int] = []
        self.block: list[int] = []
        for p, piece in enumerate(folded.pieces):
            for b in range(piece.count if piece.run else 1):
                self.piece.append(p)
                self.block.append(b)

    def __len__(self) -> int:
        return len(self.piece)

    @cached_property
    def blocks(self) -> int:
        """Units that are blocks of a run: the most stages that are worth having, if there are any."""
        return sum(1 for p in self.piece if self.folded.pieces[p].run) or len(self)

    def ops(self, first: int, stop: int) -> tuple[str, ...]:
        """Entries of `Stage.ops` for units first … stop − 1."""
        graph, out, k = self.folded.graph, [], first
        while k < stop:
            p = self.piece[k]
            piece = self.folded.pieces[p]
            if piece.run:
                last = k
                while last < stop and self.piece[last] == p:
                    last += 1
                out.append(span_entry(self.runs[piece.run], self.block[k], self.block[k] + last - k))
                k = last
            else:
                out += [graph.ops[i].name for i in range(piece.first, piece.first + piece.length)]
                k += 1
        return tuple(out)


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
                    for zero in self._some("zero", [0, 1, 2, 3] if dp > 1 else [0]):
                        for recompute in self._some("recompute", list(RECOMPUTE)):
                            yield Point(dp, tp, pp, sequence, chunks, b, zero, recompute, schedule, cp, ep, context)

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
        choices = self.expert.choices(point.style)
        stages, at = [], 0
        meshes = [point.mesh(rank) for rank in range(point.pp)]
        for s, n in enumerate(parts):
            mesh = meshes[s % point.pp]
            stages.append(
                Stage(
                    self.units.ops(at, at + n), mesh, choices.shardings, choices.layouts, choices.storage, choices.recompute
                )
            )  # fmt: skip
            at += n
        recipe = self.problem.recipe
        args = {"v": point.chunks} if point.chunks > 1 else {}
        m = recipe.samples // (point.replicas * point.micro_batch)
        return Plan(self.graph.digest, recipe.samples, tuple(stages), Schedule(point.schedule, m, args))

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
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
        if name == "sequence":
            value = bool(value) if not isinstance(value, str) else value.lower() in ("true", "yes", "on")
        if name == "context" and value not in CONTEXTS:
            raise InputError(f'no context "{value}" of context parallelism: it may be {", ".join(CONTEXTS)}')
        out[name] = value  # type: ignore[assignment]
    return out


def _divisors(n: int) -> list[int]:
    small = [k for k in range(1, int(n**0.5) + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})
