"""Routing skew and packed documents: 1 changes nothing, more skew and more attention never cost less, and hand-made cases."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cost import Analytic
from meshwright.graph.ir import Graph
from meshwright.layouts.expert import Expert
from meshwright.layouts.point import Point
from meshwright.lower import lower
from meshwright.lower.program import Program, Segment
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space
from meshwright.simulate import Simulation, simulate

LAYERS, SEQ, WIDTH, FFN, EXPERTS = 2, 128, 256, 512, 8


@lru_cache(maxsize=2)
def graph(name: str) -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(LAYERS, WIDTH, 8, 4, FFN, 512, SEQ, EXPERTS, dropout=0.0)
    return resolve(name).graph(batch=2, seq=SEQ, dtype="bfloat16", shrink=shrink, cache=False)


def priced(name: str, recipe: Recipe, software: str = "modern", **degrees: object) -> tuple[Simulation, Program]:
    g = graph(name)
    point = Point(**({"dp": 1, "tp": 1, "pp": 1, "sequence": False, "chunks": 1, "micro_batch": 1, "zero": 0,
                      "recompute": "none", "schedule": "1f1b"} | degrees))  # type: ignore[arg-type]  # fmt: skip
    problem = Problem(g, cluster_of(f"h100x{point.size * point.pp}"), Analytic(software=software), recipe)
    space = Space(problem, Expert(g), {}, {})
    plan = space.plan(point, (len(space.units),))
    return simulate(problem, plan, detail=False), lower(g, plan, recipe)


def figures(simulation: Simulation) -> tuple[float, float, dict[str, float]]:
    return simulation.step_seconds, float(simulation.peak.max()), dict(simulation.seconds_by)


EVEN = Recipe(8)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_more_skew_never_costs_less_time_or_memory_until_one_device_has_all_tokens(recompute: str) -> None:
    found = [
        priced("mixtral-8x7b", replace(EVEN, routing_skew=s), ep=4, recompute=recompute)[0]
        for s in (1.0, 1.1, 1.5, 2.0, 4.0, 9.0)
    ]
    seconds = [x.seconds_by["compute"] + x.seconds_by["all_to_all"] for x in found]
    peaks = [float(x.peak.max()) for x in found]
    assert seconds == sorted(seconds) and seconds[0] < seconds[1] < seconds[4] == seconds[5]
    assert peaks == sorted(peaks) and peaks[0] < peaks[1] < peaks[4] == peaks[5]


def test_skew_does_not_show_where_experts_are_not_cut() -> None:
    for degrees in ({"dp": 4}, {"tp": 4, "sequence": True}):
        even = priced("mixtral-8x7b", EVEN, **degrees)[0]
        assert figures(priced("mixtral-8x7b", replace(EVEN, routing_skew=3.0), **degrees)[0]) == figures(even)


def test_the_busiest_device_computes_receives_and_keeps_its_share_of_the_tokens() -> None:
    """8 experts over 4 devices. A block dispatches [experts, tokens, width] and the weights of [experts, tokens, 1]."""
    _, even = priced("mixtral-8x7b", EVEN, ep=4)
    _, skewed = priced("mixtral-8x7b", replace(EVEN, routing_skew=2.0), ep=4)
    blocks = [next(s for s in p.stages[0].segments if s.count == LAYERS) for p in (even, skewed)]

    def collectives(program: Program, block: Segment) -> list[tuple[str | None, float]]:
        """With bytes of the fullest device, whatever its samples are cut over."""
        mesh = program.stages[0].mesh
        moves = [i for i in block.forward if i.kind == "collective"]
        return [(i.collective, i.nbytes * program.local_samples(mesh, i.samples or ())) for i in moves]

    moved, busier = collectives(even, blocks[0]), collectives(skewed, blocks[1])
    here = EXPERTS // 4
    assert [k for k, _ in moved] == ["all_to_all", "all_to_all", "reduce_scatter"]
    assert busier == [
        ("all_to_all", 2 * moved[0][1]),
        ("all_to_all", 2 * moved[1][1]),
        ("reduce_scatter", moved[2][1]),
    ]
    sizes = [{i.on: i.sizes for i in b.forward if i.kind == "compute"} for b in blocks]
    changed = {on for on in sizes[0] if sizes[0][on] != sizes[1][on]}
    products = [on for on in changed if on.endswith(("bmm", "bmm.2"))]
    assert len(products) == 2
    assert all("mlp.experts" in on for on in changed)
    first = next(on for on in products if on.endswith("bmm"))
    assert sizes[0][first] == (here, SEQ, WIDTH, 2 * FFN)
    assert sizes[1][first] == (here, 2 * SEQ, WIDTH, 2 * FFN)
    # Kept: the input of both products, the two halves before the gate, its result, and what the weights scale.
    more = blocks[1].kept.activations[1] - blocks[0].kept.activations[1]
    tensors = here * SEQ * 2 * np.array([WIDTH, FFN, FFN, FFN, FFN, WIDTH])
    assert 0 < more <= 4 * tensors.sum() * 1.01
    assert blocks[0].kept.transient <= blocks[1].kept.transient


def test_one_document_a_sequence_changes_nothing() -> None:
    even = priced("llama-3.1-8b", EVEN, dp=2)[0]
    assert figures(priced("llama-3.1-8b", replace(EVEN, attention_share=1.0), dp=2)[0]) == figures(even)


def test_less_attention_is_faster_and_only_attention_is() -> None:
    runs = {s: priced("llama-3.1-8b", replace(EVEN, attention_share=s), dp=2)[0] for s in (1.0, 0.5, 0.25)}
    seconds = [runs[s].seconds_by["compute"] for s in (1.0, 0.5, 0.25)]
    assert seconds[0] > seconds[1] > seconds[2]
    assert seconds[0] - seconds[1] == pytest.approx(2 * (seconds[1] - seconds[2]))  # linear: all queries are here
    assert float(runs[0.25].peak.max()) == float(runs[1.0].peak.max())
    unfused = [
        priced("llama-3.1-8b", replace(EVEN, attention_share=s), "unfused", dp=2)[0].step_seconds for s in (1.0, 0.25)
    ]  # fmt: skip
    assert unfused[0] == unfused[1]


@pytest.mark.parametrize("documents", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_of_packed_documents_the_member_with_most_scores_is_priced(documents: int, parts: int) -> None:
    """Counted on the mask of equal documents, half of each diagonal element, as torch counts half of a causal square."""
    s = 256
    place = np.arange(s)
    same = place[:, None] // (s // documents) == place[None, :] // (s // documents)
    scores = (same & (place[None, :] < place[:, None])).sum(axis=1) + 0.5
    one = (place[None, :] < place[:, None]).sum(axis=1) + 0.5
    most, before = (x.reshape(parts, -1).sum(axis=1).max() for x in (scores, one))
    op = next(o for o in graph("llama-3.1-8b").ops if o.kind == "scaled_dot_product_attention")
    sizes = [{"queries": f.size // parts}.get(f.name, f.size) for f in op.rule.factors]
    factor = Analytic().packed(op, np.array([sizes]), 1 / documents)
    assert float(np.ravel(factor)[0]) == pytest.approx(most / before)


class Work(Analytic):
    """Prices FLOPs: a second each."""

    def compute(self, op, sizes, device, phase, variant=""):  # type: ignore[no-untyped-def]
        whole = np.array([f.size for f in op.rule.factors])
        return op.flops * np.prod(sizes / whole, axis=1) * (2.0 if phase == "backward" else 1.0)

    def traffic(self, nbytes, device):  # type: ignore[no-untyped-def]
        return np.zeros(np.shape(nbytes))

    def launch_floor(self, ops, device, phase):  # type: ignore[no-untyped-def]
        return 0.0


@pytest.mark.parametrize(
    "degrees",
    [{"ep": 4}, {"dp": 2, "ep": 2}, {"ep": 2, "tp": 2, "sequence": True}, {"cp": 2, "ep": 2}, {"tp": 4}, {"ep": 4, "micro_batch": 2}],
    ids=str,
)  # fmt: skip
def test_layouts_divide_the_work_and_lose_none(degrees: dict[str, object]) -> None:
    g = graph("mixtral-8x7b")

    def work(**given: object) -> float:
        point = Point(**({"dp": 1, "tp": 1, "pp": 1, "sequence": False, "chunks": 1, "micro_batch": 1, "zero": 0,
                          "recompute": "none", "schedule": "1f1b"} | given))  # type: ignore[arg-type]  # fmt: skip
        problem = Problem(g, cluster_of(f"h100x{point.size}"), Work(), EVEN)
        space = Space(problem, Expert(g), {}, {})
        simulation = simulate(problem, space.plan(point, (len(space.units),)), detail=False)
        return point.size * simulation.seconds_by["compute"]

    copies = work(**degrees) / work() - 1.0  # of the router, which tensor parallelism does not cut
    assert (0.0 <= copies < 0.003) if "tp" in degrees else copies == pytest.approx(0.0)
