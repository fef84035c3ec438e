"""Recorded prices: looked up, scaled by the share of a shard, refused where nothing was recorded."""

from __future__ import annotations

import numpy as np
import pytest

from meshwright.cluster import Cluster, DeviceType, Level
from meshwright.cost import OpRecord, Recorded, TransferRecord
from meshwright.errors import InputError
from meshwright.graph.ir import Factor, Op, Rule

GPU = DeviceType("gpu0", "gpu", 1e10, {}, 0.0)
CPU = DeviceType("cpu0", "cpu", 1e10, {}, 0.0)
CLUSTER = Cluster("c", (GPU,), 2, (), (Level("node", 2, 1e9, 1e-3),))


def _op(*factors: Factor) -> Op:
    names = tuple((f.name,) for f in factors)
    return Op("layer", "profiled", ("x",), ("y",), Rule(factors, (names,), (names,)))


SAMPLES = Factor("samples", 8, samples=True)


def test_prices_scale_with_the_share_of_the_samples() -> None:
    model = Recorded({"layer": OpRecord({"forward": 2.0, "backward": 4.0}, static=10.0, kept=8.0)})
    op = _op(SAMPLES)
    np.testing.assert_allclose(model.compute(op, np.array([[8], [2]]), GPU, "forward"), [2.0, 0.5])
    np.testing.assert_allclose(model.compute(op, np.array([[4]]), GPU, "backward"), [2.0])
    found = model.memory(op, np.array([[4]]))
    assert (found.static[0], found.kept[0]) == (10.0, 4.0)


def test_backward_is_the_sum_of_its_halves_where_only_they_are_recorded() -> None:
    model = Recorded({"layer": OpRecord({"forward": 1.0, "input_grad": 2.0, "weight_grad": 3.0})})
    assert model.compute(_op(SAMPLES), np.array([[8]]), GPU, "backward")[0] == 5.0


def test_device_kinds_have_their_own_times() -> None:
    model = Recorded({"layer": OpRecord({"forward": 1.0}, on={"cpu": {"forward": 7.0}})}, scale=1e-3)
    assert model.compute(_op(SAMPLES), np.array([[8]]), GPU, "forward")[0] == pytest.approx(1e-3)
    assert model.compute(_op(SAMPLES), np.array([[8]]), CPU, "forward")[0] == pytest.approx(7e-3)


def test_opaque_degrees_are_looked_up_and_others_refused() -> None:
    record = OpRecord({"forward": 4.0}, degree={2: {"forward": 2.5}, 4: {"forward": 1.75}})
    op = _op(SAMPLES, Factor("tmp", 4, "opaque"))
    model = Recorded({"layer": record})
    np.testing.assert_allclose(model.compute(op, np.array([[8, 4], [8, 2], [4, 1]]), GPU, "forward"), [4.0, 2.5, 0.875])
    with pytest.raises(InputError, match="layer was not recorded in 3 parts: recorded are 2, 4"):
        model.compute(_op(SAMPLES, Factor("tmp", 6, "opaque")), np.array([[8, 2]]), GPU, "forward")


def test_transfers_follow_the_edge_then_the_tensor_then_the_bytes() -> None:
    model = Recorded(
        {},
        {
            ("t", "b"): TransferRecord(seconds=5.0),
            ("t", ""): TransferRecord(nbytes=2e9),
            ("z", ""): TransferRecord(0.0),
        },
    )
    assert model.transfer(np.array([1e9]), 0, 1, CLUSTER, tensor="t", consumer="b")[0] == 5.0
    assert model.transfer(np.array([1e9]), 0, 1, CLUSTER, tensor="t", consumer="c")[0] == pytest.approx(2.001)
    assert model.transfer(np.array([1e9]), 0, 1, CLUSTER, tensor="u")[0] == pytest.approx(1.001)
    assert model.transfer(np.array([1e9]), 0, 1, CLUSTER, tensor="z")[0] == 0.0
    assert model.transfer(np.array([1e9]), 1, 1, CLUSTER, tensor="t")[0] == 0.0


def test_an_op_without_a_record_is_refused() -> None:
    with pytest.raises(InputError, match='no recorded price for op "layer": the profile holds 0 ops'):
        Recorded({}).compute(_op(SAMPLES), np.array([[8]]), GPU, "forward")
