"""Whatever a plan says, every target writes it, says that it cannot, or has it so anyway: no field is dropped in silence.

Each field of the dataclasses of a plan is changed in a plan that every target can say nearly; the answer must change, too,
unless the same is run. A field that has no change here fails the first test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest

from export.plain import Plain
from meshwright.cluster import Mesh
from meshwright.errors import InputError, MeshwrightError, Unsupported
from meshwright.export.base import Exporter
from meshwright.export.outcome import export
from meshwright.export.registry import load, names
from meshwright.export.rows import ROWS, setup_of_row
from meshwright.export.setup import Setup
from meshwright.graph.expand import expand_training
from meshwright.graph.ir import Op
from meshwright.lower import lower
from meshwright.plan.model import (
    Action,
    Cut,
    Layout,
    OpSharding,
    Plan,
    Row,
    Schedule,
    Stage,
    Storage,
    SumProgram,
    SumStep,
    Weights,
)  # fmt: skip
from meshwright.plan.validate import validate

BASES = ("tensor + sequence + ZeRO 1", "pipeline + ZeRO 1", "ZeRO 3")
"""Rows whose plans are changed: each field in those in which the change is one of what is run."""


@cache
def setup(row: str) -> Setup:
    return setup_of_row(next(r for r in ROWS if r.words == row))


def answer(exporter: Exporter, setup: Setup, plan: Plan) -> object:
    """Files, level and sentences; or the refusal."""
    try:
        validate(setup.problem, plan)
        found = export(exporter, setup.problem, plan, name=setup.name, lossy=True)
    except (InputError, Unsupported) as error:
        return str(error)
    return found.level, found.sentences, tuple(found.files.items())


def runs_the_same(setup: Setup, plan: Plan, changed: Plan) -> bool:
    """Whether they differ in nothing but entries of tables, and these are lowered to the same instructions."""

    def rest(stage: Stage) -> Stage:
        apart = {t: Storage(home=s.home, resident=s.resident) for t, s in stage.storage.items()}
        apart = {t: s for t, s in apart.items() if s != Storage()}
        return replace(stage, shardings={}, layouts={}, storage=apart)

    mine, other = (replace(p, stages=tuple(map(rest, p.stages))) for p in (plan, changed))
    if mine != other:
        return False
    graph, recipe = setup.problem.graph, setup.problem.recipe
    try:
        validate(setup.problem, changed)
        return lower(graph, plan, recipe) == lower(graph, changed, recipe)
    except MeshwrightError:
        return False


def in_stage(**change: Callable[[Stage], Any]) -> Callable[[Plan], Plan]:
    """A change of the first stage."""

    def changed(plan: Plan) -> Plan:
        first = plan.stages[0]
        return replace(plan, stages=(replace(first, **{k: f(first) for k, f in change.items()}), *plan.stages[1:]))

    return changed


def in_table(table: str, change: Callable[[Any], Any], wanted: Callable[[Any], bool] = bool) -> Callable[[Plan], Plan]:
    """A change of the first entry of a table of the first stage that has what is changed."""

    def changed(stage: Stage) -> dict[str, Any]:
        entries = dict(getattr(stage, table))
        name = next(n for n, x in entries.items() if wanted(x))
        return {**entries, name: change(entries[name])}

    return in_stage(**{table: changed})


def of_product(change: Callable[[Op, OpSharding], OpSharding]) -> Callable[[Plan], Plan]:
    """A change of the entry of the first product of the first stage that has one."""

    def changed(stage: Stage) -> dict[str, OpSharding]:
        graph = setup(BASES[0]).problem.graph
        ops = (graph.ops[graph.position[name]] for name in stage.shardings)
        op = next(op for op in ops if op.kind == "linear")
        return {**stage.shardings, op.name: change(op, stage.shardings[op.name])}

    return in_stage(shardings=changed)


def in_schedule(**change: Any) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, schedule=replace(plan.schedule, **change))


def in_weights(**change: Any) -> Callable[[Plan], Plan]:
    return in_schedule(weights=Weights(**change))


def other_cut(change: Callable[[Cut], Cut]) -> Callable[[Plan], Plan]:
    def changed(sharding: OpSharding) -> OpSharding:
        factor = next(f for f, cuts in sharding.cuts.items() if cuts)
        first, *rest = sharding.cuts[factor]
        return replace(sharding, cuts={**sharding.cuts, factor: (change(first), *rest)})

    return in_table("shardings", changed, lambda x: any(x.cuts.values()))


def moved_block(plan: Plan) -> Plan:
    """The last block of the first stage goes to the second; no change where there is one stage."""
    if len(plan.stages) == 1:
        return plan
    first, second, *rest = plan.stages
    *keep, last = first.ops
    return replace(plan, stages=(replace(first, ops=tuple(keep)), replace(second, ops=(last, *second.ops)), *rest))


def other_dims(layout: Layout) -> Layout:
    return replace(layout, dims=tuple(tuple((n, ()) for n, _ in dim) for dim in layout.dims))


def meshes(change: Callable[[Mesh], Mesh]) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, stages=tuple(replace(s, mesh=change(s.mesh)) for s in plan.stages))


def rewritten(row: str) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, rewritten=expand_training(setup(row).problem.graph))


def first_op(stage: Stage) -> str:
    return next(iter(stage.shardings))


CHANGES: Mapping[type, Mapping[str, Callable[[Plan], Plan]]] = {
    Plan: {
        "graph": lambda p: replace(p, graph="0" * 64),
        "samples": lambda p: replace(p, samples=2 * p.samples),
        "stages": lambda p: replace(p, stages=p.stages[:-1]),
        "schedule": in_schedule(name="gpipe"),
        "frozen": lambda p: replace(p, frozen=frozenset({next(iter(p.stages[0].storage))})),
        "cached": lambda p: replace(p, cached=frozenset({first_op(p.stages[0])})),
        "rewritten": rewritten(BASES[0]),
    },
    Stage: {
        "ops": moved_block,
        "mesh": meshes(lambda m: Mesh(tuple(m.devices)[::-1], m.axes, m.shape)),
        "shardings": in_stage(shardings=lambda s: {k: v for k, v in s.shardings.items() if k != first_op(s)}),
        "layouts": in_stage(layouts=lambda s: {}),
        "gradients": in_stage(gradients=lambda s: {t: other_dims(x) for t, x in [next(iter(s.layouts.items()))]}),
        "storage": in_stage(storage=lambda s: {}),
        "recompute": in_stage(recompute=lambda s: frozenset({first_op(s)})),
        "keep_last": in_stage(keep_last=lambda s: 1),
        "offload": in_stage(offload=lambda s: frozenset({"any"})),
        "deal": in_stage(deal=lambda s: "dp"),
        "pipe": in_stage(pipe=lambda s: 1),
        "sums": in_stage(sums=lambda s: (SumProgram(("dp",), (SumStep("all_reduce", ("dp",)),)),)),
        "recompute_at": in_stage(recompute_at=lambda s: "stage"),
        "recompute_blocks": in_stage(recompute_blocks=lambda s: 1),
    },
    OpSharding: {
        "cuts": in_table("shardings", lambda x: replace(x, cuts={})),
        "variant": in_table("shardings", lambda x: replace(x, variant="summa")),
        "kept": of_product(lambda op, x: replace(x, kept=tuple(op.inputs[1:]))),
        "backward": of_product(lambda op, x: replace(x, backward={0: {}})),
    },
    Cut: {
        "axis": other_cut(lambda c: replace(c, axis="tp" if c.axis != "tp" else "dp")),
        "weights": other_cut(lambda c: replace(c, weights=(1, 3))),
    },
    Layout: {
        "dims": in_table("layouts", other_dims),
        "partial": in_table("layouts", lambda x: replace(x, partial=("tp",))),
    },
    Storage: {
        "param": in_table("storage", lambda x: replace(x, param=x.state)),
        "grad": in_table("storage", lambda x: replace(x, grad=x.state)),
        "state": in_table("storage", lambda x: replace(x, state=None)),
        "home": in_table("storage", lambda x: replace(x, home=(0,))),
        "resident": in_table("storage", lambda x: replace(x, resident=0.5)),
    },
    Schedule: {
        "name": in_schedule(name="zb-h1"),
        "micro_batches": in_schedule(micro_batches=8),
        "args": in_schedule(args={"v": 2}),
        "rows": in_schedule(name="custom", rows=(Row((0,), (Action("F", 0), Action("B", 0))),)),
        "weights": in_weights(flush=False),
    },
    Weights: {
        "flush": in_weights(flush=False),
        "update_every": in_weights(update_every=2),
        "reads": in_weights(reads="previous"),
        "stash": in_weights(stash=False),
        "sync_every": in_weights(sync_every=2),
        "distance": in_weights(distance=1),
    },
    Mesh: {
        "devices": meshes(lambda m: Mesh(tuple(m.devices)[::-1], m.axes, m.shape)),
        "axes": meshes(lambda m: Mesh(m.devices, m.axes[::-1], m.shape)),
        "shape": meshes(lambda m: Mesh(m.devices, m.axes, m.shape[::-1])),
    },
}  # fmt: skip
CASES = [(kind, name) for kind, changes in CHANGES.items() for name in changes]


def test_every_field_that_decides_has_a_change() -> None:
    for kind, changes in CHANGES.items():
        deciding = {f.name for f in fields(kind) if f.compare}
        assert set(changes) == deciding, kind.__name__


@pytest.mark.parametrize("target", ["plain", *names()])
@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_change_of_a_field_changes_the_answer(kind: type, name: str, target: str) -> None:
    exporter = Plain() if target == "plain" else load(target)
    tried = 0
    for row in BASES:
        own = setup(row)
        plan = own.plan()
        try:
            changed = CHANGES[kind][name](plan)
        except (StopIteration, IndexError):
            continue
        if changed == plan or runs_the_same(own, plan, changed):
            continue
        tried += 1
        assert answer(exporter, own, changed) != answer(exporter, own, plan), (
            f"{row}: {kind.__name__}.{name} is dropped"
        )
    assert tried, "no base has this field"
