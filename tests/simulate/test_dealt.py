"""Replicas that take turns in a step with a flush: against a play by hand, and against cut samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.errors import Unsupported
from meshwright.formats import piper
from meshwright.lower import lower
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.schedules import rows
from meshwright.planners.piper import Piper
from meshwright.simulate.price import Pricer
from meshwright.simulate.sends import sends_of
from meshwright.simulate.simulator import simulate

from .small import Rates, chain, pipeline, problem


def _dealt(replicas: Sequence[int], m: int, name: str = "1f1b") -> Plan:
    graph = chain(len(replicas))
    base, stages, at = pipeline(graph, len(replicas), m), [], 0
    for stage, n in zip(base.stages, replicas, strict=True):
        mesh = Mesh(range(at, at + n), ("dp",), (n,))
        stages.append(replace(stage, mesh=mesh, deal="dp" if n > 1 else ""))
        at += n
    return replace(base, stages=tuple(stages), schedule=Schedule(name, m), samples=8 * m)


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(["1f1b", "gpipe"]),
    replicas=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    m=st.integers(3, 9),
    link=st.sampled_from([1e5, 1e6, 1e8]),
)
def test_a_step_is_what_a_play_by_hand_says(name: str, replicas: list[int], m: int, link: float) -> None:
    """Copies in their order, a send at a time each way, then the sum over copies, which waits for all and hides nowhere."""
    plan, graph = _dealt(replicas, m, name), chain(len(replicas))
    asked = problem(graph, sum(replicas), Rates(link=link, share=0.0), samples=8 * m)
    program = lower(graph, plan, asked.recipe)
    pricer = Pricer(graph, asked.cluster, asked.cost, asked.recipe)
    prices, sends = [pricer.stage(code, [8]) for code in program.stages], sends_of(program, pricer)
    stage = [k for k, n in enumerate(replicas) for _ in range(n)]
    todo = [list(row.actions) for row in rows(plan)]
    free, busy = np.zeros(len(todo)), np.zeros((2, len(todo)))
    there: dict[tuple[str, int, int], float] = {}
    while any(todo):
        for e, own in enumerate(todo):
            while own:
                a, k = own[0], stage[e]
                assert not isinstance(a, tuple)
                first = k == 0 if a.kind == "F" else k == len(replicas) - 1
                came = 0.0 if first else there.get((a.kind, k, a.micro_batch))
                if came is None:
                    break
                own.pop(0)
                spent = prices[e].forward[0].sum() if a.kind == "F" else prices[e].backward[0].sum()
                free[e] = max(free[e], came) + spent
                to = k + 1 if a.kind == "F" else k - 1
                if 0 <= to < len(replicas):
                    back, seconds = int(a.kind == "B"), sends.backward if a.kind == "B" else sends.forward
                    busy[back, e] = max(busy[back, e], free[e]) + (seconds[0] if len(seconds) else 0.0)
                    there[a.kind, to, a.micro_batch] = busy[back, e]
    end = 0.0
    for k, n in enumerate(replicas):
        own = [e for e, at in enumerate(stage) if at == k]
        total = 0.0
        if n > 1:
            params = sum(p.count * p.elements[1] for p in program.stages[own[0]].params)
            total = 4.0 * params * (n - 1) / n * 2 / link
        end = max(end, max(free[own]) + total + prices[own[0]].optimizer)
    found = simulate(asked, plan)
    assert found.step_seconds == pytest.approx(end, rel=1e-9)
    assert len(found.lanes) == len(todo)


def test_replicas_that_take_turns_everywhere_are_pipelines_of_their_own() -> None:
    """But for where the sums are priced: so many fewer micro-batches each as there are replicas."""
    plan, graph = _dealt([3, 3], 9), chain(2)
    free = problem(graph, 6, Rates(link=1e15), samples=72)
    alone = problem(graph, 2, Rates(link=1e15), samples=24)
    assert simulate(free, plan).step_seconds == pytest.approx(
        simulate(alone, replace(pipeline(graph, 2, 3), samples=24)).step_seconds, rel=1e-9
    )


def test_a_profile_says_the_same_of_dealt_and_of_cut_samples(data_folder: Path) -> None:
    """Its files are of one sample, which a cut leaves whole on one device of two; the sum of weights is the file's own."""
    read = piper.read(
        data_folder / "piper" / "bert32a100.json", devices=4, memory=80e9, bandwidth=25e9, micro_batches=8
    )
    graph = read.graph
    names = tuple(op.name for op in graph.ops)
    mesh = Mesh(range(4), ("dp",), (4,))
    cut = {op.name: OpSharding({op.rule.factors[0].name: (Cut("dp"),)}) for op in graph.ops}
    dealt = Plan(graph.digest, 8, (Stage(names, mesh, deal="dp"),), Schedule("1f1b", 8))
    shared = Plan(graph.digest, 8, (Stage(names, mesh, cut),), Schedule("1f1b", 2))
    one, other = simulate(read, dealt), simulate(read, shared)
    weights = sum(read.cost.choices[name][1][0].weights for name in names)  # type: ignore[attr-defined]
    assert other.bytes_by == {"all_reduce": weights}
    assert one.step_seconds == pytest.approx(other.step_seconds, rel=1e-9)
    assert one.seconds_by["all_reduce"] == pytest.approx(2 * 3 / 4 * weights / 25e9, rel=1e-9)
    assert one.peak == pytest.approx(np.full(4, other.peak[0]), rel=1e-9)


def test_plans_of_piper_are_simulated_and_fit(data_folder: Path) -> None:
    """Its memory is the simulator's, for both deal in turn: ⌈s / d⌉ micro-batches a replica."""
    read = piper.read(
        data_folder / "piper" / "bert32a100.json", devices=16, memory=8e9, bandwidth=25e9, micro_batches=480
    )
    plan = Piper().plan(read).plan
    assert plan is not None and len({s.mesh.size("dp") for s in plan.stages}) > 1
    found = simulate(read, plan)
    assert len(found.lanes) == 16 and max(found.peak) <= 8e9
    later, at = sum(s.mesh.size("dp") for s in plan.stages), 0
    cost = read.cost
    for stage in plan.stages:
        d = stage.mesh.size("dp")
        chosen = [
            next(c for c in cost.choices[name][1] if c.name == sharding.variant)  # type: ignore[attr-defined]
            for name, sharding in stage.shardings.items()
        ]
        held = sum(-(-later // d) * c.stashed + c.fixed for c in chosen)
        assert found.peak[at : at + d] == pytest.approx(np.full(d, held), rel=1e-9)
        later, at = later - d, at + d


def test_what_no_table_deals_is_refused() -> None:
    graph, plan = chain(2), _dealt([2, 1], 4)
    asked = problem(graph, 3, samples=32)
    with pytest.raises(Unsupported, match=r"stage 0 deals micro-batches to replicas .* under schedule zb-h1"):
        simulate(asked, replace(plan, schedule=Schedule("zb-h1", 4)))
    with pytest.raises(Unsupported, match="DistIR's simulator has no replicas that take turns"):
        simulate(asked, plan, preset="distir")
