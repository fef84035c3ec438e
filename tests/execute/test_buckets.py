"""Buckets change neither sums nor weights, and what they send is promised exactly."""

from __future__ import annotations

import pytest

from execute.bucket_jobs import case
from execute.conftest import Pools
from meshwright.execute.step.buckets import buckets_of, ways

SEEDS = 60


@pytest.mark.parametrize("first", (0, *(pytest.param(SEEDS * k, marks=pytest.mark.slow) for k in range(1, 6))))
def test_random_ways_in_buckets_are_those_of_single_parameters(first: int, pools: Pools) -> None:
    for problems in pools(4).run("execute.bucket_jobs:compared", list(range(first, first + SEEDS))):
        assert problems == []


def test_the_random_ways_hold_every_kind_of_step() -> None:
    kinds = set()
    for seed in range(SEEDS):
        for bucket in buckets_of(case(seed).code, case(seed).graph):
            for part in ("every", "sums", "gathers"):
                steps = getattr(bucket, part)
                kinds |= {(part, step[0].collective, len(steps) > 1, len(step) > 1) for step in steps}
    for part, collective in (
        ("every", "reduce_scatter"), ("sums", "reduce_scatter"), ("sums", "all_reduce"), ("sums", None), ("gathers", "all_gather"),
    ):  # fmt: skip
        found = {(chain, together) for p, c, chain, together in kinds if (p, c) == (part, collective)}
        assert {chain for chain, _ in found} == {together for _, together in found} == {False, True}


def test_a_bucket_holds_like_ways_up_to_its_capacity() -> None:
    for seed in range(SEEDS):
        found = case(seed)
        way = ways(found.code)
        for bucket in buckets_of(found.code, found.graph, found.capacity):
            assert len({way[name].like() for name in bucket.names}) == 1
            assert len({found.graph.tensor[name].dtype for name in bucket.names}) == 1
            assert sum(p.elements[1] for p in bucket.params[:-1]) * 4 < found.capacity  # float32


def test_buckets_stand_in_the_order_in_which_the_backward_completes_them() -> None:
    for seed in range(SEEDS):
        found = case(seed)
        order = [n.removeprefix("∂") for s in reversed(found.code.segments) for i in s.backward for n in i.outputs]
        segment = {n.removeprefix("∂"): k for k, s in enumerate(reversed(found.code.segments)) for i in s.backward for n in i.outputs}  # fmt: skip
        lasts = [max(segment[n] for n in b.names) for b in buckets_of(found.code, found.graph, found.capacity)]
        assert sorted(order) == sorted(segment) and lasts == sorted(lasts)
