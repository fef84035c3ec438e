"""Sends between stages of unequal replicas, against a count of single elements and a step worked out on paper."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.lower import lower
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.simulate import Pricer, sends_of, simulate

from .small import SAMPLES, Rates, chain, problem

WIDTH = 16


def uneven(replicas: list[int], micro: int, m: int) -> Plan:
    """Stages of one block each, the first with the head, the last with the loss, of dp replicas."""
    graph = chain(len(replicas), WIDTH)
    cuts = {op.name: OpSharding({"m": (Cut("dp"),)}) for op in graph.ops if not op.module or op.module == "layers.0"}
    stages, first = [], 0
    for k, r in enumerate(replicas):
        ops = [*(["start"] if k == 0 else []), f"layers[{k}:{k + 1}]", *(["loss"] if k == len(replicas) - 1 else [])]
        stages.append(Stage(tuple(ops), Mesh(range(first, first + r), ("dp",), (r,)), cuts))
        first += r
    return Plan(graph.digest, micro * m, tuple(stages), Schedule("1f1b", m))


def _rows(samples: int, replicas: int) -> list[range]:
    block = -(-samples // replicas)
    return [range(min(samples, k * block), min(samples, (k + 1) * block)) for k in range(replicas)]


def _busiest(samples: int, a: int, b: int) -> float:
    """Most bytes that one replica sends or gets when rows of float32 go from a to b replicas, row by row."""
    owner = {row: k for k, rows in enumerate(_rows(samples, a)) for row in rows}
    sent, got = np.zeros(a), np.zeros(b)
    for k, rows in enumerate(_rows(samples, b)):
        for row in rows:
            sent[owner[row]] += 4.0 * WIDTH
            got[k] += 4.0 * WIDTH
    return float(max(sent.max(), got.max()))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(1, 30))
def test_a_send_lasts_as_long_as_its_busiest_replica(replicas: list[int], micro: int) -> None:
    graph, plan = chain(len(replicas), WIDTH), uneven(replicas, micro, 2)
    question = problem(graph, sum(replicas), Rates(link=1e3), samples=plan.samples)
    program = lower(graph, plan, question.recipe)
    sends = sends_of(program, Pricer(graph, question.cluster, question.cost, question.recipe))
    assert sends.src.tolist() == list(range(len(replicas) - 1))
    for k, (a, b) in enumerate(pairwise(replicas)):
        there = _busiest(micro, a, b) if a != b else 4.0 * WIDTH * -(-micro // a)
        assert sends.forward[k] == pytest.approx(there / 1e3)
        assert sends.backward[k] == pytest.approx(there / 1e3)


def test_two_stages_of_three_replicas_and_one_by_hand() -> None:
    """Replicas of stage 0 have 2 of 6 rows each; the one of stage 1 has all."""
    graph, plan = chain(2, WIDTH), uneven([3, 1], 6, 1)
    question = problem(graph, 4, Rates(link=1e3, bandwidth=1e30, share=0.0), samples=6)
    found = simulate(question, plan)
    product = 2.0 * WIDTH * WIDTH / 1e6  # seconds a row
    forward = [2 * 2 * product, 6 * product]  # start and a block; a block
    send = 6 * 4.0 * WIDTH / 1e3
    # a backward takes two forwards, but the data has no gradient: the first product of 2 rows has one part less
    first = 3 * forward[0] - 2 * product + 3 * forward[1] + 2 * send
    sums = 2 * (2 / 3) * 2 * 4.0 * WIDTH * WIDTH / 1e3  # an all-reduce of two weights over three
    assert found.step_seconds == pytest.approx(first + sums, rel=1e-6)
    assert [lane.devices for lane in found.lanes] == [3, 1]
    assert found.seconds_by["all_reduce"] == pytest.approx(sums)
    assert found.peak_by[0]["weights"] == pytest.approx(2 * 4 * WIDTH * WIDTH)
    assert found.peak_by[1]["weights"] == pytest.approx(4 * WIDTH * WIDTH)


def test_one_replica_each_costs_what_equal_meshes_cost() -> None:
    """An axis of length 1 under another name changes nothing."""
    graph, plan = chain(2, WIDTH), uneven([1, 1], SAMPLES, 4)
    question = problem(graph, 2, Rates(link=1e3), samples=plan.samples)
    other = replace(plan.stages[1], mesh=Mesh((1,), ("tp",), (1,)), shardings={})
    renamed = replace(plan, stages=(plan.stages[0], other))
    assert simulate(question, renamed).step_seconds == pytest.approx(simulate(question, plan).step_seconds, rel=1e-12)


def test_stages_without_rows_take_turns() -> None:
    """One micro-batch over disjoint meshes: forwards and backwards in a row, as with any schedule; two do not overlap more
    than the rows say; a device in two stages makes them one lane, which sends to itself."""
    graph = chain(2, WIDTH)
    for m in (1, 3):
        flow = uneven([3, 1], 6, m)
        question = problem(graph, 4, Rates(link=1e3), samples=flow.samples)
        free = replace(flow, schedule=Schedule("dataflow", m))
        assert m > 1 or simulate(question, free).step_seconds == pytest.approx(simulate(question, flow).step_seconds)
        assert simulate(question, free).step_seconds >= simulate(question, flow).step_seconds * (1 - 1e-12)
        last = replace(flow.stages[1], mesh=Mesh((2,), ("dp",), (1,)))
        shared = simulate(question, replace(free, stages=(flow.stages[0], last)))
        assert len(shared.lanes) == 1
        whole = problem(graph, 4, Rates(link=1e30), samples=flow.samples)
        moved = (
            m * 2 * 4.0 * 4 * WIDTH / 1e3
        )  # four of six rows come from the two other replicas, and their gradients go back
        without = simulate(whole, replace(free, stages=(flow.stages[0], last))).step_seconds
        sums = shared.seconds_by["all_reduce"]
        assert shared.step_seconds == pytest.approx(without + moved + sums, rel=1e-6)
