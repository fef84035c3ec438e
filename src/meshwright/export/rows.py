"""What a plan may say, a row each, as small plans: with them every target's table of levels is computed, not written down.

The models are a decoder with grouped heads and one with experts, of eight layers; the cluster has two nodes of eight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

from ..cluster import resolve
from ..cost import Analytic
from ..layouts.expert import expert_of
from ..layouts.point import Point
from ..layouts.recognise import Recognised
from ..layouts.units import Units
from ..plan.model import Schedule
from ..plan.problem import Problem, Recipe
from ..plan.schedules import rows_of
from .base import Exporter
from .model import parts_of
from .outcome import verdict
from .said import Level
from .setup import Setup

Rows: TypeAlias = Callable[[int, int], Schedule]
"""(ranks, micro-batches) -> a schedule with rows of its own."""
LAYERS, SAMPLES, SEQ = 8, 128, 64
DENSE, EXPERTS = "llama-3.1-8b", "mixtral-8x7b"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that a plan says."""

    words: str
    """ "ZeRO 3"."""
    point: Point
    counts: tuple[int, ...] = ()
    """Layers of each stage; () = as even as they go."""
    rows: Rows | None = None
    model: str = DENSE


def _row(
    words: str, *, model: str = DENSE, counts: tuple[int, ...] = (), rows: Rows | None = None, **given: Any
) -> Row:
    base: dict[str, Any] = {
        "dp": 16, "tp": 1, "pp": 1, "sequence": False, "chunks": 1, "micro_batch": 1, "zero": 0, "recompute": "none", "schedule": "1f1b",
    }  # fmt: skip
    return Row(words, Point(**{**base, **given}), counts, rows, model)


def _own_table(ranks: int, micro_batches: int) -> Schedule:
    """Rows that a person might write: here those of ZB-H1."""
    return Schedule("custom", micro_batches, {}, rows_of(Schedule("zb-h1", micro_batches), ranks))


ROWS: tuple[Row, ...] = (
    _row("data parallelism"),
    _row("ZeRO 1", zero=1),
    _row("ZeRO 2, one micro-batch", zero=2, micro_batch=8),
    _row("ZeRO 2, several micro-batches", zero=2),
    _row("ZeRO 3", zero=3),
    _row("ZeRO 3 in groups (hybrid)", zero=3, replicate=2),
    _row("ZeRO 3, gathered once", zero=3, reshard=False),
    _row("tensor", dp=4, tp=4),
    _row("tensor + sequence", dp=4, tp=4, sequence=True),
    _row("tensor + sequence + ZeRO 1", dp=4, tp=4, sequence=True, zero=1),
    _row("tensor + ZeRO 3", dp=4, tp=4, zero=3),
    _row("context, gathered", dp=4, cp=4, context="gather"),
    _row("context, by heads", dp=4, cp=4, context="ulysses"),
    _row("experts", dp=4, ep=4, model=EXPERTS),
    _row("experts + ZeRO 3", dp=4, ep=4, zero=3, model=EXPERTS),
    _row("pipeline", dp=4, pp=4),
    _row("pipeline + ZeRO 1", dp=4, pp=4, zero=1),
    _row("chunks", dp=4, pp=4, chunks=2, schedule="interleaved"),
    _row("uneven stages", dp=4, pp=4, counts=(1, 3, 3, 1)),
    _row("schedule gpipe", dp=4, pp=4, schedule="gpipe"),
    _row("schedule bfs", dp=4, pp=4, chunks=2, schedule="bfs"),
    _row("schedule zb-h1", dp=4, pp=4, schedule="zb-h1"),
    _row("schedule zb-v", dp=4, pp=4, chunks=2, schedule="zb-v"),
    _row("schedule dualpipev", dp=4, pp=4, chunks=2, schedule="dualpipev"),
    _row("a table of one's own", dp=4, pp=4, schedule="custom", rows=_own_table),
    _row("recompute all", recompute="full"),
    _row("recompute attention", recompute="attention"),
    _row("recompute first layers", dp=4, pp=4, recompute="first:1"),
    _row("recompute light ops", recompute="light"),
)  # fmt: skip


@cache
def _problem(model: str) -> Problem:
    from ..graph.source import resolve as model_of
    from ..graph.zoo import Shrink

    shrink = Shrink(LAYERS, width=64, heads=8, kv_heads=4, ffn=128, vocab=256, seq=SEQ, experts=8, dropout=0.0)
    graph = model_of(model).graph(batch=2, seq=SEQ, dtype="bfloat16", shrink=shrink, cache=False)
    return Problem(graph, resolve("h100x16"), Analytic(precision="bfloat16"), Recipe(samples=SAMPLES))


def setup_of_row(row: Row, least: str = "none") -> Setup:
    """The plan of a row, in words.

    Args:
        least: what is recomputed where the row says nothing of it (`Exporter.least_again`).
    """
    problem, p = _problem(row.model), row.point
    if p.recompute == "none":
        p = replace(p, recompute=least)
    expert = expert_of(problem.graph)
    stages = p.pp * p.chunks
    counts = row.counts or tuple(LAYERS // stages for _ in range(stages))
    parts = parts_of(expert, counts) if stages > 1 else (len(Units(expert.atoms.folded)),)
    m = SAMPLES // (p.replicas * p.micro_batch)
    args = {"v": p.chunks} if p.schedule in ("interleaved", "bfs") else {}
    schedule = row.rows(p.pp, m) if row.rows is not None else Schedule(p.schedule, m, args)
    devices = tuple(tuple(p.mesh(rank).devices) for rank in range(p.pp))
    return Setup(problem, Recognised(p, parts, schedule, devices, SAMPLES), row.model)


def levels(exporter: Exporter) -> Mapping[str, tuple[Level, str]]:
    """Row -> what the target makes of it, and why it is not exact."""
    found = {}
    for row in ROWS:
        said = verdict(exporter, setup_of_row(row, exporter.least_again))
        found[row.words] = said.level, "; ".join(said.sentences)
    return found
