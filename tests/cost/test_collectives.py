"""Collectives: closed forms by hand, properties, and the terms besides the links."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster import Cluster, DeviceType, Level, Link, Mesh, resolve
from meshwright.cost import Analytic, Group, Recorded
from meshwright.cost.base import Collective
from meshwright.cost.constants import family
from meshwright.errors import InputError

KINDS: tuple[Collective, ...] = (
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "permute",
)  # fmt: skip
DEVICE = DeviceType("d", "gpu", 1e10, {"bfloat16": 1e14}, 1e12, family="a100")
IDEAL = Recorded({})


def _cluster(node: int, nodes: int, inside: float, outside: float, uplink: float, latency: float = 0.0) -> Cluster:
    levels = (Level("node", node, inside, latency, uplink), Level("net", node * nodes, outside, latency))
    return Cluster("c", (DEVICE,), node * nodes, (), levels)


def _ideal(kind: Collective, nbytes: float, cluster: Cluster, mesh: Mesh, *axes: str) -> float:
    return float(IDEAL.collective(kind, np.array([nbytes]), Group(cluster, mesh, axes))[0])


def test_bandwidth_terms_equal_the_closed_forms() -> None:
    cluster = _cluster(8, 4, 100e9, 10e9, 80e9)
    node = Mesh(range(8), ("x",), (8,))
    assert _ideal("all_reduce", 8e9, cluster, node, "x") == pytest.approx(2 * 7 / 8 * 8e9 / 100e9)
    assert _ideal("all_gather", 8e9, cluster, node, "x") == pytest.approx(7 / 8 * 8e9 / 100e9)
    assert _ideal("reduce_scatter", 8e9, cluster, node, "x") == pytest.approx(7 / 8 * 8e9 / 100e9)
    assert _ideal("all_to_all", 8e9, cluster, node, "x") == pytest.approx(7 / 8 * 8e9 / 100e9)
    assert _ideal("broadcast", 8e9, cluster, node, "x") == pytest.approx(8e9 / 100e9)


def test_nics_are_shared_by_the_groups_of_the_mesh() -> None:
    cluster = _cluster(8, 4, 100e9, 80e9, 80e9)
    mesh = Mesh(range(32), ("dp", "tp"), (4, 8))
    # Eight groups of four, one member of each in every node: each has an eighth of the uplink.
    assert _ideal("all_gather", 4e9, cluster, mesh, "dp") == pytest.approx(3 / 4 * 4e9 / 10e9)
    alone = Mesh(range(0, 32, 8), ("dp",), (4,))
    assert _ideal("all_gather", 4e9, cluster, alone, "dp") == pytest.approx(3 / 4 * 4e9 / 80e9)


def test_a_group_over_whole_nodes_uses_all_their_nics() -> None:
    cluster = _cluster(8, 4, 100e9, 10e9, 80e9)
    mesh = Mesh(range(32), ("x",), (32,))
    flat = 2 * 31 / 32 * 8e9 / 80e9
    hierarchical = 2 * (7 / 8 * 8e9 / 100e9 + 3 / 4 * 1e9 / 10e9)
    assert _ideal("all_reduce", 8e9, cluster, mesh, "x") == pytest.approx(min(flat, hierarchical))
    assert hierarchical > flat


def test_hierarchical_wins_where_nodes_are_much_faster_than_their_nics() -> None:
    cluster = _cluster(8, 4, 400e9, 10e9, 80e9)
    mesh = Mesh(range(32), ("x",), (32,))
    flat = 2 * 31 / 32 * 8e9 / 80e9
    hierarchical = 2 * (7 / 8 * 8e9 / 400e9 + 3 / 4 * 1e9 / 10e9)
    assert _ideal("all_reduce", 8e9, cluster, mesh, "x") == pytest.approx(hierarchical)
    assert hierarchical < flat


def test_joint_axes_are_one_group() -> None:
    cluster = _cluster(8, 4, 100e9, 10e9, 80e9)
    two = Mesh(range(32), ("a", "b"), (4, 8))
    one = Mesh(range(32), ("x",), (32,))
    for kind in KINDS:
        assert _ideal(kind, 1e8, cluster, two, "a", "b") == pytest.approx(_ideal(kind, 1e8, cluster, one, "x"))


def test_a_group_of_one_is_free_and_so_are_no_bytes() -> None:
    cluster = _cluster(8, 4, 100e9, 10e9, 80e9, 1e-5)
    mesh = Mesh(range(32), ("a", "b"), (1, 32))
    for kind in KINDS:
        assert _ideal(kind, 1e8, cluster, mesh, "a") == 0.0
        assert _ideal(kind, 0.0, cluster, mesh, "b") == 0.0


def test_direct_wiring_gives_small_groups_less() -> None:
    wired = Cluster("c", (DEVICE,), 8, (), (Level("node", 8, 70e9, pair=10e9),))
    two, eight = Mesh(range(2), ("x",), (2,)), Mesh(range(8), ("x",), (8,))
    assert _ideal("all_gather", 1e9, wired, two, "x") == pytest.approx(0.5 * 1e9 / 10e9)
    assert _ideal("all_gather", 1e9, wired, eight, "x") == pytest.approx(7 / 8 * 1e9 / 70e9)


def test_ring_latency_has_a_step_per_member_and_the_tree_is_cheaper_for_small_messages() -> None:
    big = resolve("h100x16384")
    mesh = Mesh(range(16384), ("dp", "tp"), (2048, 8))
    gather = Analytic().collective("all_gather", np.array([1e3]), Group(big, mesh, ("dp",)))[0]
    reduce = Analytic().collective("all_reduce", np.array([1e3]), Group(big, mesh, ("dp",)))[0]
    # 2,047 network steps at NCCL's low-latency 2.7 us a step.
    assert gather == pytest.approx(2047 * 14e-6 * 0.19, rel=0.02)
    assert reduce < gather / 20


def test_explicit_links_replace_the_levels() -> None:
    slow = Cluster("c", (DEVICE,), 2, (), (Level("node", 2, 100e9),), (Link(0, 1, 1e9), Link(1, 0, 1e9)))
    mesh = Mesh(range(2), ("x",), (2,))
    assert _ideal("all_gather", 1e9, slow, mesh, "x") == pytest.approx(0.5)
    assert IDEAL.transfer(np.array([1e9]), 0, 1, slow)[0] == pytest.approx(1.0)


def test_members_that_no_level_joins_are_refused() -> None:
    apart = Cluster("apart", (DEVICE,), 4, (), (Level("node", 2, 1e9),))
    with pytest.raises(InputError, match="a group of 4 devices is in 2 parts that no level joins"):
        _ideal("all_reduce", 1.0, apart, Mesh(range(4), ("x",), (4,)), "x")


@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from([(32, 1), (4, 8), (8, 4), (16, 2), (2, 16), (1, 32)]),
    axis=st.sampled_from([("a",), ("b",), ("a", "b")]),
    nbytes=st.floats(1.0, 1e10),
    factor=st.floats(1.0, 100.0),
    rates=st.tuples(st.floats(1e9, 1e12), st.floats(1e9, 1e11), st.floats(1e9, 1e12)),
)
@settings(max_examples=200, deadline=None)
def test_more_bandwidth_and_fewer_bytes_are_never_slower(
    kind: Collective,
    shape: tuple[int, int],
    axis: tuple[str, ...],
    nbytes: float,
    factor: float,
    rates: tuple[float, float, float],
) -> None:
    model = Analytic()
    mesh = Mesh(range(32), ("a", "b"), shape)

    def seconds(inside: float, outside: float, uplink: float, moved: float) -> float:
        cluster = _cluster(8, 4, inside, outside, uplink, 5e-6)
        return float(model.collective(kind, np.array([moved]), Group(cluster, mesh, axis))[0])

    inside, outside, uplink = rates
    here = seconds(inside, outside, uplink, nbytes)
    assert seconds(inside * factor, outside, uplink, nbytes) <= here * (1 + 1e-12)
    assert seconds(inside, outside * factor, uplink, nbytes) <= here * (1 + 1e-12)
    assert seconds(inside, outside, uplink * factor, nbytes) <= here * (1 + 1e-12)
    assert seconds(inside, outside, uplink, nbytes * factor) >= here * (1 - 1e-12)


def test_arrays_and_single_prices_agree() -> None:
    cluster = resolve("h100x64")
    mesh = Mesh(range(64), ("dp", "tp"), (8, 8))
    nbytes = np.geomspace(1, 1e10, 40)
    for kind in KINDS:
        group = Group(cluster, mesh, ("dp",))
        many = Analytic().collective(kind, nbytes, group)
        single = [Analytic().collective(kind, np.array([b]), group)[0] for b in nbytes]
        np.testing.assert_allclose(many, single, rtol=1e-14)


def test_a_round_fills_and_drains_at_the_rate_of_the_first_level() -> None:
    constants = family("a100")
    cluster = _cluster(8, 4, 100e9, 10e9, 80e9)
    moved, model = np.array([1e12]), Analytic()  # so much that latencies do not count
    for axes, ring in (
        (("b",), 7 / 8 * 1e12 / (100e9 * constants.inner)),
        (("a",), 3 / 4 * 1e12 / (10e9 * constants.outer)),
    ):
        group = Group(cluster, Mesh(range(32), ("a", "b"), (4, 8)), axes)
        rate = 100e9 * constants.inner if axes == ("b",) else 10e9 * constants.outer
        fill = constants.fill * 1e12 / rate
        assert model.collective("all_gather", moved, group)[0] == pytest.approx(ring + fill, rel=1e-4)
        assert model.collective("all_reduce", moved, group)[0] == pytest.approx(2 * (ring + fill), rel=1e-4)


def test_all_to_all_runs_at_a_rate_of_its_own() -> None:
    constants = family("a100")
    cluster = _cluster(8, 1, 100e9, 10e9, 80e9)
    group = Group(cluster, Mesh(range(8), ("x",), (8,)), ("x",))
    found = Analytic().collective("all_to_all", np.array([1e12]), group)[0]
    assert found == pytest.approx(7 / 8 * 1e12 / (100e9 * constants.inner * constants.exchange), rel=1e-4)
