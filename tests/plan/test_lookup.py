"""What a stage says about an op, and how its entries fold into spans."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.plan.lookup import (
    Span,
    layout_of,
    offloads,
    recomputes,
    representative_tensor,
    sharding_of,
    span_entry,
    spans,
    stage_ops,
    storage_of,
)
from meshwright.plan.model import Cut, Layout, OpSharding, Stage, Storage
from meshwright.testing.tiny import mlp

GRAPH = mlp(5)
RUN = GRAPH.runs[0]
OWN, FIRST = OpSharding({"n": (Cut("tp"),)}), OpSharding({"k": (Cut("tp"),)})


def stage(*ops: str, **fields: object) -> Stage:
    return Stage(ops, Mesh((0,)), **fields)  # type: ignore[arg-type]


def test_entries_stand_for_ops_and_blocks() -> None:
    assert stage_ops(GRAPH, stage("layers[1:3]", "head/linear", "loss/mean")) == (3, 4, 5, 6, 11, 12)
    assert span_entry(RUN, 1, 3) == "layers[1:3]"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "layers.9/x",
            'no op "layers.9/x" in this graph: entries are op names or blocks of a run such as "layers[0:4]"',
        ),
        ("layer[0:2]", '"layer[0:2]" names 0 runs of equal blocks: this graph has layers'),
        ("layers[2:9]", '"layers[2:9]" is outside of the run: layers has blocks 0 to 4'),
        ("layers[2:2]", '"layers[2:2]" is outside of the run: layers has blocks 0 to 4'),
    ],
)
def test_an_entry_that_names_nothing_says_what_there_is(entry: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        stage_ops(GRAPH, stage(entry))
    assert str(error.value) == message


def test_own_entry_wins_over_that_of_block_0() -> None:
    s = stage(shardings={"layers.0.fc/linear": FIRST, "layers.3.fc/linear": OWN})
    assert sharding_of(GRAPH, s, 7) is OWN
    assert sharding_of(GRAPH, s, 5) is FIRST
    assert sharding_of(GRAPH, s, 11) is None
    first, own = Storage(resident=0.5), Storage(resident=0.25)
    s = stage(storage={"layers.0.fc.weight": first, "layers.2.fc.weight": own})
    assert [storage_of(GRAPH, s, f"layers.{i}.fc.weight") for i in (0, 1, 2)] == [first, first, own]
    assert storage_of(GRAPH, s, "head.weight") is None
    rest = Layout((((0, (Cut("tp"),)),), ((0, ()),)))
    s = stage(layouts={"layers.0.act.out": rest})
    assert layout_of(GRAPH, s, "layers.4.act.out") is rest
    assert layout_of(GRAPH, s, "layers.4.fc.out") is None and layout_of(GRAPH, s, "x") is None
    s = stage(recompute=frozenset({"layers.0.act/relu"}), offload=frozenset({"layers.0.fc.out"}))
    assert recomputes(GRAPH, s, 6) and not recomputes(GRAPH, s, 5)
    assert offloads(GRAPH, s, "layers.3.fc.out") and not offloads(GRAPH, s, "x")
    assert representative_tensor(GRAPH, "layers.3.fc.weight") == "layers.0.fc.weight"


def test_blocks_that_are_alike_share_a_span() -> None:
    assert spans(GRAPH, stage("layers[0:5]", "head/linear", "loss/mean")) == (
        Span(RUN, 1, 11, 0, 5),
        Span(None, 11, 13),
    )
    assert spans(GRAPH, stage("layers[1:3]"))[0].length == 2


def test_a_block_with_entries_of_its_own_is_a_span_of_its_own() -> None:
    for fields in (
        {"shardings": {"layers.0.fc/linear": FIRST, "layers.2.fc/linear": OWN}},
        {"storage": {"layers.2.fc.weight": Storage()}},
        {"recompute": frozenset({"layers.2.act/relu"})},
    ):
        assert [(x.block, x.count) for x in spans(GRAPH, stage("layers[0:5]", **fields))] == [(0, 2), (2, 1), (3, 2)]
    # The next block reads the tensor whose layout differs.
    got = spans(GRAPH, stage("layers[0:5]", layouts={"layers.2.act.out": Layout(((), ()))}))
    assert [(x.block, x.count) for x in got] == [(0, 2), (2, 1), (3, 1), (4, 1)]


def test_entries_of_block_0_single_nothing_out() -> None:
    s = stage("layers[0:5]", shardings={"layers.0.fc/linear": OWN}, layouts={"layers.0.act.out": Layout(((), ()))})
    assert [(x.block, x.count) for x in spans(GRAPH, s)] == [(0, 5)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(1, 13), st.sets(st.integers(1, 4)))
def test_spans_cover_the_ops_of_the_stage_in_order(first: int, length: int, special: set[int]) -> None:
    ops = tuple(op.name for op in GRAPH.ops[first : first + length])
    s = stage(*ops, shardings={f"layers.{b}.fc/linear": OWN for b in special})
    found = spans(GRAPH, s)
    assert tuple(i for x in found for i in range(x.first, x.stop)) == stage_ops(GRAPH, s)
    for x in found:
        if x.run is not None:
            assert x.length == RUN.length and x.first == RUN.first + x.block * RUN.length
            assert x.count == 1 or not special & set(range(x.block, x.block + x.count))
