"""Programs of expert layouts: Megatron's collectives, ZeRO's traffic, folded equals unrolled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from meshwright.cluster.model import Mesh
from meshwright.cost import Analytic
from meshwright.errors import InputError, Unsupported
from meshwright.graph.ir import Graph
from meshwright.layouts.expert import Expert
from meshwright.layouts.point import Point
from meshwright.layouts.style import Style
from meshwright.lower import instructions, lower, unrolled
from meshwright.lower.program import Program
from meshwright.plan.model import Cut, OpSharding, Plan, Schedule, Stage
from meshwright.plan.problem import Problem, Recipe
from meshwright.planners._grid_space import Space
from meshwright.simulate.simulator import simulate

Small = Callable[[str], Graph]
RECIPE = Recipe(16)
EVERY_STYLE = [
    Style(1, False, 0, "none"),
    Style(1, False, 2, "light"),
    Style(1, False, 3, "full"),
    Style(2, False, 1, "none"),
    Style(2, True, 0, "none"),
    Style(4, True, 3, "light"),
]


def problem(graph: Graph, devices: int) -> Problem:
    from meshwright.cluster import resolve

    cluster = resolve(f"h100x{devices}")
    return Problem(graph, cluster, Analytic(), RECIPE)


def expert_plan(graph: Graph, style: Style, dp: int, pp: int, *, micro_batch: int = 1) -> tuple[Problem, Plan]:
    p = problem(graph, dp * pp * style.tp)
    space = Space(p, Expert(graph), {}, {})
    point = Point(dp, style.tp, pp, style.sequence, 1, micro_batch, style.zero, style.recompute, "1f1b")
    n = len(space.units)
    parts = [n * (s + 1) // pp - n * s // pp for s in range(pp)]
    return p, space.plan(point, parts)


def collectives(program: Program, *, block: bool = False) -> Counter[tuple[str, str, str]]:
    """(phase, kind, axis) -> calls; `block`: of one repeated block only."""
    found: Counter[tuple[str, str, str]] = Counter()
    for stage in program.stages:
        if block:
            s = next(s for s in stage.segments if s.name not in ("", "constants"))
            for phase, instrs in (("forward", s.forward), ("rerun", s.rerun), ("backward", s.backward)):
                found.update((phase, str(i.collective), i.axes[0]) for i in instrs if i.communicates)
        else:
            for n, i in instructions(stage):
                if i.communicates:
                    found[i.phase, str(i.collective), i.axes[0]] += n
    return found


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt2"])
def test_tensor_parallelism_sums_twice_a_block_each_way(small: Small, name: str) -> None:
    """Shoeybi et al., arXiv 1909.08053, §3: two all-reduces forward, two backward."""
    graph = small(name)
    _, plan = expert_plan(graph, Style(2, False, 0, "none"), 1, 1)
    assert collectives(lower(graph, plan, RECIPE), block=True) == {
        ("forward", "all_reduce", "tp"): 2,
        ("backward", "all_reduce", "tp"): 2,
    }


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt2"])
def test_sequence_parallelism_gathers_and_scatters_instead(small: Small, name: str) -> None:
    """Korthikanti et al., arXiv 2205.05198, §4.2.2: and two gathers again, because no gathered copy is kept."""
    graph = small(name)
    _, plan = expert_plan(graph, Style(2, True, 0, "none"), 1, 1)
    assert collectives(lower(graph, plan, RECIPE), block=True) == {
        ("forward", "all_gather", "tp"): 2,
        ("forward", "reduce_scatter", "tp"): 2,
        ("rerun", "all_gather", "tp"): 2,
        ("backward", "reduce_scatter", "tp"): 2,
        ("backward", "all_gather", "tp"): 2,
    }


def test_data_parallelism_syncs_once_a_step(small: Small) -> None:
    graph = small("llama-3.1-8b")
    _, plan = expert_plan(graph, Style(1, False, 0, "none"), 2, 1)
    found = collectives(lower(graph, plan, RECIPE))
    params = len([t for t in graph.params() if t.name in graph.consumers])
    assert found["update", "all_reduce", "dp"] == params
    assert not any(phase == "backward" for phase, _, _ in found)
    assert found["forward", "all_reduce", "dp"] == 2  # the loss, and the count of its labels


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (1, {("update", "reduce_scatter"), ("update", "all_gather")}),
        (2, {("backward", "reduce_scatter"), ("update", "all_gather")}),
        (3, {("backward", "reduce_scatter"), ("forward", "all_gather")}),
    ],
)
def test_zero_moves_what_its_stage_says(small: Small, zero: int, expected: set[tuple[str, str]]) -> None:
    """Rajbhandari et al., arXiv 1910.02054, §5 and §7."""
    graph = small("llama-3.1-8b")
    _, plan = expert_plan(graph, Style(1, False, zero, "none"), 4, 1)
    found = collectives(lower(graph, plan, RECIPE))
    assert {(phase, kind) for phase, kind, _ in found if kind != "all_reduce"} == expected
    params = len([t for t in graph.params() if t.name in graph.consumers])
    for (phase, kind, _), n in found.items():
        if (phase, kind) in expected and not (zero == 3 and kind == "all_gather"):
            assert n == params


def test_zero_bytes_a_device_are_the_papers(small: Small) -> None:
    """Per parameter: 2 + 4 + 12 bytes whole; the last, the last two, all of them cut over dp (mixed precision, fp32 sums)."""
    graph = small("llama-3.1-8b")
    elements = sum(t.nbytes / 4 for t in graph.params() if t.name in graph.consumers)
    for zero, expected in ((0, (1, 1, 1)), (1, (1, 1, 1 / 4)), (2, (1, 1 / 4, 1 / 4)), (3, (1 / 4, 1 / 4, 1 / 4))):
        _, plan = expert_plan(graph, Style(1, False, zero, "none"), 4, 1)
        (stage,) = lower(graph, plan, RECIPE).stages
        shares = [sum(p.count * p.elements[k] for p in stage.params) / elements for k in range(3)]
        np.testing.assert_allclose(shares, expected)


def test_tied_weights_are_summed_between_their_stages(small: Small) -> None:
    graph = small("gpt2")
    _, plan = expert_plan(graph, Style(1, False, 0, "none"), 1, 2)
    program = lower(graph, plan, RECIPE)
    tied = [p for s in program.stages for p in s.params if p.shared]
    assert [p.name for p in tied] == ["transformer.wte.weight"] * 2
    assert [p.shared for p in tied] == [(1,), (0,)]
    assert collectives(program)["update", "all_reduce", "stages"] == 2


def test_recompute_runs_blocks_again_and_keeps_only_their_input(small: Small) -> None:
    graph = small("llama-3.1-8b")
    kept = {}
    for how in ("none", "light", "full"):
        _, plan = expert_plan(graph, Style(1, False, 0, how), 1, 1)
        block = next(s for s in lower(graph, plan, RECIPE).stages[0].segments if s.count > 1)
        kept[how] = block.kept.activations[1]
        heavy = [i for i in block.rerun if i.kind == "compute" and i.group < 0]
        assert bool(heavy) == (how == "full")
    entry = graph.ops[graph.runs[0].first].inputs[0]
    assert kept["full"] == graph.tensor[entry].nbytes / graph.samples
    assert kept["full"] < kept["light"] < kept["none"]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gpt2"])
@pytest.mark.parametrize("style", EVERY_STYLE, ids=str)
@pytest.mark.parametrize("pp", [1, 2])
def test_folded_equals_written_out(small: Small, name: str, style: Style, pp: int) -> None:
    """The same plan with an entry for every block has the same price, memory and collectives."""
    graph = small(name)
    p, plan = expert_plan(graph, style, 2, pp)
    plain = replace(plan, stages=tuple(written_out(graph, s) for s in plan.stages))
    a, b = lower(graph, plan, RECIPE), lower(graph, plain, RECIPE)
    assert all(s.count == 1 for stage in b.stages for s in stage.segments)
    assert collectives(a) == collectives(b)
    x, y = simulate(p, plan, program=a), simulate(p, plain, program=b)
    assert x.step_seconds == pytest.approx(y.step_seconds, rel=1e-9)
    np.testing.assert_allclose(x.peak, y.peak, rtol=1e-9)
    assert x.seconds_by == pytest.approx(y.seconds_by, rel=1e-6, abs=1e-12)


def written_out(graph: Graph, stage: Stage) -> Stage:
    """Each op of each block by its own name."""
    from meshwright.plan.lookup import layout_of, sharding_of, stage_ops, storage_of

    ops = stage_ops(graph, stage)
    names = tuple(graph.ops[i].name for i in ops)
    shardings = {graph.ops[i].name: s for i in ops if (s := sharding_of(graph, stage, i))}
    read = [t for i in ops for t in (*graph.ops[i].inputs, *graph.ops[i].outputs)]
    layouts = {t: layout for t in read if (layout := layout_of(graph, stage, t))}
    storage = {t: s for t in read if graph.tensor[t].role == "param" and (s := storage_of(graph, stage, t))}
    again = frozenset(graph.ops[i].name for i in ops if graph.ops[graph.representative[i]].name in stage.recompute)
    return Stage(names, stage.mesh, shardings, layouts, storage, again)


@pytest.mark.parametrize("style", EVERY_STYLE, ids=str)
def test_every_instruction_has_its_names(small: Small, style: Style) -> None:
    """Unrolled: every value read is made before, once; every forward conversion that carries a gradient has one dual."""
    graph = small("llama-3.1-8b")
    _, plan = expert_plan(graph, style, 2, 2)
    program = unrolled(lower(graph, plan, RECIPE), graph)
    for stage in program.stages:
        made = {t.value for t in program.transfers if t.dst == stage.stage}
        made |= {p.name for p in stage.params} | {t for t, _ in stage.inputs}
        made |= {t.name for t in graph.tensors if t.role == "buffer"}
        for s in stage.segments:
            for i in s.forward:
                assert set(i.inputs) <= made, (i.on, i.inputs)
                assert not set(i.outputs) & made or i.kind == "stat"
                made |= set(i.outputs)
            assert {v for i in s.rerun for v in i.outputs} <= made
            moves = {(i.outputs[0], i.inputs[0]) for i in s.forward if i.kind not in ("compute", "stat")}
            duals = [(i.inputs[0][1:], i.outputs[0][1:]) for i in s.backward if i.kind not in ("compute", "stat")]
            assert len(duals) == len(set(duals))
            assert set(duals) <= moves


def test_a_plan_of_another_graph_is_refused(small: Small) -> None:
    graph = small("gpt2")
    _, plan = expert_plan(graph, Style(1, False, 0, "none"), 1, 1)
    with pytest.raises(InputError, match="plan this model again"):
        lower(graph, replace(plan, graph="0" * 64), RECIPE)


def test_weights_of_a_product_say_how_large_its_parts_are(small: Small) -> None:
    """Sizes are those of the largest part; SUMMA takes equal ones."""
    graph = small("gpt2")
    op = next(o for o in graph.ops if o.kind == "mm" and "c_fc" in o.module)
    wide = op.rule.factor("n").size
    own = OpSharding({"n": (Cut("x", (3, 7)),)})
    names, mesh = tuple(o.name for o in graph.ops), Mesh(range(2), ("x",), (2,))

    def plan(sharding: OpSharding) -> Plan:
        stage = Stage(names, mesh, {op.name: sharding})
        return Plan(graph.digest, 16, (stage,), Schedule("1f1b", 1))

    (code,) = lower(graph, plan(own), RECIPE).stages
    instr = next(i for s in code.segments for i in s.forward if i.on == op.name and i.kind == "compute")
    assert instr.sizes[[f.name for f in op.rule.factors].index("n")] == round(0.7 * wide)
    assert dict(instr.cuts)["n"] == (Cut("x", (3, 7)),)
    with pytest.raises(Unsupported, match="runs as summa, which takes equal parts"):
        lower(graph, plan(replace(own, variant="summa")), RECIPE)
