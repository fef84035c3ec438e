"""Names of plans that choose an option per op: what a row does otherwise than the one above it; no two plans read alike."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster import Mesh
from meshwright.plan.model import Cut, Layout, Plan, Storage
from meshwright.report.apart import LONGEST, Facts, Subject, differences, facts_of, told_apart
from meshwright.report.candidates import Candidate
from meshwright.report.short_names import short_names
from meshwright.testing import mlp

from .by_op import GRAPH, PARAMS, cut, everywhere, plan_of

STATE, WEIGHT = Storage(state=cut("x0")), Storage(param=cut("x0"))


def names(*plans: Plan) -> list[str]:
    return [r.layout for r in told_apart([Candidate("", 1, 1, plan=lambda p=p: p) for p in plans], GRAPH)]  # type: ignore[misc]


def test_the_first_row_says_what_is_not_as_most_is_and_the_others_what_differs_from_the_row_above() -> None:
    data = everywhere("b", "x0")
    stem = {"stem.weight": STATE}
    both = {**stem, "head.weight": STATE}
    assert names(
        plan_of(data, stem),
        plan_of(data, both),
        plan_of({**data, "head/linear": {"k": "x0"}}, both),
        plan_of(data, {**both, **{p: WEIGHT for p in PARAMS if "layers" in p}}),
    ) == [
        "dp2 z1 20%: stem z1",
        "dp2 z1 40%: head z1",
        "dp2 80% tp2 20% z1 20%: head row2, head z0",
        "dp2 z3 60% z1 40%: head dp2, fc z3, head z1",
    ]


def test_which_products_are_cut_how_stands_in_the_first_row() -> None:
    pairs = {"layers.0.fc/linear": {"n": "x0"}, "stem/linear": {"n": "x0"}, "head/linear": {"k": "x0"}}
    assert names(plan_of(pairs)) == ["tp2: fc+stem col2, head row2"]
    assert names(plan_of(everywhere("b", "x0"))) == ["dp2"], "nothing to add"


def test_equal_plans_have_one_name_and_plans_of_other_meshes_are_left_alone() -> None:
    data = plan_of(everywhere("b", "x0"), {"stem.weight": STATE})
    assert names(data, data) == ["dp2 z1 20%: stem z1", "dp2 z1 20%"]
    named = replace(data, stages=(replace(data.stages[0], mesh=Mesh(range(2), ("tp",), (2,))),))
    assert names(named, data) == ["", "dp2 z1 20%: stem z1"]


def test_what_no_parameter_tells_is_told_by_ops_and_by_how_values_and_single_blocks_rest() -> None:
    data = everywhere("b", "x0")
    plain, relu = plan_of(data), plan_of({**data, "layers.0.act/relu": {"d": "x0"}})
    assert names(plain, relu) == ["dp2: relu whole", "dp2: relu d2"]
    stage = replace(plain.stages[0], layouts={"layers.0.fc.out": Layout((((8, (Cut("x0"),)),), ((64, ()),)))})
    assert names(plain, replace(plain, stages=(stage,)))[1] == "dp2: out rests as [batch/x0, 64]"
    first, last = ({f"layers.{k}.fc.weight": WEIGHT, f"layers.{3 - k}.fc.weight": STATE} for k in (1, 2))
    assert len(set(names(plan_of(data, first), plan_of(data, last)))) == 2


def facts_from(rows: list[dict[str, str]]) -> list[Facts]:
    subjects: list[Subject] = [(name, "rests") for name in "abcdefgh"]
    made = []
    for row in rows:
        values = {s: row.get(s[0], "z0") for s in subjects}
        made.append(
            Facts(
                "dp8 z1 31% z3 21%", values, {s: 10**k for k, s in enumerate(subjects)}, dict.fromkeys(subjects, "z0")
            )
        )
    return made


LABELS: dict[Subject, str] = {(name, "rests"): f"{name}_a_long_name" for name in "abcdefgh"}
BRIEF: dict[Subject, str] = {s: f"{s[0]}_…" for s in LABELS}


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["z1", "z3"])), min_size=1, max_size=40))
def test_names_are_short_and_those_of_plans_that_differ_differ(rows: list[dict[str, str]]) -> None:
    made = facts_from(rows)
    said = differences(made, LABELS, BRIEF)
    assert said == differences(made, LABELS, BRIEF) and all(len(name) <= LONGEST for name in said)
    for i, one in enumerate(said):
        for j, other in enumerate(said[:i]):
            assert one != other or made[i].values == made[j].values


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["z1", "z3"])), min_size=2, max_size=8))
def test_what_stands_behind_the_colon_is_true_and_tells_the_row_from_all_others(rows: list[dict[str, str]]) -> None:
    made = facts_from(rows)
    labels: dict[Subject, str] = {s: s[0] for s in LABELS}
    for name, own in zip(differences(made, labels, labels), made):
        told = [part.rsplit(" ", 1) for part in name.partition(": ")[2].removesuffix(" …").split(", ") if part]
        said = {(label, "rests"): value for names, value in told for label in names.split("+")}
        assert said.items() <= own.values.items()
        assert all(o.values == own.values for o in made if said.items() <= o.values.items())


def test_short_names_are_the_last_parts_that_tell() -> None:
    every = [
        "net.wte.weight",
        "net.ln.weight",
        "net.ln.bias",
        "net.a.proj.weight",
        "net.b.proj.weight",
        "net.b.proj.bias",
    ]
    assert list(short_names(every, GRAPH).values()) == ["wte", "ln", "ln.bias", "a.proj", "b.proj", "proj.bias"]
    assert short_names(["layers.0.fc.weight", "layers.1.fc.weight"], GRAPH) == {
        "layers.0.fc.weight": "layers.fc", "layers.1.fc.weight": "1.fc",
    }  # fmt: skip
    assert short_names(["post_attention_layernorm", "norm"], GRAPH) == {
        "post_attention_layernorm": "post_atte…",
        "norm": "norm",
    }
    assert list(short_names(["post_attention_layernorm", "post_attention_layernorm_2"], GRAPH).values()) == [
        "post_attention_layernorm", "post_attention_layernorm_2",
    ]  # fmt: skip
    assert short_names(["a.b", "b"], mlp(1)) == {"a.b": "a.b", "b": "b"}


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[ab]{1,12}(\.[ab]{1,12}){0,3}", fullmatch=True), unique=True, max_size=12))
def test_no_two_short_names_are_alike(every: list[str]) -> None:
    for most in (4, 18):
        found = short_names(every, GRAPH, most)
        assert len(set(found.values())) == len(every)


def test_a_name_with_room_for_nothing_is_its_words_and_a_mark_where_another_reads_alike() -> None:
    words = "2×4 dp4·tp2 87% cp2·tp4 13% z1 64% z3 36%"
    values: list[dict[Subject, str]] = [{("a", "rests"): "z1", ("b", "rests"): x} for x in ("z1", "z3")]
    rows = [Facts(words, v, dict.fromkeys(v, 1), dict.fromkeys(v, "z0")) for v in values]
    labels = dict.fromkeys(values[0], "a_name_that_is_far_too_long")
    one, other = differences(rows, labels, labels)
    assert one != other and all(len(n) == len(words) + 6 and n.startswith(f"{words} #") for n in (one, other))


def test_facts_are_of_whole_blocks() -> None:
    facts = facts_of(plan_of(everywhere("b", "x0"), {"layers.0.fc.weight": STATE}), GRAPH)
    assert (
        facts.values["layers.0.fc.weight", "rests"] == "z1"
        and facts.weights["layers.0.fc.weight", "rests"] == 3 * 64 * 64
    )
    assert ("layers.1.fc.weight", "rests") not in facts.values and facts.words == "dp2 z1 60%"
