"""Setups to test an exporter with: of rows, with other words or facts of the model, and of points drawn by seed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from meshwright.export.base import Exporter
from meshwright.export.model import parts_of
from meshwright.export.outcome import Exported, answer
from meshwright.export.reading import setup_from
from meshwright.export.rows import ROWS, setup_of_row
from meshwright.export.setup import Setup
from meshwright.layouts.point import Point
from meshwright.layouts.units import Units
from meshwright.planners._grid_space import Space

GOLDEN = Path(__file__).parent / "golden"
WISHES: Mapping[str, list[Any]] = {
    "recompute": ["none", "full", "attention", "first:1"],
    "replicate": [1, 2],
    "reshard": [True, False],
}


@cache
def of_row(words: str) -> Setup:
    return setup_of_row(next(row for row in ROWS if row.words == words))


def other(setup: Setup, counts: tuple[int, ...] = (), facts: Mapping[str, Any] | None = None, **words: Any) -> Setup:
    """With other words, layers of stages, or facts of the model, whatever its graph says."""
    if counts:
        words["parts"] = parts_of(setup.expert, counts)
    found = setup.with_words(**words)
    if facts:
        found.__dict__["model"] = replace(setup.model, **facts)
    return found


def drawn(row: str, count: int, seed: int) -> Iterator[Setup]:
    """Setups of the problem of a row: points of the grid, stages cut at random."""
    rng = random.Random(seed)
    base = of_row(row)
    space = Space(base.problem, base.expert, {}, WISHES)
    points: list[Point] = [p for p in space.points() if p.pp * p.chunks <= len(base.model.layers)]
    for point in rng.sample(points, min(count, len(points))):
        layers, stages = len(base.model.layers), point.pp * point.chunks
        at = [0, *sorted(rng.sample(range(1, layers), stages - 1)), layers]
        if rng.random() < 0.5:
            at = [round(layers * s / stages) for s in range(stages + 1)]
        counts = tuple(b - a for a, b in pairwise(at))
        words = {k: getattr(point, k) for k in point.__dataclass_fields__}
        parts = parts_of(base.expert, counts) if stages > 1 else (len(Units(base.expert.atoms.folded)),)
        yield base.with_words(**words, parts=parts)


def again(exporter: Exporter, found: Exported) -> Setup:
    """What the files of an export say, read back."""
    read = exporter.read(found.files, found.setup.model, found.setup.world)
    return setup_from(found.setup.problem, exporter, read, found.setup.name)


def written(exporter: Exporter, setup: Setup) -> Exported:
    """With the nearest that the exporter can say, where it cannot say the setup."""
    return answer(exporter, setup, lossy=True)


def same_as_golden(files: Mapping[str, str], folder: str) -> None:
    """Files are those that are kept; MESHWRIGHT_GOLDEN=1 keeps these instead."""
    place = GOLDEN / folder
    if os.environ.get("MESHWRIGHT_GOLDEN"):
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
    assert {f.name: f.read_text(encoding="utf-8") for f in place.iterdir()} == dict(files)
