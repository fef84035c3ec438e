"""Propagation: the published shardings of all programs, and what holds for any program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from meshwright.formats import spmd_program
from meshwright.planners import _propagate
from meshwright.planners._annotate import annotated, of_dims
from meshwright.planners._axes import Axis, is_prefix
from meshwright.planners._propagate import (
    Dim,
    Factors,
    Node,
    Sharding,
    Strategy,
    Values,
    agreed,
    directions,
    free,
    project,
    propagate,
    step,
    unproject,
)
from meshwright.planners._spmd_values import by_dims
from meshwright.planners.gspmd import GSPMD

from .spmd_cases import add, dims, dot, program, programs, random_programs

X, Y = Axis("x", 1, 2), Axis("y", 1, 4)
NAMES = [
    "mlp_col", "reshape_subaxis", "reshape_merge", "reshape_back", "grad_dp", "grad_tp", "grad_2d", "add_conflict_first_wins",
    "add_conflict_more_sharded", "mm_conflict_rhs_bigger", "mm_conflict_lhs_bigger", "mm_conflict_equal", "layer_two_hints",
    "layer_batch_only", "layer_finalized", "chain_back", "broadcast_bias", "bias_only_hint", "embedding_hidden",
    "conv_spatial", "transpose_concat", "layernorm",
]  # fmt: skip


def shardings(document: dict[str, Any], strategy: Strategy = "aggressive") -> dict[str, Sharding]:
    problem = spmd_program.parse({"p": document}, "programs.json", "p")
    mesh = problem.mesh
    assert mesh is not None
    sizes = {a: mesh.size(a) for a in mesh.axes}
    values = by_dims(problem.graph)
    said = annotated(problem.graph, mesh, problem.annotations)
    start = {values.number[t]: of_dims(problem.graph.tensor[t].shape, a, sizes) for t, a in said.items()}
    return dict(zip(values.number, propagate(values.values, start, strategy)))


def carry(document: dict[str, Any], strategy: Strategy = "aggressive") -> dict[str, Any]:
    result = GSPMD(strategy=strategy).plan(spmd_program.parse({"p": document}, "programs.json", "p"))
    assert isinstance(result.carry, dict)
    return result.carry


@pytest.mark.parametrize("name", NAMES)
def test_the_published_shardings(data_folder: Path, name: str) -> None:
    wanted = programs(data_folder)[name]
    found = carry(wanted)
    assert found["final"] == wanted["final"]
    assert found["final_out"] == wanted["final_out"]


def test_no_published_sharding_is_left_out(data_folder: Path) -> None:
    assert {n for n, p in programs(data_folder).items() if p.get("final") is not None} == set(NAMES)


def test_basic_then_aggressive_differs_on_one_program(data_folder: Path) -> None:
    """As the reference found: there is one whose result depends on it."""
    everything = programs(data_folder)
    other = [n for n, p in everything.items() if shardings(p) != shardings(p, "basic_then_aggressive")]
    assert other == ["grad_fsdp"]


def listed(found: dict[str, Sharding], name: str) -> list[list[str]]:
    return [[a.name if a.pre == 1 else str(a) for a in own] for own in found[name].lists()]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("reshape_merge_full", "1", [["x", "y"], []]),  # both dims are full: nothing is lost
        ("fanout", "arg1", [["y"], []]),
        ("add_conflict_xy", "1", [[], ["x", "y"]]),  # the more sharded factor first
        ("embedding_vocab", "8", [["x"], []]),  # the vocabulary is a reduction
        ("moe_hint", "1", [[], ["x"], [], []]),
        ("conv_out_back", "arg1", [[], [], [], ["y"]]),
        ("softmax_ce", "18", [["x"], ["y"]]),
        ("slice_pad", "3", [["x"], ["y"]]),
        ("layer_out_hint", "28", [["x"], [], ["y"]]),
    ],
)
def test_programs_without_published_shardings_follow_the_rules(
    data_folder: Path, name: str, value: str, wanted: list[list[str]]
) -> None:
    assert listed(shardings(programs(data_folder)[name]), value) == wanted


# ---- any program


@settings(max_examples=40, deadline=None)
@given(random_programs())
def test_propagation_is_deterministic_idempotent_and_only_adds(document: dict[str, Any]) -> None:
    found = shardings(document)
    assert shardings(json.loads(json.dumps(document))) == found
    problem = spmd_program.parse({"p": document}, "f", "p")
    values = by_dims(problem.graph)
    again = propagate(values.values, {values.number[t]: s for t, s in found.items()})
    assert dict(zip(values.number, again)) == found
    for name, own in document["given"].items():
        for dim, new in zip(own, found[name].dims):
            old = tuple(Axis(a[0], *(a[1:] or (1, {"x": 2, "y": 4}[a[0]]))) for a in dim["axes"])
            assert is_prefix(old, new.axes) and (dim["open"] or old == new.axes)
    for sharding in found.values():
        used = sharding.axes()
        assert not any(a.overlaps(b) for k, a in enumerate(used) for b in used[k + 1 :])


@settings(max_examples=40, deadline=None)
@given(random_programs())
def test_renaming_axes_renames_the_result(document: dict[str, Any]) -> None:
    names = {"x": "b", "y": "a"}

    def renamed(value: Any) -> Any:
        if isinstance(value, list) and value and value[0] in ("x", "y"):
            return [names[value[0]], *value[1:]]
        if isinstance(value, list):
            return [renamed(v) for v in value]
        return {k: renamed(v) for k, v in value.items()} if isinstance(value, dict) else value

    other = document | {key: renamed(document[key]) for key in ("mesh", "given", "given_out")}
    there = shardings(other)
    for name, sharding in shardings(document).items():
        mine = [[a._replace(name=names[a.name]) for a in own] for own in sharding.lists()]
        assert mine == [list(own) for own in there[name].lists()]


@settings(max_examples=25, deadline=None)
@given(random_programs())
def test_whole_annotations_move_nothing(document: dict[str, Any]) -> None:
    names = [n for n in document["shapes"] if n.startswith("arg")]
    whole = document | {"given": {n: dims([], []) for n in names}, "given_out": [dims([], [])]}
    result = GSPMD().plan(spmd_program.parse({"p": whole}, "f", "p"))
    assert result.objective == 0.0 and result.carry == {"final": {}, "final_out": [], "conflicts": []}


def test_without_conflicts_the_order_of_ops_does_not_matter() -> None:
    shapes = {f"arg{k}": [16, 16] for k in range(4)} | {"0": [16, 16], "1": [16, 16], "2": [16, 16]}
    ops = [dot("arg0", "arg1", "0", 16, 16, 16), dot("arg2", "arg3", "1", 16, 16, 16), add("0", "1", "2", 16, 16)]
    start = {"arg0": dims([["x"]], []), "arg3": dims([], [["y"]])}
    mesh = [["x", 2], ["y", 4]]
    one = shardings(program(mesh, shapes, ops, ["2"], start))
    two = shardings(program(mesh, shapes, [ops[1], ops[0], ops[2]], ["2"], start))
    assert one == two and listed(one, "2") == [["x"], ["y"]]


# ---- single rules


def test_user_priorities_come_one_after_the_other() -> None:
    """Of x on two dims, the one of the first priority wins; the other keeps its axes for its own tensor alone."""
    rule = Factors((16, 16), ("pass", "pass"), (((0,), (1,)), ((0,), (1,))), (((0,), (1,)),))
    values = Values(("a", "b", "c"), ((16, 16),) * 3, (Node("add", (0, 1), (2,), rule, "elementwise"),))
    for first in (0, 1):
        start = {
            0: Sharding((Dim((X,), False, first), Dim((), False))),
            1: Sharding((Dim((), False), Dim((X,), False, 1 - first))),
        }
        assert propagate(values, start)[2].lists() == (((X,), ()) if first == 0 else ((), (X,)))


def test_reserved_axes_of_a_later_priority_are_not_taken() -> None:
    rule = Factors((16, 16), ("pass", "pass"), (((0,), (1,)),), (((0,), (1,)),))
    values = Values(("a", "b"), ((16, 16),) * 2, (Node("tanh", (0,), (1,), rule, "elementwise"),))
    start = {0: Sharding((Dim(()), Dim((X,), True, 1))), 1: Sharding((Dim((X,), True), Dim()))}
    assert propagate(values, start)[0].lists() == ((), (X,))


def test_axes_that_must_stay_out_stay_out() -> None:
    rule = Factors((16, 16), ("pass", "pass"), (((0,), (1,)),), (((0,), (1,)),))
    values = Values(("a", "b"), ((16, 16),) * 2, (Node("tanh", (0,), (1,), rule, "elementwise"),))
    cut = Sharding((Dim((X,)), Dim((Y,))))
    assert propagate(values, {0: cut, 1: Sharding((Dim(), Dim()), replicated=(X,))})[1].lists() == ((), (Y,))
    assert propagate(values, {0: cut, 1: Sharding((Dim(), Dim()), unreduced=(Y,))})[1].lists() == ((X,), ())
    half = Sharding((Dim(), Dim()), replicated=(Y.after(2),))
    assert propagate(values, {0: cut, 1: half})[1].lists() == ((X,), (Y.first(2),))


@pytest.mark.parametrize(
    ("axes", "wanted", "back"),
    [
        ((Axis("x", 1, 8),), {0: (Axis("x", 1, 2),), 1: (Axis("x", 2, 4),)}, (Axis("x", 1, 8),)),
        ((Axis("y", 1, 4),), {0: (Axis("y", 1, 2),), 1: (Axis("y", 2, 2),)}, (Axis("y", 1, 4),)),
        ((Axis("z", 1, 3), Axis("x", 1, 8)), {0: (), 1: ()}, (Axis("z", 1, 3), Axis("x", 1, 8))),  # overflow
    ],
)
def test_a_dim_of_two_factors_is_split_major_first(
    axes: tuple[Axis, ...], wanted: dict[int, tuple[Axis, ...]], back: tuple[Axis, ...]
) -> None:
    sizes, own = (2, 4), ((0, 1),)
    sharding = Sharding((Dim(axes),))
    view = project(sharding, own, sizes)
    assert view.lists == wanted
    assert unproject(sharding, own, sizes, view).dims[0].axes == back
    assert (1 in view.closed) == (0 in view.overflow)


def test_axes_behind_a_factor_that_is_not_full_would_be_strided() -> None:
    sharding = Sharding((Dim(()),))
    view = project(sharding, ((0, 1),), (8, 8))
    view.lists = {0: (X,), 1: (Y,)}
    assert unproject(sharding, ((0, 1),), (8, 8), view).dims[0].axes == (X,)


def test_a_minor_factor_takes_axes_that_do_not_divide_it() -> None:
    rule = Factors((6, 5), ("pass", "pass"), (((0,), (1,)),), (((0,), (1,)),))
    values = Values(("a", "b"), ((6, 5),) * 2, (Node("tanh", (0,), (1,), rule, "elementwise"),))
    assert propagate(values, {0: Sharding((Dim((Y,)), Dim((X,))))})[1].lists() == ((Y,), (X,))


def fold(*lists: tuple[Axis, ...], operands: int = 9, direction: int = 3) -> tuple[Axis, ...]:
    views = [project(Sharding((Dim(own),)), ((0,),), (64,)) for own in lists]
    return agreed(views, min(operands, len(views)), 0, direction)


def test_tensors_agree_on_a_common_beginning() -> None:
    half = Y.first(2)
    assert fold((X,), (X, Y)) == (X, Y)
    assert fold((X, Y), (X,)) == (X, Y)
    assert fold((X,), (Y,)) == ()
    assert fold((X, Y), (X, half)) == (X, Y)
    assert fold((half,), (Y,)) == (Y,)
    assert fold((half, X), (Y,)) == (half,)  # the part is not the last
    assert fold((X,), (Y,), (X, Y)) == ()  # after a conflict nothing grows
    assert fold((), (X,), operands=1, direction=1) == ()  # forward: results add nothing
    assert fold((X,), (Y,), operands=1, direction=1) == ()  # but they disagree
    assert fold((), (X,), operands=1, direction=2) == (X,)
    assert fold((X,), (), operands=1, direction=2) == ()
    assert fold((X,), direction=0) == ()


def test_directions_open_up_with_the_priorities() -> None:
    rule = Factors((4, 4, 4, 4), ("pass", "reduction", "permutation", "blocked"), ((),), ((),))

    def ways(role: Any, shared: bool = False) -> list[tuple[int, ...]]:
        return [directions(Node("op", (0,), (1,), rule, role), p, shared) for p in range(5)]

    both, none = (3, 3, 3, 0), (0, 0, 0, 0)
    assert ways("elementwise") == [both] * 5
    assert ways("regroup", shared=True) == [none] + [both] * 4
    assert ways("other") == [none, none, (3, 0, 0, 0), both, both]
    assert ways("broadcast") == [none, none, (2, 0, 0, 0), (2, 2, 2, 0), both]
    assert ways("slice")[:2] == [(1, 1, 1, 0)] * 2 and ways("slice")[4] == both


def test_a_bias_decides_an_activation_only_when_nothing_else_does(data_folder: Path) -> None:
    first = shardings(programs(data_folder)["bias_only_hint"])
    assert listed(first, "arg0") == [[], ["y"]]
    both = json.loads(json.dumps(programs(data_folder)["bias_only_hint"]))
    both["given"]["arg0"] = dims([["y"]], [])
    assert listed(shardings(both), "5") == [["y"], []]


def test_values_that_nobody_reads_stay_free() -> None:
    values = Values(("a",), ((4,),), ())
    assert propagate(values, {}) == [free(1)]


def test_work_grows_with_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """An annotation at the end of a chain goes back through all of it, each op in a few steps."""
    taken = [0]

    def counted(*args: Any) -> set[int]:
        taken[0] += 1
        return step(*args)

    monkeypatch.setattr(_propagate, "step", counted)
    identity = Factors((16, 16), ("pass", "pass"), (((0,), (1,)),), (((0,), (1,)),))
    found = []
    for n in (100, 400):
        taken[0] = 0
        chain = tuple(Node("tanh", (k,), (k + 1,), identity, "elementwise") for k in range(n))
        values = Values(tuple(map(str, range(n + 1))), ((16, 16),) * (n + 1), chain)
        assert propagate(values, {n: Sharding((Dim((X,)), Dim((Y,))))})[0].lists() == ((X,), (Y,))
        found.append(taken[0])
    assert found[1] <= 4.1 * found[0] and found[0] <= 10 * 100
