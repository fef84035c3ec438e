"""Which collectives a few annotations make of small programs: the table of the reference, through capture and lowering.

The reference is an SPMD compiler on 8 CPU devices; where ours moves less, or otherwise, the case says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meshwright.cluster import resolve
from meshwright.cluster.model import Mesh
from meshwright.cost import Analytic
from meshwright.graph.capture import capture
from meshwright.lower import Program, lower
from meshwright.plan.layout import largest_local_shape
from meshwright.plan.model import Cut, Layout
from meshwright.plan.problem import Annotation, Problem, Recipe
from meshwright.planners.gspmd import GSPMD

Shapes = Mapping[str, tuple[int, ...]]
XY = {"x": 2, "y": 4}
X8 = {"x": 8}


class Written(nn.Module):
    """`fn` of its inputs and parameters, by name."""

    def __init__(self, fn: Callable[..., Tensor], params: Shapes) -> None:
        super().__init__()
        self.fn = fn
        for name, shape in params.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, device="meta")))
        self.names = tuple(params)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        out = self.fn(*inputs.values(), *(getattr(self, name) for name in self.names))
        return out.float().sum(), out


@dataclass(frozen=True)
class Found:
    program: Program
    out: tuple[str, ...]
    """Per dim of the result the axes that it rests cut over."""
    forward: Counter[tuple[str, tuple[int, ...]]]
    """(collective, largest local shape of its result), but for the sum that stands for a loss."""


def sharding(name: str, text: str) -> Annotation:
    """ "x _ y+x ?": a dim each."""
    words = text.split()
    dims = tuple(((0, tuple(Cut(a) for a in w.strip("?").split("+") if a not in ("", "_"))),) for w in words)
    return Annotation(name, Layout(dims), tuple(d for d, w in enumerate(words) if w.endswith("?")))


def partitioned(
    fn: Callable[..., Tensor],
    inputs: Shapes,
    params: Shapes,
    given: Mapping[str, str],
    mesh: Mapping[str, int] = XY,
    integers: tuple[str, ...] = (),
) -> Found:
    """Plan with `given` annotations ("out": of the result) and lower."""
    kinds = {name: torch.int64 if name in integers else torch.float32 for name in inputs}
    example = {name: torch.zeros(shape, dtype=kinds[name], device="meta") for name, shape in inputs.items()}
    graph = capture(Written(fn, params), example, next(iter(inputs.values()))[0])
    out = next(name for name in graph.outputs if name != graph.loss)
    notes = tuple(sharding(out if name == "out" else name, text) for name, text in given.items())
    n = prod(mesh.values())
    problem = Problem(
        graph, resolve(f"h100x{n}"), Analytic(precision="float32"), Recipe(graph.samples, compute_dtype="float32"),
        mesh=Mesh(range(n), tuple(mesh), tuple(mesh.values())), annotations=notes,
    )  # fmt: skip
    result = GSPMD(micro_batches=1).plan(problem)
    assert result.plan is not None, result.reason
    (stage,) = result.plan.stages
    program = lower(graph, result.plan, problem.recipe)
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for segment in program.stages[0].segments:
        for i in segment.forward:
            if not i.communicates or i.on == graph.loss:
                continue
            if i.after is not None and i.kind == "collective":
                found[str(i.collective), largest_local_shape(i.after, graph.tensor[i.on].shape, stage.mesh)] += 1
            else:
                found[i.kind, tuple(int(s) for s in i.sizes[:2])] += 1
    rest = stage.layouts[out]
    return Found(program, tuple("+".join(c.axis for _, cuts in dim for c in cuts) or "_" for dim in rest.dims), found)


def mm(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def mlp(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.relu(x @ a) @ b


def test_column_then_row_parallel_is_one_all_reduce() -> None:
    found = partitioned(mlp, {"x": (64, 32)}, {"a": (32, 128), "b": (128, 32)}, {"x": "x _", "a": "_ y", "b": "y _"})
    assert found.out == ("x", "_") and found.forward == {("all_reduce", (32, 32)): 1}


@pytest.mark.parametrize(
    ("a", "b", "out", "inner", "rest", "wanted"),
    [
        ("_ y", "y _", "_ _", 64, ("_", "_"), {("all_reduce", (16, 64)): 1}),
        # The reference all-reduces and slices; a reduce-scatter moves half.
        ("_ y", "y _", "y _", 64, ("y", "_"), {("reduce_scatter", (4, 64)): 1}),
        ("x _", "_ y", "", 64, ("x", "y"), {}),
        ("y _", "_ y", "", 64, ("_", "y"), {("all_gather", (16, 32)): 1}),
        ("y _", "_ y", "", 640, ("_", "y"), {("all_gather", (16, 32)): 1}),
        ("_ y", "_ _", "_ _", 64, ("_", "_"), {("all_gather", (16, 32)): 1}),  # less than the sums of [16, 64]
        ("_ _", "_ y", "x ?", 64, ("x", "y"), {}),
        ("_ _", "_ y", "x _", 64, ("x", "_"), {("all_gather", (8, 64)): 1}),
    ],
)
def test_a_product(
    a: str, b: str, out: str, inner: int, rest: tuple[str, ...], wanted: dict[tuple[str, tuple[int, ...]], int]
) -> None:
    given = {"a": a, "b": b} | ({"out": out} if out else {})
    found = partitioned(mm, {"a": (16, 32)}, {"b": (32, inner)}, given)
    assert found.out == rest and found.forward == wanted


def test_a_batched_product() -> None:
    found = partitioned(torch.bmm, {"a": (8, 16, 32), "b": (8, 32, 64)}, {}, {"a": "x _ y", "b": "x y _"})
    assert found.out == ("x", "_", "_") and found.forward == {("all_reduce", (4, 16, 64)): 1}


@pytest.mark.parametrize(
    ("a", "b", "rest", "kinds"),
    [("x _", "_ y", ("x", "y"), []), ("x _", "_ x", ("x", "_"), ["all_to_all"])],
)
def test_a_sum_of_two(a: str, b: str, rest: tuple[str, ...], kinds: list[str]) -> None:
    found = partitioned(torch.add, {"a": (16, 32), "b": (16, 32)}, {}, {"a": a, "b": b})
    assert found.out == rest and [kind for kind, _ in found.forward] == kinds


@pytest.mark.parametrize(
    ("shape", "to", "a", "rest"),
    [
        # The reference must gather y here, as it has no strided parts; plans do.
        ((8, 8, 32), (64, 32), "x y _", ("x+y", "_")),
        ((64, 32), (8, 8, 32), "y _", ("y", "_", "_")),
        ((2, 4, 32), (8, 32), "x y _", ("x+y", "_")),
    ],
)
def test_a_reshape_moves_nothing(shape: tuple[int, ...], to: tuple[int, ...], a: str, rest: tuple[str, ...]) -> None:
    found = partitioned(lambda a: torch.relu(a.reshape(to)), {"a": shape}, {}, {"a": a})
    assert found.out == rest and not found.forward


def test_an_axis_is_split_over_the_dims_of_a_reshape() -> None:
    found = partitioned(lambda a: torch.tanh(a.reshape(2, 4, 32)), {"a": (8, 32)}, {}, {"a": "x _"}, X8)
    assert found.out == ("x:(1)2", "x:(2)4", "_") and not found.forward
    assert found.program.stages[0].mesh.shape == (2, 4)


def test_softmax_of_cut_rows_is_two_small_all_reduces() -> None:
    found = partitioned(lambda a: torch.softmax(a, -1), {"a": (16, 32)}, {}, {"a": "x y"})
    assert found.out == ("x", "y") and [n for (kind, _), n in found.forward.items() if kind == "stat"] == [2]


def test_a_sum_over_a_cut_dim() -> None:
    found = partitioned(lambda a: a.sum(0), {"a": (16, 32)}, {}, {"a": "x y"})
    assert found.out == ("y",) and found.forward == {("all_reduce", (8,)): 1}


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("x _", "_ x", {"all_to_all": 1}),
        ("x _", "_ _", {"all_gather": 1}),
        ("_ _", "x _", {}),
        ("x+y _", "y+x _", {"all_gather": 2}),  # the reference permutes; lowering has no permutation, and gathers
    ],
)
def test_a_change_of_layout(before: str, after: str, wanted: dict[str, int]) -> None:
    found = partitioned(torch.tanh, {"a": (16, 32)}, {}, {"a": before, "out": after})
    kinds: Counter[str] = Counter()
    for (kind, _), n in found.forward.items():
        kinds[kind] += n
    assert kinds == wanted


def conv(a: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(a, w, padding=1)


@pytest.mark.parametrize(
    ("given", "rest", "halos"),
    [
        ({"a": "_ _ x _"}, ("_", "_", "x", "_"), {("halo", (1, 1)): 1}),  # rows of both neighbours at once
        ({"a": "x _ _ _"}, ("x", "_", "_", "_"), {}),
        ({"w": "x _ _ _"}, ("_", "x", "_", "_"), {}),
    ],
)
def test_a_convolution(
    given: dict[str, str], rest: tuple[str, ...], halos: dict[tuple[str, tuple[int, ...]], int]
) -> None:
    found = partitioned(conv, {"a": (8, 8, 32, 32)}, {"w": (8, 8, 3, 3)}, given, X8)
    assert found.out == rest and found.forward == halos


def test_a_pool() -> None:
    found = partitioned(
        lambda a: F.max_pool2d(a, 3, stride=1, padding=1), {"a": (4, 8, 32, 32)}, {}, {"a": "_ _ x _"}, X8
    )
    assert found.out == ("_", "_", "x", "_") and found.forward == {("halo", (1, 1)): 1}


def test_a_shift_passes_rows_to_one_neighbour() -> None:
    found = partitioned(lambda a: torch.roll(a, 1, 1), {"a": (4, 32, 8)}, {}, {"a": "_ x _"}, X8)
    assert found.out == ("_", "x", "_") and found.forward == {("halo", (1, 0)): 1}


def test_a_pipeline_is_a_shift_a_tick() -> None:
    """Section 3.3 of GSPMD: eight stages stacked on a dim that is cut, whose states move on by one at every tick."""
    stages, ticks = 8, 11

    def pipeline(a: Tensor, first: Tensor, state: Tensor, weight: Tensor) -> Tensor:
        """a [ticks, 4, 16], first [stages, 1, 1], state [stages, 4, 16]"""
        for t in range(ticks):
            state = torch.where(first > 0, a[t], torch.roll(state, 1, 0))
            state = torch.tanh(state @ weight)
        return state

    shapes = {"a": (ticks, 4, 16), "first": (stages, 1, 1), "state": (stages, 4, 16)}
    found = partitioned(pipeline, shapes, {"weight": (stages, 16, 16)}, {"state": "x _ _", "weight": "x _ _"}, X8)
    assert found.out == ("x", "_", "_") and found.forward == {("halo", (1, 0)): ticks}


def test_experts_are_two_all_to_alls() -> None:
    def layer(x: Tensor, mask: Tensor, wi: Tensor, wo: Tensor) -> Tensor:
        sent = torch.einsum("gsec,gsm->egcm", mask, x)
        hidden = torch.relu(torch.einsum("egcm,emh->egch", sent, wi))
        back = torch.einsum("egch,ehm->egcm", hidden, wo)
        return torch.einsum("gsec,egcm->gsm", mask, back)

    found = partitioned(
        layer, {"x": (8, 16, 32), "mask": (8, 16, 8, 4)}, {"wi": (8, 32, 64), "wo": (8, 64, 32)},
        {"x": "x _ _", "wi": "x _ _", "wo": "x _ _"}, X8,
    )  # fmt: skip
    assert found.out == ("x", "_", "_")
    assert sorted(kind for kind, _ in found.forward.elements()) == ["all_to_all", "all_to_all"]


def layer(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bsm,mhd->bhsd", x, w) for w in (wq, wk, wv))
    seen = torch.softmax(torch.einsum("bhsd,bhtd->bhst", q, k), -1)
    x = x + torch.einsum("bhst,bhtd,hdm->bsm", seen, v, wo)
    return x + torch.relu(x @ w1) @ w2


LAYER = {"wq": (32, 4, 8), "wk": (32, 4, 8), "wv": (32, 4, 8), "wo": (4, 8, 32), "w1": (32, 128), "w2": (128, 32)}
HEADS = {"wq": "_ y _", "wk": "_ y _", "wv": "_ y _", "wo": "y _ _"}


def test_megatrons_layer_is_two_all_reduces() -> None:
    given = {"x": "x _ _", **HEADS, "w1": "_ y", "w2": "y _"}
    found = partitioned(layer, {"x": (8, 16, 32)}, LAYER, given)
    assert found.out == ("x", "_", "_") and found.forward == {("all_reduce", (4, 16, 32)): 2}


def test_of_two_hints_the_second_weight_follows_and_attention_stays_whole() -> None:
    found = partitioned(layer, {"x": (8, 16, 32)}, LAYER, {"x": "x _ _", "w1": "_ y"})
    assert found.out == ("x", "_", "_") and found.forward == {("all_reduce", (4, 16, 32)): 1}
    (w2,) = [p for p in found.program.stages[0].params if p.name == "w2"]
    assert [[c.axis for c in cuts] for dim in w2.rest.dims for _, cuts in dim] == [["y"], []]


def test_fsdp_gathers_six_weights() -> None:
    given = {"x": "x _ _", **{w: "x" + " _" * (len(shape) - 1) for w, shape in LAYER.items()}, "wo": "_ _ x"}
    found = partitioned(layer, {"x": (8, 16, 32)}, LAYER, given, X8)
    assert found.out == ("x", "_", "_")
    kinds = Counter(kind for kind, _ in found.forward.elements())
    assert kinds == {"all_gather": 6}
    assert {shape for _, shape in found.forward} == set(LAYER.values())


def test_2d_finalized_gathers_weights_over_x_and_activations_over_y() -> None:
    given = {"x": "x _ y", "wq": "x y _", "wk": "x y _", "wv": "x y _", "wo": "y _ x", "w1": "x y", "w2": "y x"}
    found = partitioned(layer, {"x": (8, 16, 32)}, LAYER, given | {"out": "x _ y"})
    assert found.out == ("x", "_", "y")
    activations = {key: n for key, n in found.forward.items() if key[1][:2] == (4, 16)}
    # The reference all-reduces [4, 16, 32] and slices; a reduce-scatter leaves the slice at half the traffic.
    assert activations == {("all_gather", (4, 16, 32)): 2, ("reduce_scatter", (4, 16, 8)): 2}
    assert sum(n for (kind, shape), n in found.forward.items() if shape[:2] != (4, 16) and kind == "all_gather") == 6


def test_data_parallel_gradients_are_summed_once_a_step() -> None:
    found = partitioned(mlp, {"x": (64, 32)}, {"a": (32, 128), "b": (128, 32)}, {"x": "x _", "a": "_ _", "b": "_ _"})
    sums = [i for i in found.program.stages[0].update if i.communicates]
    assert not found.forward and [(i.collective, i.axes) for i in sums] == [("all_reduce", ("x",))] * 2


def test_a_cut_vocabulary_is_looked_up_in_parts() -> None:
    found = partitioned(
        lambda ids, t: F.embedding(ids, t), {"ids": (16,)}, {"t": (64, 32)}, {"ids": "x", "t": "y _"},
        integers=("ids",),
    )  # fmt: skip
    assert found.out == ("x", "_") and found.forward == {("all_reduce", (8, 32)): 1}


def test_a_bias_alone_cuts_an_activation_and_beside_others_follows_it() -> None:
    bias = partitioned(torch.add, {"a": (16, 32)}, {"b": (32,)}, {"b": "y"})
    assert bias.out == ("_", "y") and not bias.forward
    both = partitioned(torch.add, {"a": (16, 32)}, {"b": (32,)}, {"a": "y _", "b": "_"})
    assert both.out == ("y", "_") and not both.forward


def test_what_is_annotated_whole_moves_nothing() -> None:
    given = {"x": "_ _ _", **{w: " ".join("_" * len(shape)) for w, shape in LAYER.items()}, "out": "_ _ _"}
    found = partitioned(layer, {"x": (8, 16, 32)}, LAYER, given)
    assert not found.forward and found.out == ("_", "_", "_")
