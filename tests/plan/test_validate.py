"""Each rule of a legal plan: the legal one passes, the broken one says stage, op, found and wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.graph.ir import Factor, Op, Rule, Tensor
from meshwright.plan.model import Action, Cut, Layout, OpSharding, Plan, Row, Schedule, Stage, Storage
from meshwright.plan.schedules import parse_action
from meshwright.plan.validate import validate
from meshwright.testing.tiny import mlp, problem_of

PROBLEM = problem_of(mlp(4), "a100x4")
GRAPH = PROBLEM.graph
TP = Cut("tp")


def legal() -> Plan:
    first = Stage(
        ("stem/linear", "layers[0:2]"),
        Mesh((0, 1), ("tp",), (2,)),
        {"layers.0.fc/linear": OpSharding({"n": (TP,)}, kept=("layers.0.fc.weight",))},
        {"layers.0.act.out": Layout((((0, (TP,)),), ((0, ()),)))},
        {"layers.0.fc.weight": Storage(state=Layout((((0, (TP,)),), ((0, ()),))))},
        frozenset({"layers.0.act/relu"}),
    )
    second = Stage(("layers[2:4]", "head/linear", "loss/mean"), Mesh(range(2, 4), ("tp",), (2,)))
    return Plan(GRAPH.digest, 8, (first, second), Schedule("1f1b", 4))


def test_a_legal_plan_passes() -> None:
    validate(PROBLEM, legal())


def stage(s: int, **fields: object) -> Callable[[Plan], Plan]:
    def edit(plan: Plan) -> Plan:
        stages = list(plan.stages)
        stages[s] = replace(stages[s], **fields)  # type: ignore[arg-type]
        return replace(plan, stages=tuple(stages))

    return edit


def schedule(**fields: object) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, schedule=replace(plan.schedule, **fields))  # type: ignore[arg-type]


def whole(**fields: object) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, **fields)  # type: ignore[arg-type]


WHOLE = Layout((((0, ()),), ((0, ()),)))
LINEAR = "layers.0.fc/linear"
BROKEN = [
    (whole(graph="0123456789abcdef"), f"the plan is for graph 0123456789ab, the problem has graph {GRAPH.digest[:12]}: plan this problem again"),
    (whole(samples=0), "the plan has 0 samples a step: it must have at least 1"),
    (whole(stages=()), "the plan has no stages: every op must be in one"),
    (whole(frozen=frozenset({"head.weigh"})), 'frozen names "head.weigh", which is no parameter of this graph: did you mean "head.weight"?'),
    (stage(0, mesh=Mesh((0, 9), ("tp",), (2,))), "stage 0: device 9 is not in this cluster, which has 0 to 3"),
    (stage(0, mesh=Mesh((0,), ("tp", "tp"), (1, 1))), "stage 0: mesh axes tp, tp name one twice"),
    (stage(1, ops=("layers[2:4]", "loss/mean")), 'op "head/linear" is in no stage: each op must be in one'),
    (stage(1, ops=("layers[2:4]", "head/linear")), 'op "loss/mean" is in no stage: each op must be in one'),
    (
        stage(1, ops=("layers[1:4]", "head/linear", "loss/mean")),
        'op "layers.1.fc/linear" is in stages 0 and 1: only constants, which depend on no input and no parameter, may be in several',
    ),
    (
        stage(1, ops=("head/linear", "layers[2:4]", "loss/mean")),
        'stage 1: "layers[2:4]" is not after "head/linear": ops stand once, in program order',
    ),
    (stage(1, ops=("layers[2:9]",)), 'stage 1: "layers[2:9]" is outside of the run: layers has blocks 0 to 3'),
    (
        stage(0, shardings={"layers.0.fc/linea": OpSharding()}),
        'stage 0: shardings name "layers.0.fc/linea", which is no op: did you mean "layers.0.fc/linear"?',
    ),
    (stage(0, shardings={LINEAR: OpSharding({"z": (TP,)})}), f'stage 0, op {LINEAR}: no factor "z": it has b, n, k'),
    (stage(0, shardings={LINEAR: OpSharding({"n": (Cut("dp"),)})}), f'stage 0, op {LINEAR}: no axis "dp" in its mesh, which has tp'),
    (
        stage(0, shardings={LINEAR: OpSharding({"n": (TP,), "b": (TP,)})}),
        f'stage 0, op {LINEAR}: axis "tp" cuts twice: each axis cuts one factor of an op',
    ),
    (
        stage(0, shardings={LINEAR: OpSharding({"n": (Cut("tp", (1,)),)})}),
        f'stage 0, op {LINEAR}: weights (1,) on axis "tp" of length 2: give 2 numbers, none below 0, one above',
    ),
    (
        stage(0, shardings={LINEAR: OpSharding(kept=("w",))}),
        f'stage 0, op {LINEAR}: kept names "w", its operands are stem.out, layers.0.fc.weight',
    ),
    (
        stage(0, shardings={LINEAR: OpSharding(backward={2: {}})}),
        f"stage 0, op {LINEAR}: backward speaks of operand 2, but there are 2, counted from 0",
    ),
    (
        stage(0, shardings={LINEAR: OpSharding({"n": (TP,)}, backward={1: {"z": (TP,)}})}),
        f'stage 0, op {LINEAR}, gradient of operand 1: no factor "z": it has b, n, k',
    ),
    (
        stage(0, shardings={LINEAR: OpSharding({"n": (TP,)}, backward={0: {"b": (TP,), "k": (TP,)}})}),
        f'stage 0, op {LINEAR}, gradient of operand 0: axis "tp" cuts twice: each axis cuts one factor of an op',
    ),
    (
        stage(0, layouts={"x": Layout((((3, (TP,)), (4, ())), ((0, ()),)))}),
        "stage 0, tensor x: dim 0 has 8 elements, its sub-dimensions multiply to 3 × 4: they must give 8",
    ),
    (stage(0, layouts={"head.weight": WHOLE}), 'stage 0: layouts name parameter "head.weight": its rest placement belongs in storage'),
    (stage(0, storage={"x": Storage()}), 'stage 0: storage names "x", which is no parameter of this graph'),
    (
        stage(0, storage={"head.weight": Storage(grad=replace(WHOLE, partial=("tp",)))}),
        "stage 0, parameter head.weight: its grad layout is partial over tp: it must be whole",
    ),
    (
        stage(0, storage={"head.weight": Storage(state=Layout((((0, (Cut("dp"),)),), ((0, ()),))))}),
        'stage 0, parameter head.weight, state: no axis "dp" in this mesh: it has tp',
    ),
    (stage(0, storage={"head.weight": Storage(resident=2.0)}), "stage 0, parameter head.weight: resident = 2.0 must be a share from 0 to 1"),
    (stage(0, recompute=frozenset({"head/linea"})), 'stage 0: recompute names "head/linea", which is no op: did you mean "head/linear"?'),
    (stage(0, offload=frozenset({"what"})), 'stage 0: offload names "what", which is no tensor of this graph'),
    (stage(0, deal="dp"), 'stage 0: deal names axis "dp", its mesh has tp'),
    (schedule(name="1f1bb"), 'no schedule "1f1bb": there are gpipe, 1f1b, interleaved, bfs, zb-h1, zb-h2, zb-auto, zb-v, v-half, v-min, hanayo, dapple, dualpipe, dualpipev, chimera, pipedream, 2bw, custom and dataflow'),
    (schedule(micro_batches=0), "schedule 1f1b: 0 micro-batches, it must have at least 1"),
    (schedule(micro_batches=9), "schedule 1f1b: 8 samples cannot make 9 micro-batches: each needs 1, so at most 8"),
    (schedule(args={"w": 2}), 'schedule 1f1b has no argument "w": it takes none'),
    (schedule(name="bfs", args={"v": 3}), "schedule bfs: 2 stages do not divide into v = 3 a rank"),
    (schedule(name="bfs", args={"v": 2}), "stages 0 and 1 are chunks of rank 0: they must be on the same devices"),
    (schedule(rows=(Row((0,), ()),)), 'schedule 1f1b makes its own rows: rows are for "custom" only'),
    (stage(1, mesh=Mesh((1, 2), ("tp",), (2,))), "stages 0 and 1 share device 1: schedule 1f1b needs its own devices for each rank"),
    (stage(1, pipe=1), 'op "layers.2.fc/linear" is in no stage: each op must be in one'),
    (schedule(name="custom"), 'schedule "custom" has no rows'),
    (schedule(name="custom", rows=(Row((0,), (Action("F", 7, 0),)),)), "schedule row 0, F of 7: stages are numbered 0 to 1"),
    (
        schedule(name="custom", rows=(Row((0,), (Action("F", 0, 0), Action("F", 0, 0))),)),
        "schedule row 0, F of 0: micro-batch 0 runs twice",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_a_broken_plan_is_refused_with_its_sentence(edit: Callable[[Plan], Plan], message: str) -> None:
    with pytest.raises(InputError) as error:
        validate(PROBLEM, edit(legal()))
    assert str(error.value) == message


def test_rows_need_stages_in_the_order_of_the_values() -> None:
    plan = legal()
    turned = replace(plan, stages=(plan.stages[1], plan.stages[0]))
    with pytest.raises(InputError) as error:
        validate(PROBLEM, turned)
    assert str(error.value) == (
        'stage 0 reads "layers.1.act.out", which stage 1 makes: schedule 1f1b runs stages in order, so values go to later ones only'
    )
    validate(PROBLEM, replace(turned, schedule=Schedule("dataflow", 4)))


def custom(*texts: str) -> Plan:
    rows = tuple(Row((r,), tuple(parse_action(word) for word in text.split())) for r, text in enumerate(texts))
    return replace(legal(), schedule=Schedule("custom", 2, rows=rows))


def test_custom_rows_that_run_everything_pass() -> None:
    validate(PROBLEM, custom("0F0-1 0B1 0B0", "1F0-1 1B1 1B0"))
    validate(PROBLEM, custom("0F0 0F1 0I0 0W0 0B1", "1F0 1B0 1F1 1I1 1W1"))
    validate(PROBLEM, custom("0F0 0F1", "1F0 1F1"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ("0F0 0F1 0B0 0B1", "1F0 1B0"),
            "schedule rows: micro-batch 1 runs forward through only one of stages 0 and 1 of a pipe",
        ),
        (("0F0 0F1 0B0", "1F0 1B0 1F1 1B1"), "schedule rows: micro-batch 1 runs through stage 0 in one direction only"),
        (
            ("0F0 0F1 0I0 0B1", "1F0 1B0 1F1 1B1"),
            "schedule rows: micro-batch 0 runs backward through stage 0 neither as one B nor as one I and W",
        ),
        (
            ("0F0 0F1 0B0 0I0 0W0 0B1", "1F0 1B0 1F1 1B1"),
            "schedule rows: micro-batch 0 runs backward through stage 0 neither as one B nor as one I and W",
        ),
        (("0F0 0B0", "1F0 1B0"), "schedule rows: micro-batch 1 of 2 runs through no stage"),
        (
            ("0F0 0B0 0F1 0B1", "1F1 1B1 1F0 1B0"),
            "no order of messages can run this table: rank 0 before 0B0, rank 1 before 1F1",
        ),
    ],
)
def test_custom_rows_that_leave_something_out_are_refused(rows: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError) as error:
        validate(PROBLEM, custom(*rows))
    assert str(error.value) == message


def test_a_fixed_factor_is_not_cut() -> None:
    fixed = Rule((Factor("b", 8, samples=True), Factor("d", 64, "fixed")), ((("b",), ("d",)),), ((("b",), ("d",)),))
    ops = tuple(replace(op, rule=fixed) if op.kind == "relu" else op for op in GRAPH.ops)
    problem = replace(PROBLEM, graph=replace(GRAPH, ops=ops))
    plan = stage(0, shardings={"layers.0.act/relu": OpSharding({"d": (TP,)})})(legal())
    with pytest.raises(InputError) as error:
        validate(problem, plan)
    assert str(error.value) == 'stage 0, op layers.0.act/relu: factor "d" is fixed and cannot be cut'


def test_a_constant_may_be_computed_in_several_stages() -> None:
    ones = Op("mask/ones", "ones", (), ("mask",), Rule((Factor("d", 4),), (), ((("d",),),)))
    graph = replace(
        GRAPH, ops=(ones, *GRAPH.ops), tensors=(*GRAPH.tensors, Tensor("mask", 16.0, (4,))), runs=(), digest=""
    )
    problem = replace(PROBLEM, graph=graph)
    names = [op.name for op in GRAPH.ops]
    stages = (Stage(("mask/ones", *names[:5]), Mesh((0,))), Stage(("mask/ones", *names[5:]), Mesh((1,))))
    validate(problem, Plan("", 8, stages, Schedule("gpipe", 2)))


def test_colocation_and_device_kinds_are_kept() -> None:
    keyed = replace(GRAPH, ops=tuple(replace(op, colocate="one") if op.kind == "linear" else op for op in GRAPH.ops))
    with pytest.raises(InputError) as error:
        validate(replace(PROBLEM, graph=keyed), legal())
    assert str(error.value) == (
        'ops "stem/linear" (stage 0) and "layers.2.fc/linear" (stage 1) share the key "one": they must be on the same devices'
    )
    kinds = replace(GRAPH, ops=tuple(replace(op, runs_on=("cpu",)) if op.kind == "mean" else op for op in GRAPH.ops))
    with pytest.raises(InputError) as error:
        validate(replace(PROBLEM, graph=kinds), legal())
    assert str(error.value) == "stage 1, op loss/mean: runs on cpu only, not on gpu"
