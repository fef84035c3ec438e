"""Plans that choose an option per op: rows say what they do, and no two different plans read alike."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshwright.cluster import Mesh
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from meshwright.report.apart import differences, op_facts, told_apart
from meshwright.report.candidates import Candidate
from meshwright.report.layout_words import op_words
from meshwright.testing import mlp

GRAPH = mlp(3)
CUT = Layout((((0, (Cut("x0"),)),), ((0, ()),)))


def plan_of(storage: dict[str, Storage], cuts: dict[str, str] | None = None) -> Plan:
    shardings = {op: OpSharding({factor: (Cut("x0"),)}) for op, factor in (cuts or {}).items()}
    mesh = Mesh(range(4), ("x0", "x1"), (2, 2))
    stage = Stage(tuple(op.name for op in GRAPH.ops), mesh, shardings, storage=storage)
    return Plan(GRAPH.digest, 8, (stage,), Schedule("1f1b", 1))


def row(plan: Plan) -> Candidate:
    return Candidate(op_words(plan, GRAPH), 1, 1, plan=lambda: plan)


def test_a_row_says_over_which_axis_products_are_cut_and_what_rests_cut() -> None:
    params = [t.name for t in GRAPH.params()]
    blocks = {p for p in params if "layers" in p}
    state, weights = Storage(state=CUT), Storage(param=CUT)
    cuts = {"stem/linear": "b", "head/linear": "k"}
    assert op_words(plan_of({}, cuts), GRAPH) == "s1/x0 r1/x0 w3"
    assert op_words(plan_of(dict.fromkeys(params, state)), GRAPH) == "w5 z1"
    mixed = op_words(plan_of({p: weights if p in blocks else state for p in params}), GRAPH)
    assert mixed.startswith("w5 z1 ") and " z3 " in mixed and mixed.endswith("%")


def test_rows_that_read_alike_say_what_they_do_otherwise() -> None:
    state = Storage(state=CUT)
    ways = [{"stem/linear": "n", "head/linear": "k"}, {"stem/linear": "k", "head/linear": "n"}]
    rows = told_apart([row(plan_of({}, cuts)) for cuts in ways], GRAPH)
    assert [r.layout for r in rows] == ["c1/x0 r1/x0 w3: stem/linear c/x0", "c1/x0 r1/x0 w3: stem/linear r/x0"]
    same = told_apart([row(plan_of({}, ways[0])), row(plan_of({}, ways[0]))], GRAPH)
    assert len({r.layout for r in same}) == 1, "equal plans are"
    for name in (t.name for t in GRAPH.params()):
        assert list(op_facts(plan_of({name: state}), GRAPH).values()) == ["z1"]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3), min_size=2, max_size=8))
def test_differences_tell_all_apart_that_differ(facts: list[dict[str, str]]) -> None:
    words = differences(facts)
    for i, one in enumerate(facts):
        said = dict(w.split(" ") for w in words[i].split(", ") if w)
        fits = [j for j, other in enumerate(facts) if all(other.get(k, "whole") == v for k, v in said.items())]
        assert all(facts[j] == one for j in fits) and i in fits


def test_meshes_that_say_it_themselves_are_left_alone() -> None:
    named = plan_of({}, {"stem/linear": "n"})
    stage = replace(named.stages[0], mesh=Mesh(range(4), ("dp", "tp"), (2, 2)))
    plan = replace(named, stages=(stage,))
    assert op_words(plan, GRAPH) == ""
    assert [r.layout for r in told_apart([row(plan), row(named)], GRAPH)] == ["", "c1/x0 w4"]
