"""The view of how operators are cut: what it says is what the program does."""

from __future__ import annotations

from functools import lru_cache

from meshwright.cluster import resolve as cluster_of
from meshwright.cost.analytic import Analytic
from meshwright.graph.ir import Graph
from meshwright.lower import lower
from meshwright.plan.model import Plan
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners.grid import Grid
from meshwright.planners.summa_2d import Summa2D
from meshwright.report.shardings import (
    OpRow,
    sharding_diff_lines,
    sharding_lines,
    sharding_object,
    sharding_rows,
    sharding_section,
)


@lru_cache(maxsize=1)
def graph() -> Graph:
    from meshwright.graph.source import resolve
    from meshwright.graph.zoo import Shrink

    shrink = Shrink(blocks=3, width=64, heads=8, kv_heads=4, ffn=128, vocab=256, seq=32, dropout=0.0)
    return resolve("llama-3.1-8b").graph(batch=2, seq=32, dtype="bfloat16", shrink=shrink, cache=False)


def rows(**fix: object) -> tuple[Plan, list[OpRow]]:
    problem = Problem(graph(), cluster_of("h100x8"), Analytic(), Recipe(16))
    plan = Grid(fix={"pp": 1, "ep": 1, "cp": 1, "recompute": "none", **fix}, top=1).plan(problem).plan
    assert plan is not None
    return plan, sharding_rows(graph(), plan, problem.recipe)


def test_megatrons_layer_is_said_as_it_is_known() -> None:
    _, found = rows(tp=4)
    block = {r.op: r for r in found if r.part == "model.layers, 3 equal blocks"}
    assert "n over tp" in block["self_attn.q_proj/linear"].cut
    assert "k over tp" in block["self_attn.o_proj/linear"].cut
    assert any("over tp" in w for w in block["self_attn.o_proj/linear"].forward)
    assert block["self_attn/scaled_dot_product_attention"].cut.endswith("heads over tp")
    assert "tp" in block["mlp.gate_proj/linear"].rests


def test_every_collective_of_a_micro_batch_is_said_once() -> None:
    plan, found = rows(tp=4)
    code = lower(graph(), plan, Recipe(16)).stages[0]
    for phase in ("forward", "backward"):
        sent = sum(i.communicates for s in code.segments if s.name != "constants" for i in getattr(s, phase))
        words = [w for r in found for w in getattr(r, phase)]
        assert sum(int(w.split(" × ")[0]) if " × " in w[:6] else 1 for w in words) == sent


def test_two_plans_side_by_side_say_what_differs() -> None:
    (_, one), (_, two) = rows(tp=4), rows(tp=1)
    text = "\n".join(line.text for line in sharding_diff_lines(one, two, 120))
    assert "model.layers, 3 equal blocks: self_attn.q_proj/linear" in text
    assert "n over tp; rests" in text
    same = sharding_diff_lines(one, one, 120)
    assert [line.text for line in same] == [f"{len(one)} ops are cut and converted alike."]


def test_terminal_page_and_json_hold_the_same_ops() -> None:
    _, found = rows(tp=4)
    lines = "\n".join(line.text for line in sharding_lines(found, 100))
    page = sharding_section(found)
    for row, record in zip(found, sharding_object(found), strict=True):
        assert row.op in lines and row.op in page and record["op"] == row.op
    assert max(len(line.text) for line in sharding_lines(found, 100)) <= 120


def test_blocks_of_products_in_steps_are_said_at_their_op() -> None:
    problem = Problem(graph(), cluster_of("h100x4"), Analytic(), Recipe(16))
    plan = Summa2D().plan(problem).plan
    assert plan is not None
    found = {r.op: r for r in sharding_rows(graph(), plan, problem.recipe) if r.part.startswith("model.layers")}
    row = found["self_attn.o_proj/linear"]
    # Both operands come, each q = 2 times; backward brings one again and sums the other's gradient, twice.
    assert sum(w.startswith("2 × broadcast blocks for") for w in row.forward) == 2
    assert sum(w.startswith("2 × sum blocks of") for w in row.backward) == 2
