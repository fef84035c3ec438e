"""Moves between plans against a census of every element."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster import resolve
from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.plan.layout import boxes
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Stage, Storage
from meshwright.plan.moves import READ, moves, param_layout, transition
from meshwright.testing.tiny import mlp

GRAPH = mlp(2, width=6, samples=4)
NAMES = tuple(op.name for op in GRAPH.ops)
PARAMS = {p.name: i for p in GRAPH.params() for i, op in enumerate(GRAPH.ops) if p.name in op.inputs}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    cut = draw(st.integers(1, len(NAMES)))
    stages = []
    for ops in (NAMES[:cut], NAMES[cut:]):
        if not ops:
            continue
        shape = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 3)]))
        devices = draw(st.permutations(range(8)))[: shape[0] * shape[1]]
        mesh = Mesh(tuple(devices), ("a", "b"), shape)
        shardings, storage = {}, {}
        for name in ops:
            if not name.endswith("linear"):
                continue
            axes = draw(st.permutations(["a", "b"]))
            factors = draw(st.permutations(["n", "k", "b"]))
            shardings[name] = OpSharding({factors[0]: (Cut(axes[0]),), factors[1]: (Cut(axes[1]),)})
            if draw(st.booleans()):
                dims = [((2, ()), (3, (Cut("a"),))), ((0, (Cut("b"),)),)]
                storage[GRAPH.ops[GRAPH.position[name]].inputs[1]] = Storage(
                    state=Layout(tuple(draw(st.permutations(dims))))
                )
        stages.append(Stage(ops, mesh, shardings, {}, storage))
    return Plan(GRAPH.digest, 4, tuple(stages))


def census(plan: Plan, part: str) -> dict[str, dict[int, set[tuple[int, ...]]]]:
    held: dict[str, dict[int, set[tuple[int, ...]]]] = {}
    for stage in plan.stages:
        for name, op in PARAMS.items():
            if NAMES[op] in stage.ops:
                layout = param_layout(GRAPH, stage, name, op, part)  # type: ignore[arg-type]
                for i, device in enumerate(stage.mesh.devices):
                    for lo, hi in boxes(layout, GRAPH.tensor[name].shape, stage.mesh, stage.mesh.coordinates(i)):
                        held.setdefault(name, {}).setdefault(device, set()).update(product(*map(range, lo, hi)))
    return held


@settings(max_examples=100, deadline=None)
@given(plans(), plans())
def test_each_missing_element_comes_once_from_the_nearest_device_that_has_it(old: Plan, new: Plan) -> None:
    got = moves(GRAPH, old, new, state_bytes=12.0)
    for part, each in (("param", 4.0), ("state", 12.0)):
        before, after = census(old, part), census(new, part)
        brought: Counter[tuple[str, int, tuple[int, ...]]] = Counter()
        for move in got:
            if move.part != part:
                continue
            elements = list(product(*map(range, move.lo, move.hi)))
            assert move.nbytes == len(elements) * each
            for i in elements:
                brought[move.tensor, move.dst, i] += 1
                assert i in before[move.tensor][move.src]
                near = min((abs(d - move.dst), d) for d, held in before[move.tensor].items() if i in held)
                assert near == (abs(move.src - move.dst), move.src)
        wanted = {
            (name, device, i)
            for name, devices in after.items()
            for device, held in devices.items()
            for i in held - before[name].get(device, set())
        }
        assert brought == dict.fromkeys(wanted, 1)


@settings(max_examples=50, deadline=None)
@given(plans(), plans(), st.sets(st.integers(0, 7)))
def test_with_devices_gone_each_element_is_kept_sent_or_read_once(old: Plan, new: Plan, present: set[int]) -> None:
    """Kept where the device has it, sent where another that is left has it, read where none has."""
    before, after = census(old, "state"), census(new, "state")
    found: Counter[tuple[str, int, tuple[int, ...]]] = Counter()
    for alike in transition((GRAPH, old), (GRAPH, new), "state", 12.0, present=present):
        for name in alike.names:
            for move in alike.moves:
                elements = list(product(*map(range, move.lo, move.hi)))
                assert move.nbytes == 12.0 * len(elements)
                for i in elements:
                    found[name, move.dst, i] += 1
                    holders = {d for d, held in before[name].items() if i in held and d in present}
                    assert (move.src == move.dst) == (move.dst in holders)
                    assert move.src in holders if holders else move.src == READ
    wanted = {(n, d, i) for n, devices in after.items() for d, held in devices.items() for i in held}
    assert found == dict.fromkeys(wanted, 1)


def test_equal_layers_move_together() -> None:
    deep = mlp(6, width=6, samples=4)
    old = Plan(deep.digest, 4, (Stage(tuple(op.name for op in deep.ops), Mesh((0,))),))
    new = Plan(deep.digest, 4, (Stage(tuple(op.name for op in deep.ops), Mesh((1,))),))
    (alike,) = transition((deep, old), (deep, new), "state", 12.0)
    assert len(alike.names) == 8 and [(m.src, m.dst, m.nbytes) for m in alike.moves] == [(0, 1, 36 * 12.0)]
    assert len(moves(deep, old, new, state_bytes=12.0)) == 16


@settings(max_examples=20, deadline=None)
@given(plans())
def test_nothing_moves_from_a_plan_to_itself(plan: Plan) -> None:
    assert moves(GRAPH, plan, plan, state_bytes=12.0) == ()


def test_the_nearest_device_is_one_of_the_same_node() -> None:
    old = Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((6, 9), ("a",), (2,))),))
    new = Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((8,))),))
    assert {m.src for m in moves(GRAPH, old, new)} == {9}
    new = Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((0,))),))
    far = Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((8, 7), ("a",), (2,))),))
    assert {m.src for m in moves(GRAPH, far, Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((9,))),)))} == {8}
    # Device 8 is nearer to 7 by number, device 0 by node.
    near = Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((0, 8), ("a",), (2,))),))
    seven = Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((7,))),))
    assert {m.src for m in moves(GRAPH, near, seven)} == {8}
    assert {m.src for m in moves(GRAPH, near, seven, cluster=resolve("a100x16"))} == {0}


def test_a_parameter_that_the_old_plan_has_not_is_refused() -> None:
    old = Plan(GRAPH.digest, 4, (Stage(NAMES[:3], Mesh((0,))),))
    new = Plan(GRAPH.digest, 4, (Stage(NAMES, Mesh((0,))),))
    with pytest.raises(InputError) as error:
        moves(GRAPH, old, new)
    assert (
        str(error.value)
        == 'parameter "layers.1.fc.weight" is in no stage of the old plan: it cannot be moved from there'
    )
