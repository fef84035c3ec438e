"""Mixtures of experts of measured rows: what they compute, where it lies, and what goes over the wire."""

import pytest

from meshwright.lower import Program
from meshwright.validation.columns import Columns, Refused
from meshwright.validation.layouts import lighter_last, stated, with_counted_ends, with_ends
from meshwright.validation.models import Graphs
from meshwright.validation.moe import PUBLIC, Plain, Sparse
from meshwright.validation.plans import Cases
from meshwright.validation.rows import Row
from meshwright.validation.settings import experts_of

SMALL = Sparse(8, 256, 4, 2, 64, 0, 0, 8, 2, 512, 0, 1024, 128)


def row(model: Sparse, **changed: object) -> Row:
    values: dict[str, object] = {
        "id": "made-1", "source": "megatron-bridge", "model": model, "machine": "h100", "devices": 8, "node": 8, "nic": 0.0,
        "precision": "bfloat16", "software": "overlapped", "grad": "float32", "pure": False, "dp": 1, "tp": 1, "pp": 1,
        "chunks": 1, "zero": 0, "sequence": False, "micro_batch": 1, "batch": 8, "recompute": "none", "seconds": 1.0,
        "memory": 0.0, "ep": 8, **changed,
    }  # fmt: skip
    return Row(**values)  # type: ignore[arg-type]


def exchanged(program: Program) -> list[tuple[str, tuple[str, ...], float]]:
    """(phase, axes, bytes) of the all-to-alls of hidden states in one layer of experts."""
    (code,) = program.stages
    segment = next(s for s in code.segments if s.count > 1)
    return [
        (i.phase, i.axes, i.nbytes)
        for i in (*segment.forward, *segment.backward)
        if i.collective == "all_to_all" and ("moe_dispatch:0" in i.on or "bmm.2" in i.on)
    ]


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "mixtral-8x7b", "moonlight-16b-a3b"])
def test_a_captured_model_computes_what_its_shape_says(name: str) -> None:
    model = PUBLIC[name].shortened()
    graph = Graphs().of(model)
    attention = sum(op.flops for op in graph.ops if "attention" in op.kind)
    products = sum(op.flops for op in graph.ops) - attention
    assert 3 * (products + attention / 2) / graph.samples == pytest.approx(model.flops, rel=0.005)


def test_a_gpt_with_experts_computes_what_its_shape_says() -> None:
    model = Plain(3, 128, 4, 4, 2, 256, 64, True, False, 512, 64)
    graph = Graphs().of(model)
    flops = 3 * sum(op.flops for op in graph.ops) / graph.samples - model.masked_flops
    assert flops == pytest.approx(model.flops, rel=0.001)
    assert sum(op.kind == "moe_dispatch" for op in graph.ops) == 3


def test_tokens_go_to_their_experts_and_back_once_each_way() -> None:
    held = SMALL.seq * SMALL.chosen * SMALL.hidden * 2.0  # bfloat16, of one sample
    found = exchanged(Cases().of(row(SMALL)).program)
    assert found == [
        ("forward", ("ep",), held), ("forward", ("ep",), held / 8), ("backward", ("ep",), held), ("backward", ("ep",), held / 8),
    ]  # fmt: skip


def test_experts_lie_over_the_tensor_axis_too_where_none_is_cut_inside() -> None:
    case = Cases().of(row(SMALL, tp=2, ep=4, sequence=True, whole_experts=True, batch=4))
    sizes = {p.name: p.elements[0] for p in case.program.stages[0].params}
    name = next(n for n in sizes if n.endswith("gate_up_proj"))
    assert sizes[name] * 8 == 8 * 2 * SMALL.expert_ffn * SMALL.hidden
    assert {axes for _, axes, _ in exchanged(case.program)} == {("ep",), ("tp",)}


def test_the_state_of_what_is_no_expert_is_shared_by_all_replicas() -> None:
    case = Cases().of(row(SMALL, ep=4, dp=2, zero=1))
    state = {p.name: (p.elements[0], p.elements[2]) for p in case.program.stages[0].params}
    dense = next(v for n, v in state.items() if n.endswith("q_proj.weight"))
    expert = next(v for n, v in state.items() if n.endswith("down_proj"))
    assert (dense[0] / dense[1], expert[0] / expert[1]) == (8, 2)


def test_dense_layers_stand_before_the_experts() -> None:
    graph = Graphs().of(PUBLIC["deepseek-v3"])
    assert [run.count for run in graph.runs] == [3, 58]
    assert sum(op.kind == "moe_dispatch" for op in graph.ops) == 58


@pytest.mark.parametrize(
    ("columns", "found"),
    [({"ep": "64"}, (64, False)), ({"ep": "64", "etp": "1", "tp": "2"}, (32, True)), ({"ep": "2", "etp": "2", "tp": "2"}, (2, False))],
)  # fmt: skip
def test_expert_degrees_of_megatron(columns: dict[str, str], found: tuple[int, bool]) -> None:
    raw = Columns(columns)
    assert experts_of(raw, 64, raw.whole("tp", 1)) == found


def test_experts_over_more_than_the_replicas_are_refused() -> None:
    with pytest.raises(Refused, match="context-parallel"):
        experts_of(Columns({"ep": "8", "etp": "1"}), 2, 2)


def test_layouts_of_megatron_are_read() -> None:
    assert stated("Et*4|(t*4|)*14tmL") == (4,) * 15 + (2,)
    assert stated("Et|(tt|)*30mL") == (1, *(2,) * 30, 1)
    assert lighter_last(62, 16) == stated("Et*4|(t*4|)*14tmL")
    assert lighter_last(8, 5) == ()
    assert with_ends(12, 4, 2, 2) == (2, 4, 4, 2)
    assert with_counted_ends(6, 8) == (0, 1, 1, 1, 1, 1, 1, 0)
