"""What a row says of a plan whose mesh axes say nothing."""

from __future__ import annotations

import re
from dataclasses import replace

from meshwright.cluster import Mesh
from meshwright.graph.ir import Factor
from meshwright.plan.model import Cut, OpSharding, Storage
from meshwright.report.cut_words import chosen_by_op, cut_ways, legend, op_words, params_held, way_words
from meshwright.report.layout_words import layout_words

from .by_op import GRAPH, PARAMS, cut, everywhere, plan_of


def test_shares_are_of_the_parameters_and_one_way_for_all_needs_none() -> None:
    mixed = {"stem/linear": {"b": "x0"}, "layers.0.fc/linear": {"n": "x0"}, "head/linear": {"k": "x0"}}
    assert op_words(plan_of(mixed), GRAPH) == "tp2 80% dp2 20%", "an entry of block 0 speaks for its copies"
    assert op_words(plan_of(everywhere("b", "x0")), GRAPH) == "dp2"
    assert op_words(plan_of({}), GRAPH) == "whole"
    assert layout_words(plan_of(mixed)) == "x0×2"


def test_two_axes_are_said_by_what_they_do_not_by_their_names() -> None:
    both = {op: {"b": "x0", "n": "x1"} for op in everywhere("b", "")}
    assert op_words(plan_of(both, shape=(2, 4)), GRAPH) == "2×4 dp2·tp4"
    assert op_words(plan_of({**both, "head/linear": {"k": "x0 x1"}}, shape=(2, 4)), GRAPH) == "2×4 dp2·tp4 80% tp8 20%"
    assert op_words(plan_of(everywhere("b", "x0 x1"), shape=(2, 4)), GRAPH) == "2×4 dp8"
    assert op_words(plan_of(everywhere("b", "x0"), shape=(8, 1)), GRAPH) == "dp8", "an axis of one device is none"


def test_levels_are_those_of_zero_and_what_computes_cut_does_not_rest_cut_for_it() -> None:
    data, halves = everywhere("b", "x0"), everywhere("n", "x0")
    assert op_words(plan_of(data, dict.fromkeys(PARAMS, Storage(state=cut("x0")))), GRAPH) == "dp2 z1"
    assert op_words(plan_of(data, dict.fromkeys(PARAMS, Storage(grad=cut("x0"), state=cut("x0")))), GRAPH) == "dp2 z2"
    assert op_words(plan_of(data, dict.fromkeys(PARAMS, Storage(param=cut("x0")))), GRAPH) == "dp2 z3"
    assert op_words(plan_of(halves, dict.fromkeys(PARAMS, Storage(param=cut("x0")))), GRAPH) == "tp2"
    one = {PARAMS[0]: Storage(param=cut("x0")), PARAMS[-1]: Storage(state=cut("x0"))}
    assert op_words(plan_of(data, one), GRAPH) == "dp2 z1 20% z3 20%"


def test_blocks_with_entries_of_their_own_count_apart() -> None:
    cuts = {**everywhere("b", "x0"), "layers.2.fc/linear": {"k": "x0"}}
    assert op_words(plan_of(cuts), GRAPH) == "dp2 80% tp2 20%"
    held = params_held(plan_of(cuts), GRAPH)
    assert sum(h.elements for h in held) == sum(64 * 64 for _ in PARAMS)


def test_columns_rows_positions_and_experts_are_told() -> None:
    op = GRAPH.ops[GRAPH.position["stem/linear"]]
    words = {f: way_words(cut_ways(op, OpSharding({f: (Cut("x0"),)}), 1), plan_of({}).stages[0]) for f in "bnk"}
    assert words == {"b": "dp2", "n": "col2", "k": "row2"}
    tokens = replace(op, rule=replace(op.rule, factors=(Factor("b", 8), *op.rule.factors[1:])))
    assert cut_ways(tokens, OpSharding({"b": (Cut("x0"),)}), 1) == {"cp": ("x0",)}
    rule = replace(
        op.rule,
        factors=(*op.rule.factors, Factor("e", 4)),
        operands=((("e",), ("b",), ("k",)), (("e",), ("n",), ("k",))),
        results=((("e",), ("b",), ("n",)),),
    )
    assert cut_ways(replace(op, rule=rule), OpSharding({"e": (Cut("x0"),)}), 1) == {"ep": ("x0",)}
    assert cut_ways(op, None, 1) == {}
    square = plan_of({}, shape=(2, 2)).stages[0]
    assert way_words({"dp": ("x1",), "col": ("x0",)}, square) == "dp2/x1·col2/x0", "sizes do not tell the axes"


def test_plans_with_other_axes_or_stages_or_one_device_say_nothing_here() -> None:
    plan = plan_of(everywhere("b", "x0"))
    stage = plan.stages[0]
    for other in (
        replace(plan, stages=(replace(stage, mesh=Mesh(range(2), ("tp",), (2,))),)),
        replace(plan, stages=(stage, stage)),
        plan_of({}, shape=(1,)),
        plan_of({}, shape=()),
    ):
        assert not chosen_by_op(other) and op_words(other, GRAPH) == ""


def test_the_legend_says_what_stands_in_the_rows_and_nothing_else() -> None:
    assert legend(["dp8 z1", "dp2 tp4+sp pp2×4 z3/8", "whole", "2 stages: 8 + 8", "1 stage: 2×4"]) == "", (
        "words of any plan"
    )
    rows = ["dp8 z1 31%: wte z1", "dp8 62% tp8 38% z1 31%: c_fc col8", "dp8 z3 94%: ln_f z0"]
    words = legend(rows)
    for figure in re.findall(r"\b(?:dp|tp|z|col|row|cp)\d+(?: \d+%)?", words):
        assert any(figure in row for row in rows), figure
    assert all(
        said in words for said in ("dp8 62%: that share", "z1 31%: ", "z3 94%: ", "col8: ", "z0: ", "behind the colon")
    )
    assert "row" not in words.replace("the row above", "") and "whole" not in words and "cp" not in words
