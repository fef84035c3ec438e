"""The matrix: which cells there are, and a small set of them in which every possible pair of values occurs.

A cell is one value of each factor. Some pairs of values cannot meet (experts in a model without experts); each of these
has its reason. `covering` is greedy and deterministic (Lei and Tai, IPO, HASE 1998, is the idea: cover what is uncovered,
choose the rest so that most is covered besides).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TypeAlias

from execute.layouts import Layout

GROUPS: Mapping[str, tuple[str, ...]] = {
    "dp": ("dp", "zero1", "zero2", "zero3"),
    "tp": ("tp", "tp+sequence"),
    "cp": ("ulysses", "gathered"),
    "ep": ("ep",),
    "pp": ("pp",),
}
"""Mesh axis (or pipeline) -> what may be done along it."""
RANKS = (1, 2, 4, 8)
SCHEDULES = ("gpipe", "1f1b", "interleaved", "bfs", "zb-h1")
RECOMPUTE = ("none", "light", "full")
OPTIMIZERS = ("momentum", "adamw")
MOST_AXES = 3
Value: TypeAlias = str | int
Pair: TypeAlias = tuple[tuple[str, Value], tuple[str, Value]]


@dataclass(frozen=True)
class Family:
    """A model of the zoo, scaled down. What it lacks is checked against its graph."""

    name: str
    positions: bool = True
    """The data has positions, or an image's rows where there is no attention, that an axis can cut."""
    experts: bool = False
    products: bool = True
    """Products with a parameter whose features tensor parallelism cuts."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Other sizes than `SMALL`."""
    dtype: str = "float32"


LARGER = {"image": 64, "blocks": 1}
"""Batch norms over few pixels amplify rounding: of 32 pixels of a side the last maps hold one."""
WIDE = "float64"
"""Of nets with millions of values in front of a ReLU: in float32 rounding alone moves some of them over its kink, so that
one process with inputs changed by 1e-7 has a gradient that is off by 1e-2 (Wide-ResNet-101-8, one input of three)."""
FAMILIES = (
    Family("gpt2"),
    Family("llama-3.1-8b"),
    Family("bert-large"),
    Family("vit-l16", positions=False),
    Family("mixtral-8x7b", experts=True),
    Family("resnet-50", sizes=LARGER, dtype=WIDE),
    Family("t5-large"),
    Family("qwen3-235b", experts=True),
    Family("deepseek-v3", experts=True),
    Family("dlrm", positions=False),
    Family("gnmt-8"),
    Family("unet", products=False, dtype=WIDE),
    Family("wrn-50-2", sizes=LARGER, dtype=WIDE),
    Family("wrn-101-8", sizes=LARGER, dtype=WIDE),
)
FAMILY = {f.name: f for f in FAMILIES}


def _layouts() -> Iterator[str]:
    yield "one device"
    for n in range(1, MOST_AXES + 1):
        for axes in itertools.combinations(GROUPS, n):
            yield from map(" × ".join, itertools.product(*(GROUPS[a] for a in axes)))


LAYOUTS = tuple(_layouts())


@dataclass(frozen=True)
class Cell:
    family: str
    layout: str
    ranks: int
    schedule: str
    recompute: str
    optimizer: str

    def __str__(self) -> str:
        return f"{self.family}: {self.layout} on {self.ranks}, {self.schedule}, recompute {self.recompute}, {self.optimizer}"

    def pairs(self) -> Iterator[Pair]:
        yield from itertools.combinations(((f, getattr(self, f)) for f in NAMES), 2)


NAMES = tuple(f.name for f in fields(Cell))
FACTORS: Mapping[str, Sequence[Value]] = {
    "family": tuple(f.name for f in FAMILIES),
    "layout": LAYOUTS,
    "ranks": RANKS,
    "schedule": SCHEDULES,
    "recompute": RECOMPUTE,
    "optimizer": OPTIMIZERS,
}


def axes_of(layout: str) -> tuple[str, ...]:
    """Axes of a layout, in the order of GROUPS."""
    words = layout.split(" × ")
    return tuple(axis for axis, ways in GROUPS.items() if any(w in ways for w in words))


@cache
def impossible(pair: Pair) -> str:
    """Why two values of different factors cannot meet; "" if they can. The only conflicts there are."""
    values = dict(pair)
    if "layout" not in values:
        return ""
    axes = axes_of(str(values["layout"]))
    if "family" in values:
        family = FAMILY[str(values["family"])]
        if "ep" in axes and not family.experts:
            return "no experts"
        if "cp" in axes and not family.positions:
            return "no positions"
        if "tp" in axes and not family.products:
            return "no products with features to cut"
    if "ranks" in values:
        ranks = int(values["ranks"])
        if ranks < 2 ** len(axes):
            return "too few devices for its axes"
        if ranks > 1 and not axes:
            return "no axes for its devices"
    return ""


@cache
def possible_pairs() -> Mapping[Pair, str]:
    """Every pair of values of different factors, with the reason why it is impossible, or ""."""
    found = {}
    for a, b in itertools.combinations(NAMES, 2):
        for pair in itertools.product(((a, v) for v in FACTORS[a]), ((b, v) for v in FACTORS[b])):
            reason = impossible(pair)
            if not reason and a == "family" and b == "ranks":
                ((_, family), (_, ranks)) = pair
                reason = (
                    "" if any(_meet(family, layout, ranks) for layout in LAYOUTS) else "too few axes for its devices"
                )
            found[pair] = reason
    return found


def _meet(family: Value, layout: str, ranks: Value) -> bool:
    own = (("family", family), ("layout", layout), ("ranks", ranks))
    return not any(impossible(p) for p in itertools.combinations(own, 2))


@cache
def covering() -> tuple[Cell, ...]:
    """Cells in which every possible pair occurs; the same ones every time."""
    left = dict.fromkeys(pair for pair, reason in possible_pairs().items() if not reason)
    used: dict[tuple[str, Value], int] = {}
    cells = []
    while left:
        given = dict(next(iter(left)))
        # The layout first: it is the only factor that conflicts with others.
        for name in sorted((n for n in NAMES if n not in given), key=lambda n: n != "layout"):
            given[name] = _best(name, given, left, used)
        cell = Cell(**given)  # type: ignore[arg-type]
        for value in given.items():
            used[value] = used.get(value, 0) + 1
        for pair in cell.pairs():
            left.pop(pair, None)
        cells.append(cell)
    return tuple(cells)


def _best(
    name: str, given: Mapping[str, Value], left: Mapping[Pair, None], used: Mapping[tuple[str, Value], int]
) -> Value:
    """The value that covers most and conflicts with nothing; of equals the one that was used least."""

    def pair(value: Value, other: str) -> Pair:
        both = ((name, value), (other, given[other]))
        return both if NAMES.index(name) < NAMES.index(other) else both[::-1]

    fit = [v for v in FACTORS[name] if not any(impossible(pair(v, other)) for other in given)]
    if name == "layout" and "ranks" not in given:
        fit = [v for v in fit if any(not impossible((("layout", v), ("ranks", n))) for n in RANKS)]
    return max(fit, key=lambda v: (sum(pair(v, other) in left for other in given), -used.get((name, v), 0)))


# ------------------------------------------------------------- from a cell to a layout


def degrees(cell: Cell) -> dict[str, int]:
    """Length of each axis: 2, and of the first ones more where there are more devices."""
    axes = axes_of(cell.layout)
    found = dict.fromkeys(axes, 2)
    left = cell.ranks // 2 ** len(axes)
    for axis in itertools.cycle(axes) if axes else ():
        if left == 1:
            break
        found[axis] *= 2
        left //= 2
    return found


def layout_of(cell: Cell) -> Layout:
    n, words = degrees(cell), cell.layout.split(" × ")
    chunks = 2 if cell.schedule in ("interleaved", "bfs") else 1
    return Layout(
        dp=n.get("dp", 1),
        tp=n.get("tp", 1),
        pp=n.get("pp", 1),
        sequence="tp+sequence" in words,
        zero=next((int(w[-1]) for w in words if w.startswith("zero")), 0),
        recompute=cell.recompute,
        schedule=cell.schedule,
        chunks=chunks,
        cp=n.get("cp", 1),
        ep=n.get("ep", 1),
        context="gather" if "gathered" in words else "ulysses",
    )


def micro_batches_of(cell: Cell) -> int:
    """Interleaved schedules need a multiple of their ranks."""
    return max(2, degrees(cell).get("pp", 1))
