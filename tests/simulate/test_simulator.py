"""The front door: conservation, monotony, folding, equal doors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.errors import Unsupported
from meshwright.graph.ir import Op, Slot
from meshwright.lower import lower
from meshwright.lower.program import unrolled
from meshwright.plan.model import Schedule, Stage, Weights
from meshwright.plan.pieces import rows_in_turn
from meshwright.simulate import Pricer, collect, estimate, fits, model_flops, peak_bytes, sends_of, simulate
from meshwright.simulate.pipeline import orders
from meshwright.simulate.result import CATEGORIES

from .small import Rates, chain, pipeline, problem

PLANS = [
    {"p": 1, "m": 8},
    {"p": 1, "m": 2, "dp": 4},
    {"p": 4, "m": 8},
    {"p": 4, "m": 8, "name": "gpipe", "dp": 2},
    {"p": 2, "m": 8, "v": 2, "name": "interleaved", "dp": 2},
    {"p": 2, "m": 4, "v": 4, "name": "bfs"},
    {"p": 4, "m": 8, "name": "zb-h1"},
    {"p": 2, "m": 8, "dp": 4, "recompute": True},
]


@pytest.fixture(scope="module")
def graph():
    return chain(blocks=8)


@pytest.mark.parametrize("shape", PLANS)
@pytest.mark.parametrize("cost", [Rates(), Rates(floor=5e-3), Rates(link=2e4), Rates(link=2e4, share=0.9)])
def test_parts_of_the_step_add_up_to_it(graph, shape, cost):
    found = simulate(problem(graph, 16, cost), pipeline(graph, **shape))
    assert sum(found.seconds_by.values()) == pytest.approx(found.step_seconds, rel=1e-9)
    assert all(x >= 0 for x in found.seconds_by.values())
    assert found.samples_per_second * found.step_seconds == pytest.approx(64)
    for lane, parts in enumerate(found.peak_by):
        assert sum(parts.values()) == pytest.approx(found.peak[lane], rel=1e-9)
        assert found.memory[lane].sum(axis=1).max() == pytest.approx(found.peak[lane], rel=1e-9)
        assert set(parts) == set(CATEGORIES)
    for parts in found.lane_seconds:
        assert sum(parts.values()) == pytest.approx(found.step_seconds, rel=1e-9)
        assert all(x >= -1e-12 for x in parts.values())
    slowest = max(range(len(found.lanes)), key=lambda k: -found.lane_seconds[k]["idle"])
    compute = found.lane_seconds[slowest]["forward"] + found.lane_seconds[slowest]["backward"]
    assert len(found.lanes) > 1 or compute == pytest.approx(found.seconds_by["compute"])


@pytest.mark.parametrize("shape", PLANS)
def test_details_change_no_figure(graph, shape):
    question = problem(graph, 16)
    full, brief = (simulate(question, pipeline(graph, **shape), detail=d) for d in (True, False))
    assert brief.events == () and brief.memory == () and full.events
    for field in ("step_seconds", "mfu", "bubble", "seconds_by", "peak_by", "calls_by", "bytes_by"):
        assert getattr(full, field) == getattr(brief, field), field


@given(
    st.sampled_from(PLANS), st.floats(1e3, 1e7), st.floats(1.0, 10.0), st.sampled_from(["flops", "bandwidth", "link"])
)
@settings(max_examples=40, deadline=None)
def test_more_of_anything_is_never_slower(shape, rate, times, what):
    graph = chain(blocks=8)
    plan = pipeline(graph, **shape)
    slow, fast = (
        simulate(problem(graph, 16, Rates(**{what: r})), plan, detail=False).step_seconds for r in (rate, rate * times)
    )
    assert fast <= slow * (1 + 1e-12)


@pytest.mark.parametrize("shape", PLANS)
def test_the_unrolled_program_costs_what_the_folded_one_costs(graph, shape):
    question, plan = problem(graph, 16, Rates(link=1e5)), pipeline(graph, **shape)
    program = lower(graph, plan, question.recipe)
    folded, flat = (simulate(question, plan, program=p) for p in (program, unrolled(program, graph)))
    assert flat.step_seconds == pytest.approx(folded.step_seconds, rel=1e-12)
    assert flat.calls_by == folded.calls_by
    assert flat.seconds_by == pytest.approx(folded.seconds_by)
    assert sum(flat.bytes_by.values()) == pytest.approx(sum(folded.bytes_by.values()))
    assert flat.peak == pytest.approx(folded.peak)


def test_replicas_that_do_the_same_fold_to_one_lane_of_equal_length(graph):
    # Without gradient sums (an endless link) replicas with as many samples each take as long as one.
    one, many = (
        simulate(problem(graph, 4 * d, Rates(link=1e30), samples=16 * d), pipeline(graph, 4, 16, dp=d, samples=16 * d))
        for d in (1, 64)
    )
    assert len(one.lanes) == len(many.lanes) == 4
    assert [x.devices for x in many.lanes] == [64] * 4
    assert many.step_seconds == pytest.approx(one.step_seconds, rel=1e-12)


@pytest.mark.parametrize("shape", [s for s in PLANS if s.get("name") != "zb-h1"])
def test_the_fast_door_says_what_the_front_door_says(graph, shape):
    question, plan = problem(graph, 16, Rates(link=1e5)), pipeline(graph, **shape)
    program = lower(graph, plan, question.recipe)
    pricer = Pricer(graph, question.cluster, question.cost, question.recipe)
    prices = [pricer.stage(code, [program.micro_batch]) for code in program.stages]
    sends = sends_of(program, pricer)
    work = collect(prices, 0, [s.mesh for s in program.stages], sends, pricer)
    v = plan.schedule.args.get("v", 1)
    seconds, peak = estimate(work, plan.schedule, sends, v, question.cost.overlap("data"), (1.0, 0.0))
    found = simulate(question, plan)
    assert seconds == found.step_seconds
    assert peak == pytest.approx(found.peak)
    assert peak_bytes(work, orders(plan.schedule, len(program.stages))) == pytest.approx(found.peak)


def test_stragglers_stretch_and_fixed_work_adds(graph):
    class Late(Rates):
        def step_overhead(self, devices):
            return 1.0 + devices / 100, 0.25

    plan = pipeline(graph, 2, 4, dp=2)
    plain, late = (simulate(problem(graph, 4, c), plan) for c in (Rates(), Late()))
    assert late.step_seconds == pytest.approx(plain.step_seconds * 1.04 + 0.25)
    assert late.seconds_by["idle"] - plain.seconds_by["idle"] == pytest.approx(plain.step_seconds * 0.04 + 0.25)


def test_one_stage_runs_its_micro_batches_in_turn(graph):
    question = problem(graph, 1)
    once = simulate(question, pipeline(graph, 1, 1, samples=8))
    eight = simulate(question, pipeline(graph, 1, 8, samples=64))
    busy = once.step_seconds - once.seconds_by["optimizer"]
    assert eight.step_seconds == pytest.approx(8 * busy + once.seconds_by["optimizer"])
    assert eight.peak == pytest.approx(once.peak) and eight.bubble == 0
    plain = replace(pipeline(graph, 1, 8), schedule=Schedule("dataflow", 8))
    assert simulate(question, plain).step_seconds == eight.step_seconds


def test_1f1b_holds_fewer_micro_batches_than_gpipe_and_ends_together(graph):
    question = problem(graph, 4)
    a, b = (simulate(question, pipeline(graph, 4, 8, name=n)) for n in ("gpipe", "1f1b"))
    kept = [(x["activations"], y["activations"]) for x, y in zip(a.peak_by, b.peak_by, strict=True)]
    for rank, (gpipe, other) in enumerate(kept):
        assert other == pytest.approx(gpipe * (4 - rank) / 8)


def test_causal_attention_counts_half_and_training_three_forwards(graph):
    flops = sum(op.flops for op in graph.ops)
    assert model_flops(graph, 64) == pytest.approx(3 * flops * 64 / graph.samples)
    rule = graph.ops[0].rule
    masked = Op(
        "a",
        "scaled_dot_product_attention",
        ("x",),
        ("y",),
        rule,
        100.0,
        args=(Slot(0), Slot(0), Slot(0), None, 0.0, True),
    )
    free = replace(masked, args=masked.args[:5])
    extra = [model_flops(replace(graph, ops=(*graph.ops, op)), graph.samples) - 3 * flops for op in (masked, free)]
    assert extra == pytest.approx([150.0, 300.0])


def test_mfu_is_model_flops_over_peak(graph):
    found = simulate(problem(graph, 4), pipeline(graph, 2, 4, dp=2))
    assert found.mfu == pytest.approx(model_flops(graph, 64) / (4 * 1e6 * found.step_seconds))


def test_fits_says_nothing_or_one_sentence_with_device_and_excess(graph):
    plan = pipeline(graph, 2, 8, dp=2)
    need = simulate(problem(graph, 4), plan).peak
    worst = int(np.argmax(need))
    assert fits(problem(graph, 4, memory=float(need.max())), plan) is None
    sentence = fits(problem(graph, 4, memory=float(need.max()) - 2**10), plan)
    assert sentence is not None
    assert sentence.startswith(f"stage {worst} needs 0.0 GiB on gpu {2 * worst}, 0.0 over the usable 0.0")


def test_a_scaled_excess_is_written_in_gib():
    graph = chain(blocks=4, width=16384)  # 1 GiB a weight in float32
    plan = pipeline(graph, 1, 8, samples=64)
    need = simulate(problem(graph, 1), plan).peak[0] / 2**30
    assert fits(problem(graph, 1, memory=24.0 * 2**30), plan) is None
    # 5 weights: 5 GiB each of weights and gradients, 10 of moments
    tight = fits(problem(graph, 1, memory=16.0 * 2**30), plan)
    assert (
        tight is not None
        and f"{need - 16:.1f} over the usable 16.0 (weights 5.0, gradients 5.0, optimizer 10.0" in tight
    )


# ---- placements of single ops


def placed(graph, bits, samples=64, m=1):
    """Op k on device bits[k]; one stage per device."""
    from meshwright.cluster.model import Mesh

    ops = {d: tuple(o.name for o, b in zip(graph.ops, bits, strict=True) if b == d) for d in sorted(set(bits))}
    stages = tuple(Stage(names, Mesh((d,))) for d, names in ops.items())
    plan = pipeline(graph, 1, m, samples=samples)
    return replace(plan, stages=stages, schedule=Schedule("dataflow", m))


def test_a_chain_of_ops_takes_the_sum_of_its_parts_and_its_transfers():
    graph = chain(blocks=2)
    question = problem(graph, 2, Rates(link=1e5))
    plan = placed(graph, (0, 0, 0, 1, 1, 1), samples=8)
    found = simulate(question, plan)
    cost = Rates()
    work = sum(
        float(cost.compute(op, np.array([[f.size for f in op.rule.factors]]), question.cluster.types[0], phase)[0])
        for op in graph.ops
        for phase in ("forward", "backward")
    )
    once = graph.tensor["layers.0/relu"].nbytes / 1e5
    assert found.step_seconds == pytest.approx(work + 2 * once + max(found.seconds_by["optimizer"], 0))
    assert sum(found.seconds_by.values()) == pytest.approx(found.step_seconds)
    assert len(found.lanes) == 2
    # The device that ends last, the first one, waits for the gradient to come back.
    assert found.exposed_communication == found.seconds_by["send"] == pytest.approx(once)
    sends, receives = ([e for e in found.events if e.stream == s] for s in ("send", "recv"))
    assert [(e.lane, e.name) for e in sends] == [(0, "F0 layers.0/relu 0→1"), (1, "B0 layers.0/relu 1→0")]
    assert sorted((1 - e.lane, e.name, e.start) for e in receives) == [(e.lane, e.name, e.start) for e in sends]


def test_independent_ops_run_at_once_on_two_devices():
    graph = chain(blocks=1)
    # Two products of the same input, summed by nothing: make "layers.0/linear" read x instead of start.
    ops = list(graph.ops)
    ops[1] = replace(ops[1], inputs=("x", "layers.0.weight"))
    wide = replace(graph, ops=tuple(ops), digest="wide")
    question = problem(wide, 2)
    together, apart = (simulate(question, placed(wide, bits, samples=8)) for bits in ((0, 0, 0, 0), (0, 1, 1, 1)))
    assert apart.step_seconds < together.step_seconds
    assert apart.peak.max() < together.peak.max()


def test_more_micro_batches_overlap_on_a_placement(graph):
    half = len(graph.ops) // 2
    bits = tuple(int(k >= half) for k in range(len(graph.ops)))
    question = problem(graph, 2)
    one, many = (simulate(question, placed(graph, bits, m=m)) for m in (1, 8))
    assert many.step_seconds < one.step_seconds
    assert many.bubble < one.bubble


def test_a_placement_whose_ops_run_again_has_no_price():
    graph = chain(blocks=1)
    plan = placed(graph, (0, 0, 1, 1), samples=8)
    again = replace(plan.stages[1], recompute=frozenset(plan.stages[1].ops))
    with pytest.raises(Unsupported, match="which is not simulated where ops run as soon"):
        simulate(problem(graph, 2), replace(plan, stages=(plan.stages[0], again)))


def test_a_stage_of_many_devices_without_rows_runs_by_micro_batch_or_not_at_all(graph):
    """A graph with its backward written out has no stages that could take turns."""
    plan = replace(pipeline(graph, 2, 4, dp=2), schedule=Schedule("dataflow", 4))
    rows = rows_in_turn([s.mesh for s in plan.stages], 4)
    custom = replace(plan, schedule=Schedule("custom", 4, {}, rows))
    assert simulate(problem(graph, 4), plan).step_seconds == simulate(problem(graph, 4), custom).step_seconds
    written = replace(graph, training="explicit")
    with pytest.raises(Unsupported, match="dataflow runs stages of one device"):
        simulate(problem(written, 4), plan)


def test_what_would_be_ignored_is_refused(graph):
    plan = pipeline(graph, 2, 4)
    stale = replace(plan, schedule=replace(plan.schedule, weights=Weights(flush=False)))
    with pytest.raises(Unsupported, match="schedule 1f1b and flush = false contradict each other"):
        simulate(problem(graph, 2), stale)
    swapped = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], offload=frozenset({"loss"}))))
    with pytest.raises(Unsupported, match=r"stage 1 swaps activations to the host \(offload\)"):
        simulate(problem(graph, 2), swapped)


def test_tied_weights_are_summed_between_their_stages_after_both_end():
    graph = chain(blocks=4)
    # The last block's product uses the head's weight again.
    last = graph.ops[-3]
    tied = replace(last, inputs=(last.inputs[0], "head"), saved=(last.inputs[0], "head"))
    ops = tuple(tied if op is last else op for op in graph.ops)
    tensors = tuple(t for t in graph.tensors if t.name != last.inputs[1])
    shared = replace(graph, ops=ops, tensors=tensors, runs=(replace(graph.runs[0], count=3),), digest="tied")
    plan = pipeline(shared, 3, 6, samples=48)
    names = tuple(op.name for op in shared.ops[7:])
    plan = replace(plan, stages=(*plan.stages[:2], replace(plan.stages[2], ops=(plan.stages[2].ops[0], *names))))
    found = simulate(problem(shared, 3, Rates(link=1e5)), plan)
    # 256 float32 gradients over two stages: bytes · 1/2 · 2 / 1e5
    assert found.seconds_by["all_reduce"] == pytest.approx(256 * 4 / 1e5)
    assert sum(found.seconds_by.values()) == pytest.approx(found.step_seconds)
