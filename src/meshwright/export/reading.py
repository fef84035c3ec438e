"""From what a trainer's files say to a plan of a problem, so that it can be priced and set beside ours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .._words import count
from ..errors import InputError
from ..layouts.expert import Expert, expert_of
from ..layouts.point import Point
from ..layouts.recognise import AXES, Recognised
from ..layouts.units import Units
from ..plan.model import Row, Schedule
from ..plan.problem import Problem
from .base import Exporter, Read
from .model import model_of, parts_of
from .setup import Setup, sizes_of

_FROM_ONE = ("tp", "cp", "pp", "ep", "chunks", "micro_batch", "replicate")
_MOST = 10**12
"""Of what a file may say of these, so that products of them are counted exactly."""


def setup_from(problem: Problem, exporter: Exporter, read: Read, name: str = "") -> Setup:
    """The setup that the files describe, on all devices of the problem's cluster.

    Raises:
        InputError: degrees that do not multiply to the devices, a batch that they do not divide, stages that are not all layers.
    """
    samples = int(read.words.get("samples", problem.recipe.samples))
    point = _point(problem, exporter, read, samples)
    expert = expert_of(problem.graph)
    parts = _parts(expert, exporter, read, point.pp * point.chunks)
    m = samples // (point.replicas * point.micro_batch)
    rows: tuple[Row, ...] = tuple(read.words.get("rows", ()))
    args = {"v": point.chunks} if point.chunks > 1 and point.schedule in ("interleaved", "bfs") else {}
    args |= read.words.get("args", {})
    schedule = Schedule("custom", m, {}, rows) if rows else Schedule(point.schedule, m, args)
    devices = _devices(point, tuple(read.words.get("order", exporter.order)))
    return Setup(
        replace(problem, recipe=replace(problem.recipe, samples=samples)),
        Recognised(point, parts, schedule, devices, samples),
        name,
        m > 1 and bool(read.words.get("sums_each", False)),
    )


def _point(problem: Problem, exporter: Exporter, read: Read, samples: int) -> Point:
    words = read.words
    for word, n in (("batch", samples), *((k, int(words.get(k, 1))) for k in _FROM_ONE)):
        if not 1 <= n <= _MOST:
            raise InputError(
                f"{exporter.called}: {word} is {n}, it must be from 1 to {count(_MOST)}", where=_where(read, word)
            )
    tp, cp, pp, ep, chunks = (int(words.get(k, 1)) for k in ("tp", "cp", "pp", "ep", "chunks"))
    whole = bool(words.get("whole_experts", False))
    ep = ep // tp if whole else ep
    world = problem.cluster.count
    dp = int(words.get("dp", 0)) or world // (tp * cp * pp)
    if dp * tp * cp * pp != world:
        raise InputError(
            f"{exporter.called}: {_spelled(read, dp=dp, tp=tp, cp=cp, pp=pp)} = {count(dp * tp * cp * pp)} devices, but "
            f"{problem.cluster.name} has {count(world)}", where=_where(read, "dp", "tp", "cp", "pp"),
        )  # fmt: skip
    if dp % ep:
        raise InputError(f"{exporter.called}: ep {ep} does not divide the {dp} replicas", where=_where(read, "ep"))
    micro_batch = int(words.get("micro_batch", 1))
    if samples % (dp * micro_batch):
        raise InputError(
            f"{exporter.called}: a batch of {count(samples)} does not split over dp {dp} × micro-batch {micro_batch}",
            where=_where(read, "samples", "micro_batch"),
        )
    return Point(
        dp // ep, tp, pp, bool(words.get("sequence", False)) and tp > 1, chunks, micro_batch, int(words.get("zero", 0)),
        str(words.get("recompute", "none")), str(words.get("schedule", "interleaved" if chunks > 1 else "1f1b")), cp, ep,
        str(words.get("context", "ulysses")), whole and tp > 1, int(words.get("replicate", 1)), bool(words.get("reshard", True)),
    )  # fmt: skip


def _parts(expert: Expert, exporter: Exporter, read: Read, stages: int) -> tuple[int, ...]:
    if stages == 1:
        return (len(Units(expert.atoms.folded)),)
    layers = len(model_of(expert.graph).layers)
    counts = tuple(read.words.get("counts", ())) or tuple(
        layers // stages + (s < layers % stages) for s in range(stages)
    )
    try:
        return parts_of(expert, counts)
    except ValueError as error:
        raise InputError(f"{exporter.called}: {error}", where=_where(read, "counts")) from None


def _devices(point: Point, order: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """Of each pipeline rank along `AXES`, if ranks are counted along `order`, outer first."""
    sizes = sizes_of(point)
    mine = ("pp", *AXES)
    named = [a for a in order if a in mine]
    named += [a for a in mine if a not in named]
    grid = np.arange(point.size * point.pp).reshape([sizes[a] for a in named])
    turned = grid.transpose([named.index(a) for a in mine]).reshape(point.pp, point.size)
    return tuple(tuple(int(d) for d in rank) for rank in turned)


def in_order(point: Point) -> tuple[tuple[int, ...], ...]:
    """Devices of each pipeline rank as `Point.mesh` has them."""
    return tuple(tuple(point.mesh(rank).devices) for rank in range(point.pp))


def _spelled(read: Read, **degrees: int) -> str:
    return " × ".join(f"{k} {n}" for k, n in degrees.items() if n > 1 or k in read.words) or "1"


def _where(read: Read, *words: str) -> str:
    return ", ".join(read.lines[w] for w in words if w in read.lines)
