"""The cells that run are a covering array, and what is left out is left out for a reason that the graphs bear out."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from execute.cells import (
    FACTORS,
    FAMILIES,
    FAMILY,
    GROUPS,
    LAYOUTS,
    NAMES,
    RANKS,
    Cell,
    Family,
    axes_of,
    covering,
    degrees,
    impossible,
    layout_of,
    possible_pairs,
)
from execute.layouts import Layout, plan_of
from execute.matrix import key_of, plan_of_cell, small
from meshwright.execute import refusals
from meshwright.layouts.expert import Expert

REASONS = {
    "no experts",
    "no positions",
    "no products with features to cut",
    "too few devices for its axes",
    "no axes for its devices",
    "too few axes for its devices",
}
"""Why two values cannot meet; the list of docs/refusals.md."""


def test_every_possible_pair_of_values_occurs() -> None:
    seen = {pair for cell in covering() for pair in cell.pairs()}
    wanted = {pair for pair, reason in possible_pairs().items() if not reason}
    assert wanted == seen


def test_pairs_left_out_have_a_reason_of_the_list_and_no_cell() -> None:
    """Every cell in which such a pair stands is impossible, whatever its other values are."""
    reasons = Counter(reason for reason in possible_pairs().values() if reason)
    assert set(reasons) <= REASONS
    for pair, reason in possible_pairs().items():
        if reason == "too few axes for its devices":
            ((_, family), (_, ranks)) = pair
            layouts = [x for x in LAYOUTS if not impossible((("family", family), ("layout", x)))]
            assert all(impossible((("layout", x), ("ranks", ranks))) for x in layouts)


def test_layouts_are_all_products_of_up_to_three_kinds_of_parallelism() -> None:
    ways = [1 + len(w) for w in GROUPS.values()]
    of_up_to_three = sum(1 for picks in itertools.product(*(range(n) for n in ways)) if sum(k > 0 for k in picks) <= 3)
    assert len(LAYOUTS) == len(set(LAYOUTS)) == of_up_to_three


def test_axes_fill_the_devices() -> None:
    for cell in covering():
        n = 1
        for degree in degrees(cell).values():
            assert degree > 1
            n *= degree
        assert n == cell.ranks == layout_of(cell).ranks


def test_the_same_cells_are_found_every_time() -> None:
    first = covering()
    covering.cache_clear()
    assert covering() == first


def test_an_array_of_random_factors_needs_few_more_cells_than_its_largest_product() -> None:
    """The largest product of two factors is the least; pairs of the smaller factors come along."""
    sizes = sorted((len(v) for v in FACTORS.values()), reverse=True)
    possible = sum(1 for (a, _), (b, _) in (p for p, why in possible_pairs().items() if not why) if (a, b) == NAMES[:2])
    assert possible <= len(covering()) <= 1.15 * possible < sizes[0] * sizes[1]


def _idle(family: str, layout: Layout) -> set[str]:
    """Axes that cut no op of the family's plan."""
    plan = plan_of(small(family, 4, 2).model.graph, layout, 2)
    used = {c.axis for s in plan.stages for x in s.shardings.values() for cuts in x.cuts.values() for c in cuts}
    mesh = plan.stages[0].mesh
    return {a for a, n in zip(mesh.axes, mesh.shape, strict=True) if n > 1} - used


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=() if f.name in ("gpt2", "vit-l16") else pytest.mark.slow, id=f.name) for f in FAMILIES],
)
def test_what_a_family_lacks_is_what_its_graph_lacks(family: Family) -> None:
    graph = small(family.name, 4, 2).model.graph
    for context in ("ulysses", "gather"):
        assert bool(_idle(family.name, Layout(cp=2, context=context))) != family.positions
    assert bool(_idle(family.name, Layout(tp=2))) != family.products
    assert bool(Expert(graph).experts) == family.experts


@pytest.mark.slow
def test_no_cell_of_the_array_is_refused() -> None:
    """Every possible cell of the array can run. (The least that is asked for is 95 of 100.)"""
    refused = [(str(cell), why) for cell in covering() if (why := _why(cell))]
    assert refused == []


def test_few_cells_drawn_from_all_are_refused() -> None:
    rng = random.Random(0)
    drawn = []
    while len(drawn) < 40:
        cell = Cell(*(rng.choice(list(FACTORS[n])) for n in NAMES))  # type: ignore[arg-type]
        cheap = cell.family in ("gpt2", "bert-large", "vit-l16", "llama-3.1-8b")
        if cheap and not any(impossible(p) for p in cell.pairs()):
            drawn.append(cell)
    assert [str(c) for c in drawn if _why(c)] == []


def _why(cell: Cell) -> str:
    found = refusals(plan_of_cell(cell), small(*key_of(cell)).model.graph)
    return "; ".join(r.sentence for r in found)


def test_every_family_axis_and_size_of_the_issue_is_there() -> None:
    assert len(FAMILIES) == len(FAMILY) == 14
    assert {a for x in LAYOUTS for a in axes_of(x)} == set(GROUPS)
    assert RANKS == (1, 2, 4, 8)
