"""Layouts under other names: axes called otherwise, in another order, entries written out block by block."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from spaces import space_of
from test_recognise import FAMILIES, drawn

from meshwright.cluster import Mesh
from meshwright.errors import Unsupported
from meshwright.graph.ir import Graph
from meshwright.layouts.meaning import meaning_of, namings
from meshwright.layouts.recognise import recognise
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from meshwright.simulate import simulate

Names = Mapping[str, tuple[tuple[str, int], ...]]
"""Axis -> the axes, with their lengths, that take its place, outer first."""


def disguised(plan: Plan, names: Names, order: Callable[[list[str]], list[str]] = list) -> Plan:
    """The same decisions on meshes with other axes, which stand in another order."""

    def cuts(own: tuple[Cut, ...]) -> tuple[Cut, ...]:
        return tuple(Cut(a) for cut in own for a, _ in names[cut.axis])

    def layout(x: Layout | None) -> Layout | None:
        if x is None:
            return None
        return Layout(tuple(tuple((n, cuts(own)) for n, own in dim) for dim in x.dims))

    def mesh(x: Mesh) -> Mesh:
        axes = [part for a in x.axes for part in names[a]]
        wanted = order([a for a, _ in axes])
        sizes = dict(axes)
        found: list[int] = [0] * len(x.devices)
        for k, device in enumerate(x.devices):
            at, left = {}, k
            for a, n in reversed(axes):
                left, at[a] = divmod(left, n)
            place = 0
            for a in wanted:
                place = place * sizes[a] + at[a]
            found[place] = device
        return Mesh(tuple(found), tuple(wanted), tuple(sizes[a] for a in wanted))

    def stage(s: Stage) -> Stage:
        return replace(
            s,
            mesh=mesh(s.mesh),
            shardings={k: replace(x, cuts={f: cuts(own) for f, own in x.cuts.items()}) for k, x in s.shardings.items()},
            layouts={k: x for k, own in s.layouts.items() if (x := layout(own)) is not None},
            storage={k: Storage(layout(x.param), layout(x.grad), layout(x.state)) for k, x in s.storage.items()},
        )

    return replace(plan, stages=tuple(map(stage, plan.stages)))


def one_to_one(plan: Plan) -> Names:
    mesh = plan.stages[0].mesh
    return {a: ((f"x{k}", n),) for k, (a, n) in enumerate(zip(mesh.axes, mesh.shape, strict=True))}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_names_in_another_order_are_the_same_layout(small: Callable[[str], Graph], family: str) -> None:
    space, rng = space_of(small, family), random.Random(family)
    for plan in drawn(space, 16, seed=2):
        own = recognise(space.graph, plan)
        turned = {f"x{k}": rng.random() for k in range(5)}
        other = disguised(plan, one_to_one(plan), lambda axes, by=turned: sorted(axes, key=by.__getitem__))
        found = recognise(space.graph, other)
        assert found.plan(space.expert) == plan, own.point.words()


def test_one_degree_cut_in_two_steps_is_no_layout_as_it_is_gathered_in_two(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "gpt2")
    point = next(p for p in space.points() if p.dp == 4 and p.tp == 4 and p.pp == 1 and p.zero == 0 and not p.sequence)
    plan = space.plan(point, (len(space.units),))
    other = disguised(plan, {"dp": (("x", 4),), "tp": (("y", 2), ("z", 2))})
    with pytest.raises(Unsupported):
        recognise(space.graph, other)


def test_entries_of_every_block_that_say_the_same_are_one_entry(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "llama-3.1-8b")
    plan = drawn(space, 1, seed=5)[0]
    names = one_to_one(plan)
    other = disguised(plan, names)
    op_of = {op.name: space.graph.ops[space.graph.representative[i]].name for i, op in enumerate(space.graph.ops)}
    stages = tuple(
        replace(s, shardings={name: s.shardings[first] for name, first in op_of.items() if first in s.shardings})
        for s in other.stages
    )
    assert recognise(space.graph, replace(other, stages=stages)).plan(space.expert) == plan


def test_one_stage_without_a_schedule_runs_its_micro_batches_one_after_the_other(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "gpt2")
    plan = next(p for p in drawn(space, 40, seed=7) if len(p.stages) == 1)
    free = replace(plan, schedule=Schedule("dataflow", plan.schedule.micro_batches))
    assert recognise(space.graph, free).plan(space.expert) == plan
    assert simulate(space.problem, free).step_seconds == simulate(space.problem, plan).step_seconds


def test_axes_that_cut_as_none_of_a_layout_do_are_refused(small: Callable[[str], Graph]) -> None:
    space = space_of(small, "gpt2")
    point = next(p for p in space.points() if p.dp == 4 and p.tp == 4 and p.pp == 1 and p.zero == 0)
    plan = space.plan(point, (len(space.units),))
    other = disguised(plan, one_to_one(plan))
    stage = other.stages[0]
    name = next(n for n, x in stage.shardings.items() if any(x.cuts.values()) and "mlp" in n)
    whole = replace(stage, shardings={**stage.shardings, name: OpSharding()})
    with pytest.raises(Unsupported, match="otherwise than in any layout of these degrees"):
        recognise(space.graph, replace(other, stages=(whole,)))
    meaning = meaning_of(space.expert, other)
    assert meaning is not None
    assert [dict(n) for n in namings(meaning, stage.mesh)] == [
        {"dp": "x0", "cp": "x1"}, {"dp": "x0", "tp": "x1"}, {"ep": "x0", "cp": "x1"}, {"ep": "x0", "tp": "x1"},
    ]  # fmt: skip
