"""Rules mean what they say: an op on the parts of its operands gives the parts of its results, or summands of them."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.graph._values import is_view
from meshwright.graph.ir import Arg, Dims, Rule, Slot
from meshwright.graph.kinds import KINDS, Call, Spec, kind_of
from meshwright.graph.kinds.space import Space, regroup
from meshwright.graph.replay import callable_of

S0, S1, S2, S3 = (Slot(i) for i in range(4))


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + 1), dtype=torch.float64)


def whole(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(sum(shape) + 1))


def part_of(tensor: torch.Tensor, dims: Dims, rule: Rule, factor: str, index: int, parts: int) -> torch.Tensor:
    """Part `index` of `parts` along one factor; the tensor itself if it does not have the factor."""
    sizes = {f.name: f.size for f in rule.factors}
    flat = [name for dim in dims for name in dim]
    if factor not in flat:
        return tensor
    place, step = flat.index(factor), sizes[factor] // parts
    split = tensor.reshape([sizes[name] for name in flat]).narrow(place, index * step, step)
    local = {**sizes, factor: step}
    return split.reshape([prod(local[name] for name in dim) for dim in dims])


def execute(call: str, args: tuple[Arg, ...], operands: list[torch.Tensor]) -> list[torch.Tensor]:
    def fill(value: Any) -> Any:
        if isinstance(value, Slot):
            return operands[value.index]
        return [fill(v) for v in value] if isinstance(value, tuple) else value

    result = callable_of(call)(*(fill(a) for a in args))
    return list(result) if isinstance(result, (list, tuple)) else [result]


def rule_of(call: str, args: tuple[Arg, ...], operands: list[torch.Tensor], results: list[torch.Tensor]) -> Rule:
    kind = call.split(".")[1]
    row = kind_of(kind)
    assert row is not None, kind
    specs = [tuple(Spec(tuple(t.shape), str(t.dtype)[6:]) for t in ts) for ts in (operands, results)]
    return row.rule(Call(kind, args, (), specs[0], specs[1]))


Case = tuple[str, tuple[Arg, ...], list[torch.Tensor], set[str]]
"""Operator, arguments, operands, and the factors that must be free (or statistics)."""
CASES: list[Case] = [
    ("aten.mul.Tensor", (S0, S1), [numbers(4, 1, 6), numbers(2, 6)], {"d0", "d1", "d2"}),
    ("aten.where.self", (S0, S1, S2), [whole(2, 4, 6).bool(), numbers(4, 6), numbers(6)], {"d0", "d1"}),
    ("aten.masked_fill.Scalar", (S0, S1, 0.0), [numbers(4, 6), whole(2, 4, 1).bool()], {"d0", "d1"}),
    ("aten.prelu.default", (S0, S1), [numbers(4, 6, 2), numbers(6)], {"d0", "d1", "d2"}),
    ("aten.glu.default", (S0, 1), [numbers(4, 8)], {"d0", "d1"}),
    ("aten.transpose.int", (S0, 0, -1), [numbers(2, 4, 6)], {"d0", "d1", "d2"}),
    ("aten.permute.default", (S0, (2, 0, 1)), [numbers(2, 4, 6)], {"d0", "d1", "d2"}),
    ("aten.movedim.intlist", (S0, (0,), (2,)), [numbers(2, 4, 6)], {"d0", "d1", "d2"}),
    ("aten.t.default", (S0,), [numbers(4, 6)], {"d0", "d1"}),
    ("aten.squeeze.dim", (S0, 1), [numbers(2, 1, 6)], {"d0", "d1"}),
    ("aten.slice.Tensor", (S0, 1, 1, 5), [numbers(4, 6)], {"d0"}),
    ("aten.select.int", (S0, 1, 2), [numbers(4, 6, 2)], {"d0", "d2"}),
    ("aten.pad.default", (S0, (1, 2), "constant", 0.0), [numbers(4, 6)], {"d0"}),
    ("aten.roll.default", (S0, (1,), (1,)), [numbers(4, 6)], {"d0"}),
    ("aten.flip.default", (S0, (0,)), [numbers(4, 6)], {"d1"}),
    ("aten.tril.default", (S0,), [numbers(2, 4, 4)], {"d0"}),
    ("aten.diagonal.default", (S0, 0, 1, 2), [numbers(2, 4, 4)], {"d0"}),
    ("aten.unfold.default", (S0, 1, 2, 2), [numbers(2, 4)], {"d0"}),
    ("aten.diff.default", (S0,), [numbers(4, 6)], {"d0"}),
    ("aten.cat.default", ((S0, S1), 1), [numbers(4, 6), numbers(4, 6)], {"d0", "part"}),
    ("aten.cat.default", ((S0, S1), 0), [numbers(4, 6), numbers(2, 6)], {"d1"}),
    ("aten.stack.default", ((S0, S1), 1), [numbers(4, 6), numbers(4, 6)], {"d0", "d2"}),
    ("aten.split.Tensor", (S0, 4, 1), [numbers(4, 6)], {"d0"}),
    ("aten.chunk.default", (S0, 3, 1), [numbers(4, 6)], {"d0", "part"}),
    ("aten.unbind.int", (S0, 0), [numbers(2, 6)], {"d1"}),
    ("aten.slice_scatter.default", (S0, S1, 1, 1, 3), [numbers(4, 6), numbers(4, 2)], {"d0"}),
    ("aten.select_scatter.default", (S0, S1, 1, 1), [numbers(4, 6), numbers(4)], {"d0"}),
    ("aten.meshgrid.default", ((S0, S1),), [numbers(4), numbers(6)], {"d0", "d1"}),
    ("aten.linear.default", (S0, S1), [numbers(2, 4, 6), numbers(8, 6)], {"m0", "m1", "n", "k"}),
    ("aten.matmul.default", (S0, S1), [numbers(2, 1, 4, 6), numbers(2, 6, 8)], {"batch0", "batch1", "m", "n", "k"}),
    ("aten.matmul.default", (S0, S1), [numbers(4, 6), numbers(6)], {"m", "k"}),
    ("aten.matmul.default", (S0, S1), [numbers(6), numbers(2, 6, 4)], {"batch", "n", "k"}),
    ("aten.bmm.default", (S0, S1), [numbers(2, 4, 6), numbers(2, 6, 8)], {"batch", "m", "n", "k"}),
    ("aten.addmm.default", (S0, S1, S2), [numbers(8), numbers(4, 6), numbers(6, 8)], {"m", "n"}),
    ("aten.einsum.default", ("bsd,hdk->bhsk", (S0, S1)), [numbers(2, 4, 6), numbers(2, 6, 8)], set("bsdhk")),
    ("aten.einsum.default", ("...d,dk", (S0, S1)), [numbers(2, 4, 6), numbers(6, 8)], {"batch0", "batch1", "d", "k"}),
    ("aten.bilinear.default", (S0, S1, S2), [numbers(4, 6), numbers(4, 2), numbers(8, 6, 2)], {"m", "n", "a", "b"}),
    ("aten.outer.default", (S0, S1), [numbers(4), numbers(6)], {"m", "n"}),
    ("aten.cdist.default", (S0, S1), [numbers(2, 4, 3), numbers(2, 6, 3)], {"batch0", "m", "n"}),
    ("aten.cosine_similarity.default", (S0, S1, 1), [numbers(4, 6, 2), numbers(6, 2)], {"d0", "d2"}),
    ("aten._weight_norm.default", (S0, S1, 0), [numbers(4, 6), numbers(4, 1)], {"d0"}),
    ("aten.view_as_complex.default", (S0,), [numbers(4, 6, 2)], {"d0", "d1"}),
    ("aten.layer_norm.default", (S0, (6,), S1, S2), [numbers(2, 4, 6), numbers(6), numbers(6)], {"d0", "d1"}),
    ("aten.rms_norm.default", (S0, (6,), S1), [numbers(2, 4, 6), numbers(6)], {"d0", "d1"}),
    ("aten.group_norm.default", (S0, 2), [numbers(4, 6, 2)], {"batch", "groups"}),
    ("aten.batch_norm.default", (S0, S1, None, None, None, True, 0.1, 1e-5, False), [numbers(4, 6, 2), numbers(6)], {"channels"}),
    ("aten.softmax.int", (S0, 1), [numbers(2, 4, 6)], {"d0", "d2"}),
    ("aten.sum.dim_IntList", (S0, (1,)), [numbers(4, 6, 2)], {"d0", "d1", "d2"}),
    ("aten.sum.default", (S0,), [numbers(4, 6)], {"d0", "d1"}),
    ("aten.amax.default", (S0, (1,), True), [numbers(4, 6)], {"d0"}),
    ("aten.max.dim", (S0, 1), [numbers(4, 6)], {"d0"}),
    ("aten.max.other", (S0, S1), [numbers(4, 6), numbers(6)], {"d0", "d1"}),
    ("aten.linalg_vector_norm.default", (S0, 2, (1,), True), [numbers(4, 6)], {"d0"}),
    ("aten.argmax.default", (S0, 0), [numbers(4, 6)], {"d1"}),
    ("aten.cumsum.default", (S0, 1), [numbers(4, 6)], {"d0"}),
    ("aten.topk.default", (S0, 2, 0), [numbers(4, 6)], {"d1"}),
    ("aten.sort.default", (S0, 0), [numbers(4, 6)], {"d1"}),
    ("aten.embedding.default", (S0, S1), [numbers(8, 6), whole(8, 2, 4)], {"width", "ids0", "ids1"}),
    ("aten.index.Tensor", (S0, (None, S1, S2)), [numbers(4, 6, 8, 2), whole(6, 4), whole(8, 2, 4)], {"d0", "d3", "index0", "index1"}),
    ("aten.index.Tensor", (S0, (S1, None, S2)), [numbers(4, 6, 8), whole(4, 2), whole(8, 2)], {"d1", "index"}),
    ("aten.index.Tensor", (S0, (S1,)), [numbers(4, 6), whole(4, 2, 4)], {"d1", "index0", "index1"}),
    ("aten.index_select.default", (S0, 1, S1), [numbers(4, 6), whole(6, 8)], {"d0", "index"}),
    ("aten.gather.default", (S0, 1, S1), [numbers(4, 6), whole(6, 4, 2)], {"index0", "index1"}),
    ("aten.scatter.src", (S0, 1, S1, S2), [numbers(4, 6), whole(1, 4, 1), numbers(4, 1)], {"d0"}),
    ("aten.scatter_add.default", (S0, 1, S1, S2), [numbers(4, 6), whole(6, 4, 8), numbers(4, 8)], {"d0"}),
    ("aten.index_add.default", (S0, 0, S1, S2), [numbers(4, 6), whole(4, 8), numbers(8, 6)], {"d1"}),
    ("aten.index_put.default", (S0, (S1,), S2), [numbers(4, 6, 2), torch.tensor([0, 3]), numbers(2, 6, 2)], {"d1", "d2"}),
    ("aten.one_hot.default", (S0, 5), [torch.tensor([[0, 4], [1, 2]])], {"ids0", "ids1"}),
    ("aten.cross_entropy_loss.default", (S0, S1, None, 2), [numbers(4, 6), whole(6, 4)], {"tokens"}),
    ("aten.cross_entropy_loss.default", (S0, S1, None, 0), [numbers(4, 6, 2), whole(6, 4, 2)], {"tokens", "s0"}),
    ("aten.cross_entropy_loss.default", (S0, S1, S2, 2), [numbers(4, 6), whole(6, 4), numbers(6)], {"tokens"}),
    ("aten.mse_loss.default", (S0, S1, 2), [numbers(4, 6), numbers(4, 6)], {"d0", "d1"}),
    ("aten.conv2d.default", (S0, S1), [numbers(2, 4, 6, 6), numbers(8, 4, 3, 3)], {"batch", "out", "in"}),
    ("aten.conv2d.default", (S0, S1, None, (2, 2)), [numbers(2, 4, 8, 4), numbers(6, 4, 2, 2)], {"batch", "out", "in", "s0", "s1"}),
    ("aten.conv2d.default", (S0, S1, None, (1, 1), (0, 0), (1, 1), 4), [numbers(2, 8, 1, 1), numbers(8, 2, 1, 1)], {"batch", "groups", "out", "in"}),
    ("aten.conv1d.default", (S0, S1), [numbers(2, 4, 6), numbers(8, 4, 1)], {"batch", "out", "in", "s0"}),
    ("aten.conv_transpose2d.input", (S0, S1, None, (2, 2)), [numbers(2, 4, 4, 2), numbers(4, 6, 2, 2)], {"batch", "out", "in", "s0", "s1"}),
    ("aten.max_pool2d.default", (S0, (2, 2), (2, 2)), [numbers(2, 4, 8, 4)], {"c0", "c1", "s0", "s1"}),
    ("aten.avg_pool2d.default", (S0, (3, 3), (2, 2)), [numbers(2, 4, 7, 7)], {"c0", "c1"}),
    ("aten.adaptive_avg_pool2d.default", (S0, (1, 1)), [numbers(2, 4, 6, 6)], {"c0", "c1"}),
    ("aten.upsample_nearest2d.vec", (S0, (4, 4), None), [numbers(2, 4, 2, 2)], {"c0", "c1"}),
    ("aten.pixel_shuffle.default", (S0, 2), [numbers(2, 8, 2, 4)], {"batch0", "channels", "height", "width"}),
    ("aten.im2col.default", (S0, (2, 2), (1, 1), (0, 0), (1, 1)), [numbers(2, 4, 3, 3)], {"batch", "channels"}),
]  # fmt: skip


COUNTS = {("aten.group_norm.default", "groups"): 1, ("aten.conv2d.default", "groups"): 6}
"""Arguments that count a factor: a part has fewer."""


def on_part(call: str, args: tuple[Arg, ...], factor: str, parts: int) -> tuple[Arg, ...]:
    place = COUNTS.get((call, factor))
    return tuple(a // parts if i == place and isinstance(a, int) else a for i, a in enumerate(args))


@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_op_on_parts_gives_parts_or_summands(case: Case) -> None:
    call, args, operands, wanted = case
    results = execute(call, args, operands)
    rule = rule_of(call, args, operands, results)
    free = {f.name for f in rule.factors if f.kind == "free"}
    assert free == wanted or (call == "aten.embedding.default" and free == wanted | {"vocabulary"})
    for name in sorted(wanted):
        parts = 2
        pieces = [
            execute(
                call,
                on_part(call, args, name, parts),
                [part_of(t, d, rule, name, i, parts) for t, d in zip(operands, rule.operands, strict=True)],
            )
            for i in range(parts)
        ]
        for j, (result, dims) in enumerate(zip(results, rule.results, strict=True)):
            if any(name in dim for dim in dims):
                for i in range(parts):
                    torch.testing.assert_close(pieces[i][j], part_of(result, dims, rule, name, i, parts))
            else:
                torch.testing.assert_close(sum(piece[j] for piece in pieces), result)


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True)])
def test_attention_on_parts_gives_parts(causal: bool, masked: bool) -> None:
    """torch takes a mask or the causal flag, not both."""
    q, k, v = numbers(2, 8, 4, 6), numbers(2, 4, 6, 6), numbers(2, 4, 6, 2)
    mask = [numbers(2, 1, 4, 6)] if masked else []
    args: tuple[Arg, ...] = (S0, S1, S2, S3 if masked else None, 0.0, causal, None, True)

    def run(operands: list[torch.Tensor]) -> torch.Tensor:
        mask = operands[3] if len(operands) > 3 else None
        return torch.nn.functional.scaled_dot_product_attention(
            *operands[:3], attn_mask=mask, is_causal=causal, enable_gqa=True
        )

    operands = [q, k, v, *mask]
    result = run(operands)
    rule = rule_of("aten.scaled_dot_product_attention.default", args, operands, [result])
    free = {f.name for f in rule.factors if f.kind == "free"}
    assert free == {"batch", "heads", "group", "queries"}
    for name in free - ({"queries"} if causal else set()):  # some causal queries need their place: tests/execute
        for i in range(2):
            piece = run([part_of(t, d, rule, name, i, 2) for t, d in zip(operands, rule.operands)])
            torch.testing.assert_close(piece, part_of(result, rule.results[0], rule, name, i, 2))


def test_cut_vocabulary_gives_summands_where_other_ids_give_zeros() -> None:
    weight, ids = numbers(8, 6), whole(8, 2, 4)
    rule = rule_of("aten.embedding.default", (S0, S1), [weight, ids], [weight[ids]])
    assert rule.summed() == {"vocabulary"}
    total = torch.zeros(2, 4, 6, dtype=torch.float64)
    for i in range(2):
        own = (ids >= 4 * i) & (ids < 4 * i + 4)
        total += part_of(weight, rule.operands[0], rule, "vocabulary", i, 2)[(ids - 4 * i) * own] * own[..., None]
    torch.testing.assert_close(total, weight[ids])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_batch_is_free(cell: str) -> None:
    layer = (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(6, 4, 2, batch_first=True).double()
    x, zero = numbers(4, 3, 6), torch.zeros(2, 4, 4, dtype=torch.float64)
    hidden = [zero, zero] if cell == "lstm" else [zero]
    weights = [p.detach() for p in layer.parameters()]
    states: Arg = tuple(Slot(1 + i) for i in range(len(hidden))) if cell == "lstm" else S1
    names = tuple(Slot(1 + len(hidden) + i) for i in range(len(weights)))
    args: tuple[Arg, ...] = (S0, states, names, True, 2, 0.0, False, False, True)
    operands = [x, *hidden, *weights]
    results = execute(f"aten.{cell}.input", args, operands)
    rule = rule_of(f"aten.{cell}.input", args, operands, results)
    assert [f.name for f in rule.factors if f.kind == "free"] == ["batch"]
    for i in range(2):
        pieces = execute(
            f"aten.{cell}.input", args, [part_of(t, d, rule, "batch", i, 2) for t, d in zip(operands, rule.operands)]
        )
        for piece, result, dims in zip(pieces, results, rule.results):
            torch.testing.assert_close(piece, part_of(result, dims, rule, "batch", i, 2))


def test_halo_says_which_neighbours_a_part_of_a_convolution_needs() -> None:
    x, w = numbers(1, 2, 8), numbers(3, 2, 4)
    args: tuple[Arg, ...] = (S0, S1, None, (1,), "same")
    result = torch.nn.functional.conv1d(x, w, padding="same")
    rule = rule_of("aten.conv1d.padding", args, [x, w], [result])
    low, high = rule.factor("s0").halo
    assert rule.factor("s0").kind == "halo" and (low, high) == (1, 2)
    padded = torch.nn.functional.pad(x, (low, high))
    for start in (0, 4):
        piece = torch.nn.functional.conv1d(padded[..., start : start + 4 + low + high], w)
        torch.testing.assert_close(piece, result[..., start : start + 4])


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same number of elements: one bag of primes, grouped in two ways."""
    primes = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6))

    def shape() -> tuple[int, ...]:
        order = draw(st.permutations(primes)) if draw(st.booleans()) else primes
        dims, cuts = [1], draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
        for prime, cut in zip(order, cuts):
            if cut:
                dims.append(1)
            dims[-1] *= prime
        return tuple(dims)

    return shape(), shape()


@settings(max_examples=300, deadline=None)
@given(reshapes())
def test_reshape_of_parts_is_part_of_the_reshape(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    before, after = shapes
    space = Space()
    left, right = regroup(space, before, after)
    rule = space.rule([left], [right])
    for dims, shape in ((rule.operands[0], before), (rule.results[0], after)):
        sizes = {f.name: f.size for f in rule.factors}
        assert tuple(prod(sizes[n] for n in dim) for dim in dims) == shape
    x = torch.arange(prod(before)).reshape(before)
    for factor in rule.factors:
        if factor.kind != "free":
            continue
        for i in range(factor.size):
            local = part_of(x, rule.operands[0], rule, factor.name, i, factor.size)
            expected = part_of(x.reshape(after), rule.results[0], rule, factor.name, i, factor.size)
            assert torch.equal(local.reshape(expected.shape), expected)


@settings(max_examples=300, deadline=None)
@given(reshapes(), st.randoms(use_true_random=False))
def test_views_are_told_from_copies_as_torch_does(shapes: tuple[tuple[int, ...], tuple[int, ...]], random: Any) -> None:
    before, after = shapes
    order = list(range(len(before)))
    random.shuffle(order)
    x = torch.empty([before[d] for d in order]).permute([order.index(d) for d in range(len(before))])
    try:
        x.view(after)
        possible = True
    except RuntimeError:
        possible = False
    assert is_view(tuple(x.shape), x.stride(), after) == possible


def test_table_says_of_every_kind_what_planners_ask() -> None:
    assert len(KINDS) >= 90
    for name, row in KINDS.items():
        assert row.name == name
    heavy = {name for name, row in KINDS.items() if not row.light}
    assert {
        "linear",
        "bmm",
        "conv2d",
        "scaled_dot_product_attention",
        "embedding",
        "cross_entropy_loss",
        "topk",
    } <= heavy
    assert not heavy & {"add", "gelu", "view", "layer_norm", "softmax", "dropout", "transpose", "cat", "mean"}
