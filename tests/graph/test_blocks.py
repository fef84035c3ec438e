"""Repeated blocks are found where they are, and only where wiring, parameters and uses repeat as well."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.graph.blocks import repeated_runs, with_runs
from meshwright.graph.ir import Factor, Graph, Op, Rule, Run, Tensor

FACTORS = (Factor("rows", 8, samples=True), Factor("out", 4), Factor("in", 4))
LINEAR = Rule(FACTORS, ((("rows",), ("in",)), (("out",), ("in",))), ((("rows",), ("out",)),))
POINT = Rule((Factor("rows", 8, samples=True), Factor("width", 4)), ((("rows",), ("width",)),) * 2, ((("rows",), ("width",)),))  # fmt: skip


class Builder:
    """Writes graphs of [8, 4] tensors op by op."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.tensors = {"x": Tensor("x", 128.0, (8, 4), "float32", "input")}

    def op(self, kind: str, *inputs: str, module: str = "") -> str:
        name = f"{module}/{kind}.{len(self.ops)}"
        rule = LINEAR if kind == "linear" else POINT
        for given_name in inputs:
            self.tensors.setdefault(given_name, Tensor(given_name, 64.0, (4, 4), "float32", "param"))
        self.tensors[name] = Tensor(name, 128.0, (8, 4))
        self.ops.append(Op(name, kind, inputs, (name,), rule, module=module, call=f"aten.{kind}"))
        return name

    def graph(self) -> Graph:
        last = self.ops[-1].outputs[0]
        return Graph(tuple(self.ops), tuple(self.tensors.values()), 8, inputs=("x",), outputs=(last,), loss=last)


def layers(count: int, kinds: tuple[str, ...] = ("linear", "add", "gelu"), head: int = 2, tail: int = 3) -> Graph:
    """head ops, `count` layers with a residual, tail ops."""
    build = Builder()
    x = "x"
    for _ in range(head):
        x = build.op("tanh", x, x)
    for i in range(count):
        inner = x
        for kind in kinds:
            module = f"net.layers.{i}.{kind}"
            inner = build.op(kind, inner, f"{module}.weight" if kind == "linear" else x, module=module)
        x = inner
    for _ in range(tail):
        x = build.op("sin", x, x)
    return build.graph()


def test_layers_are_one_run_at_their_own_boundary() -> None:
    assert repeated_runs(layers(6)) == (Run("net.layers", 2, 3, 6),)


def test_a_tail_that_looks_like_the_start_of_a_layer_does_not_shift_the_blocks() -> None:
    build = Builder()
    x = build.op("sin", "x", "x")
    for i in range(5):
        for kind in ("tanh", "linear"):
            x = build.op(kind, x, f"layers.{i}.weight" if kind == "linear" else x, module=f"layers.{i}")
    build.op("sin", build.op("tanh", x, x, module="norm"), x)
    assert repeated_runs(build.graph()) == (Run("layers", 1, 2, 5),)


def test_layers_that_alternate_in_wiring_alone_make_blocks_of_two() -> None:
    build = Builder()
    masks = [build.op("sin", "x", "x"), build.op("cos", "x", "x")]
    x = build.op("tanh", "x", "x")
    for i in range(6):
        x = build.op("linear", x, f"layers.{i}.weight", module=f"layers.{i}")
        x = build.op("mul", x, masks[i % 2], module=f"layers.{i}")
    build.op("sin", x, x)
    assert repeated_runs(build.graph()) == (Run("layers", 3, 4, 3),)


def test_a_first_layer_that_reads_another_kind_of_tensor_is_left_out_and_the_rest_starts_at_a_layer() -> None:
    build = Builder()
    x = "x"
    for i in range(5):
        x = build.op("linear", x, f"layers.{i}.weight", module=f"layers.{i}.a")
        x = build.op("gelu", x, x, module=f"layers.{i}.b")
    assert repeated_runs(build.graph()) == (Run("layers", 2, 2, 4),), "layer 0 reads an input, which has no gradient"


def test_layers_that_read_two_layers_back_make_blocks_of_two() -> None:
    build = Builder()
    before, x = build.op("cos", "x", "x"), build.op("sin", "x", "x")
    for i in range(6):
        before, x = x, build.op("add", build.op("linear", x, f"l.{i}.w", module=f"l.{i}"), before, module=f"l.{i}")
    assert repeated_runs(build.graph()) == (Run("l", 2, 4, 3),)


def test_a_block_read_by_the_tail_ends_the_run() -> None:
    build = Builder()
    x, seen = build.op("sin", "x", "x"), ""
    for i in range(6):
        x = build.op("tanh", build.op("linear", x, f"l.{i}.w", module=f"l.{i}"), x, module=f"l.{i}")
        seen = x if i == 3 else seen
    build.op("mul", x, seen)
    assert repeated_runs(build.graph()) == (Run("l", 1, 2, 4), Run("l.4", 9, 2, 2)), "no two runs have one name"


def test_shared_parameters_are_allowed_when_all_blocks_share_them_and_not_otherwise() -> None:
    def build(name: list[str]) -> Graph:
        made = Builder()
        x = made.op("sin", "x", "x")
        for i, weight in enumerate(name):
            x = made.op("linear", made.op("linear", x, f"l.{i}.w", module=f"l.{i}"), weight, module=f"l.{i}")
        return made.graph()

    assert repeated_runs(build(["all"] * 4)) == (Run("l", 1, 2, 4),)
    assert repeated_runs(build(["a", "b", "a"])) == (), "blocks 0 and 2 hold one parameter, which no run can say"
    assert repeated_runs(build(["a", "b"] * 2)) == (Run("l", 1, 4, 2),), "both blocks of two layers hold both"


def test_ops_without_parameters_are_no_blocks() -> None:
    build = Builder()
    x = "x"
    for _ in range(8):
        x = build.op("tanh", build.op("sin", x, x), x)
    assert repeated_runs(build.graph()) == ()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 6), st.lists(st.sampled_from(["linear", "add", "mul", "gelu"]), min_size=1, max_size=5)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_found_runs_are_true_repeats(stacks: list[tuple[int, list[str]]]) -> None:
    build = Builder()
    x = "x"
    for s, (count, kinds) in enumerate(stacks):
        for i in range(count):
            for kind in ["linear", *kinds]:
                second = f"s{s}.{i}.{len(build.ops)}.weight" if kind == "linear" else x
                x = build.op(kind, x, second, module=f"s{s}.{i}")
    graph = build.graph()
    assert len({run.name for run in repeated_runs(graph)}) == len(repeated_runs(graph))
    covered = 0
    for run in repeated_runs(graph):
        assert run.count >= 2 and run.first >= covered
        covered = run.first + run.length * run.count
        for b in range(1, run.count):
            for k in range(run.length):
                own, first = graph.ops[run.first + b * run.length + k], graph.ops[run.first + k]
                assert (own.kind, own.rule, own.args) == (first.kind, first.rule, first.args)
        inside = [
            tuple(
                graph.producer[name] - run.first - b * run.length
                for op in graph.ops[run.first + b * run.length : run.first + (b + 1) * run.length]
                for name in op.inputs
                if name in graph.producer
            )
            for b in range(1, run.count)
        ]
        assert len(set(inside)) == 1, "from block 1 on, every block reads at the same distances"
    with_all = replace(graph, runs=repeated_runs(graph))
    assert len(with_all.representative) == len(graph.ops)
    assert all(name in graph.tensor for name in with_all.representative_param.values())


def test_stacked_equal_layers_are_always_found() -> None:
    for count in range(2, 9):
        assert repeated_runs(layers(count))[0].count == count


def test_runs_do_not_change_the_digest() -> None:
    graph = replace(layers(3), digest="d")
    assert with_runs(graph).digest == "d"
    assert with_runs(graph).runs == repeated_runs(graph)


@pytest.mark.slow
def test_time_grows_about_linearly_with_depth() -> None:
    def seconds(count: int) -> float:
        graph, taken = layers(count, ("linear", "add", "gelu") * 8), []
        for _ in range(3):
            start = time.process_time()
            assert repeated_runs(graph)[0].count == count
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(800) < 6 * seconds(200) + 0.1
