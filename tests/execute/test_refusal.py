"""A plan that cannot run is refused in one sentence, for a reason of a closed list, before anything starts."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import meshwright
from execute.conftest import zoo_model
from execute.layouts import Layout, plan_of
from execute.matrix import small
from execute.test_cells import REASONS as OF_CELLS
from meshwright.cluster.model import Mesh
from meshwright.errors import Unsupported
from meshwright.execute import refusals, verify, why_not
from meshwright.execute.proof.refusal import REASONS, must_run
from meshwright.execute.ranks.pool import Pool
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.plan.layout import replicated
from meshwright.plan.model import Action, Cut, OpSharding, Plan, Row, Schedule, Storage, Weights
from meshwright.plan.model import Layout as Rest

SOURCE = Path(meshwright.__file__).parent
EXECUTE_SCALE = SOURCE / "execute" / "proof" / "scale.py"
DOCS = Path(__file__).parents[2] / "docs" / "refusals.md"


@pytest.fixture(scope="module")
def graph() -> Graph:
    return zoo_model("gpt2").graph


def _first(graph: Graph, kind: str) -> str:
    return next(op.name for op in graph.ops if op.kind == kind)


def _with(plan: Plan, **changes: object) -> Plan:
    """`plan` with other fields in its first stage."""
    return replace(plan, stages=(replace(plan.stages[0], **changes), *plan.stages[1:]))  # type: ignore[arg-type]


def _damaged(graph: Graph) -> Iterator[tuple[str, Plan]]:
    """(reason, a plan that is refused for it)."""
    plan, deep = plan_of(graph, Layout(dp=2), 2), plan_of(graph, Layout(dp=2, pp=2), 2)
    linear = next(op for op in graph.ops if op.kind in ("linear", "addmm"))
    weight = next(t for t in linear.inputs if graph.tensor[t].role == "param")
    yield "samples", replace(plan, samples=7)
    yield "schedule", replace(deep, stages=(deep.stages[0], replace(deep.stages[1], pipe=1)))
    yield "schedule", _with(plan, deal="dp")
    row = Row((0,), (Action("LOAD", "loss"), Action("F", 0, 0, span=2), Action("B", 0, 0, span=2)))
    yield "schedule", replace(plan, schedule=Schedule("custom", 2, {}, (row,)))
    row = Row((0,), (Action("F", 0, 0), Action("B", 0, 0), Action("F", 0, 1), Action("B", 0, 1), Action("UPDATE", 0)))
    yield "schedule", replace(plan, schedule=Schedule("custom", 2, {}, (row,)))
    yield "flush", replace(plan, schedule=replace(plan.schedule, weights=Weights(flush=False)))
    yield "frozen", replace(plan, frozen=frozenset({weight}))
    yield "rewritten", replace(plan, rewritten=graph)
    yield "meshes", _with(plan, mesh=Mesh((0, 0), ("dp", "tp"), (2, 1)))
    cut = {next(f.name for f in linear.rule.factors if f.kind == "free"): (Cut("dp", (1, 3)),)}
    yield "weighted", _with(plan, shardings={linear.name: OpSharding(cut, "summa")})
    attention = next(
        op for op in graph.ops if any(f.kind in ("fixed", "opaque") and f.size > 1 for f in op.rule.factors)
    )
    factor = next(f for f in attention.rule.factors if f.kind in ("fixed", "opaque") and f.size > 1)
    yield "factor", _with(plan, shardings={attention.name: OpSharding({factor.name: (Cut("dp"),)})})
    soft = next(op for op in graph.ops if op.kind == "layer_norm")
    rest = {soft.rule.factors[0].name: (Cut("dp"),)}
    yield "backward", _with(plan, shardings={soft.name: OpSharding(backward={0: rest})})
    rows, columns = (_cut(graph.tensor[weight].shape, k) for k in (0, 1))
    yield "storage", _with(plan, storage={weight: Storage(rows, columns)})
    yield "layout", _with(plan, layouts={_first_result(graph): _odd(graph)})


def _cut(shape: tuple[int, ...], dim: int) -> Rest:
    return Rest(tuple(((n, (Cut("dp"),) if d == dim else ()),) for d, n in enumerate(shape)))


def _first_result(graph: Graph) -> str:
    """A value whose last dim has no border inside."""
    return next(op.outputs[0] for op in graph.ops if op.kind == "layer_norm")


def _odd(graph: Graph) -> Rest:
    """Its last dim in parts at which no op has a border."""
    shape = graph.tensor[_first_result(graph)].shape
    whole = replicated(shape[:-1])
    return Rest((*whole.dims, ((shape[-1] // 2, ()), (2, (Cut("dp"),)))))


def test_each_reason_is_given_in_a_sentence_that_says_what_would_run(graph: Graph) -> None:
    for reason, plan in _damaged(graph):
        found = refusals(plan, graph)
        assert reason in {r.reason for r in found}, (reason, found)
        assert why_not(plan, graph) == found[0].sentence
        assert all(": " in r.sentence and not r.sentence.endswith(".") for r in found)
        with pytest.raises(Unsupported) as error:
            must_run(plan, graph)
        assert error.value.exit_code == 2 and error.value.reason == found[0].reason


def test_all_reasons_of_a_plan_are_listed(graph: Graph) -> None:
    plan = replace(plan_of(graph, Layout(dp=2), 2), samples=7, frozen=frozenset({next(iter(graph.params())).name}))
    assert [r.reason for r in refusals(plan, graph)] == ["samples", "frozen"]


def test_a_plan_that_runs_is_not_refused(graph: Graph) -> None:
    for layout in (
        Layout(),
        Layout(dp=2, zero=3),
        Layout(tp=2, pp=2, schedule="zb-h1"),
        Layout(cp=2, recompute="full"),
    ):
        assert why_not(plan_of(graph, layout, 2), graph) is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda g: replace(g, training="none"), "for a graph without training"),
        (lambda g: replace(g, training="explicit"), "of a backward that is written out"),
        (lambda g: replace(g, ops=tuple(replace(op, call="") for op in g.ops)), "for a recorded profile"),
    ],
)
def test_what_has_prices_but_no_code_is_refused_as_that(
    other: Callable[[Graph], Graph], says: str, graph: Graph
) -> None:
    plan = plan_of(graph, Layout(dp=2), 2)
    (found,) = refusals(plan, other(graph))
    assert found.reason == "code" and says in found.sentence and found.sentence.endswith(": plan the model itself")


def test_recurrent_time_steps_cannot_be_cut() -> None:
    graph = small("gnmt-8", 4, 2).model.graph
    lstm = next(op for op in graph.ops if op.kind == "lstm")
    plan = plan_of(graph, Layout(dp=2), 2)
    steps = next(f for f in lstm.rule.factors if f.kind in ("fixed", "opaque") and f.size > 1)
    (found,) = refusals(_with(plan, shardings={lstm.name: OpSharding({steps.name: (Cut("dp"),)})}), graph)
    assert found.reason == "factor" and lstm.name in found.sentence


def test_verify_refuses_before_it_builds_or_starts_anything(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was started")

    source = resolve("gpt2")
    monkeypatch.setattr(Pool, "__init__", never)
    monkeypatch.setattr(type(source), "build", never)
    for reason, plan in _damaged(graph):
        with pytest.raises(Unsupported) as error:
            verify(plan, graph, source, seq=8)
        assert error.value.reason in {reason, *(r.reason for r in refusals(plan, graph))}


def _raised() -> Iterator[tuple[str, str | None]]:
    """(place, reason) of every Unsupported that lowering and the local forms of ops raise."""
    for file in sorted((*(SOURCE / "lower").glob("*.py"), *(SOURCE / "execute" / "ops").glob("*.py"), EXECUTE_SCALE)):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                call = node.exc
                if isinstance(call.func, ast.Name) and call.func.id == "Unsupported":
                    reason = next((k.value for k in call.keywords if k.arg == "reason"), None)
                    assert reason is None or isinstance(reason, ast.Constant)
                    yield f"{file.name}:{node.lineno}", None if reason is None else str(reason.value)


def test_the_list_of_reasons_is_closed() -> None:
    raised = dict(_raised())
    assert len(raised) > 8
    assert {place: reason for place, reason in raised.items() if reason not in REASONS} == {}
    own = {reason for reason in REASONS if f'"{reason}",' in (SOURCE / "execute" / "proof" / "refusal.py").read_text()}
    assert set(REASONS) <= own | set(raised.values())  # type: ignore[operator]


def test_the_list_stands_in_the_docs() -> None:
    text = DOCS.read_text()
    rows = [line.split("|")[1].strip().strip("`") for line in text.splitlines() if line.startswith("| ")]
    assert set(rows) - {"reason", "---"} == set(REASONS) | OF_CELLS
    assert all(" ".join(meaning.split()) in text for meaning in REASONS.values())
