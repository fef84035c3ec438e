"""Descriptions: what intervals find about operators written by hand, and that factor rules say the same."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest

from meshwright.graph.ir import Arg, Op, Slot
from meshwright.graph.kinds import Call, Spec, kind_of
from meshwright.planners._tofu_tdl import (
    ALL,
    Description,
    Opaque,
    Operand,
    Reduce,
    extents_of,
    halves,
    is_elementwise,
    of_op,
)
from meshwright.solvers.regions import var

A, B = Operand(0), Operand(1)
b, co, x, ci, dx, i, j, k, m, n = (var(name) for name in ["b", "co", "x", "ci", "dx", "i", "j", "k", "m", "n"])
S0, S1 = Slot(0), Slot(1)


def total(over: str, body: object) -> Reduce:
    return Reduce("Sum", tuple(over.split()), body)  # type: ignore[arg-type]


CONV1D = Description(("b", "co", "x"), total("ci dx", A[b, ci, x + dx] * B[ci, co, dx]))
EXTENTS = {"b": 4, "co": 6, "x": 8, "ci": 2, "dx": 4}
SHAPES = {0: (4, 2, 11), 1: (2, 6, 4)}


def test_conv1d_as_in_the_paper() -> None:
    assert CONV1D.cuts() == {"b": "output", "co": "output", "x": "output", "ci": "Sum", "dx": "Sum"}
    first = {name: CONV1D.regions(next(halves(name)), EXTENTS, SHAPES) for name in CONV1D.cuts()}
    whole_data, whole_weight = ((0, 4), (0, 2), (0, 11)), ((0, 2), (0, 6), (0, 4))
    assert first["b"] == {0: ((0, 2), (0, 2), (0, 11)), 1: whole_weight}
    assert first["co"] == {0: whole_data, 1: ((0, 2), (0, 3), (0, 4))}
    assert first["x"] == {0: ((0, 4), (0, 2), (0, 7)), 1: whole_weight}  # a halo of dx − 1
    assert first["ci"] == {0: ((0, 4), (0, 1), (0, 11)), 1: ((0, 1), (0, 6), (0, 4))}
    assert first["dx"] == {0: ((0, 4), (0, 2), (0, 9)), 1: ((0, 2), (0, 6), (0, 2))}
    _, second = (CONV1D.regions(ends, EXTENTS, SHAPES) for ends in halves("dx"))
    assert second[0] == ((0, 4), (0, 2), (2, 11))  # shifted


def test_three_parts() -> None:
    parts = [CONV1D.regions(ends, EXTENTS, SHAPES)[1][1] for ends in halves("co", 3)]
    assert parts == [(0, 2), (2, 4), (4, 6)]


def test_opaque_functions_are_cut_along_the_indices_outside_of_them() -> None:
    """Batched Cholesky: whole matrices."""
    cholesky = Description(("b", "i", "j"), Opaque((A[b, ALL, ALL],), hidden=("i", "j")))
    assert cholesky.cuts() == {"b": "output"}
    assert cholesky.regions(next(halves("b")), {"b": 4, "i": 3, "j": 3}, {0: (4, 3, 3)}) == {
        0: ((0, 2), (0, 3), (0, 3))
    }


def test_a_reduction_inside_of_an_element_is_no_strategy() -> None:
    """Softmax: every element needs its whole row, and halves of a sum of exponentials are no halves of the result."""
    softmax = Description(("i", "j"), A[i, j] / total("k", A[i, k]))
    assert softmax.cuts() == {"i": "output", "j": "output"}
    assert softmax.regions(next(halves("j")), {"i": 4, "j": 6, "k": 6}, {0: (4, 6)}) == {0: ((0, 4), (0, 6))}


def op(kind: str, args: tuple[Arg, ...], operands: list[tuple[int, ...]], *results: tuple[int, ...]) -> Op:
    row = kind_of(kind)
    assert row is not None
    made = Call(kind, args, (), tuple(map(Spec, operands)), tuple(map(Spec, results)), (True,) * len(operands))
    names = tuple(f"in{k}" for k in range(len(operands)))
    return Op(kind, kind, names, tuple(f"out{k}" for k in range(len(results))), row.rule(made))


def agree(made: Op, by_hand: Description, names: dict[str, str], shapes: list[tuple[int, ...]], **more: int) -> None:
    """Both ways are cut alike and read the same regions. `names`: factor -> index of the description by hand."""
    derived, given = of_op(made), dict(enumerate(shapes))
    sizes = {f.name: f.size for f in made.rule.factors}
    extents = {names[name]: sizes[name] for name in names} | more
    ways = {names[name]: kind for name, kind in derived.cuts().items()}
    assert ways == {name: kind for name, kind in by_hand.cuts().items() if name in names.values()}
    for name in derived.cuts():
        if sizes[name] % 2 == 0:
            for ends in halves(name):
                other = {names[name]: ends[name]}
                mine = derived.regions(ends, extents_of(made), given)
                assert mine == by_hand.regions(other, extents, given), (made.kind, name)


def test_products() -> None:
    matmul = Description(("i", "j"), total("k", A[i, k] * B[k, j]))
    agree(op("mm", (S0, S1), [(8, 4), (4, 6)], (8, 6)), matmul, {"m": "i", "n": "j", "k": "k"}, [(8, 4), (4, 6)])
    linear = Description(("i", "j"), total("k", A[i, k] * B[j, k]))
    agree(op("linear", (S0, S1), [(8, 4), (6, 4)], (8, 6)), linear, {"m": "i", "n": "j", "k": "k"}, [(8, 4), (6, 4)])
    batched = Description(("b", "i", "j"), total("k", A[b, i, k] * B[b, k, j]))
    agree(
        op("bmm", (S0, S1), [(2, 8, 4), (2, 4, 6)], (2, 8, 6)), batched,
        {"batch": "b", "m": "i", "n": "j", "k": "k"}, [(2, 8, 4), (2, 4, 6)],
    )  # fmt: skip


def test_sums_scans_and_moved_elements() -> None:
    rows = Description(("i",), total("j", A[i, j]))
    agree(op("sum", (S0, (1,)), [(8, 6)], (8,)), rows, {"d0": "i", "d1": "j"}, [(8, 6)])
    turned = Description(("j", "i"), A[i, j])
    agree(op("transpose", (S0, 0, 1), [(8, 6)], (6, 8)), turned, {"d0": "i", "d1": "j"}, [(8, 6)])
    added = Description(("i", "j"), A[i, j] + B[j,])
    agree(op("add", (S0, S1), [(8, 6), (6,)], (8, 6)), added, {"d0": "i", "d1": "j"}, [(8, 6), (6,)])
    scan = Description(("i", "j"), Opaque((A[i, ALL],), hidden=("j",)))
    agree(op("cumsum", (S0, 1), [(8, 6)], (8, 6)), scan, {"d0": "i", "d1": "j"}, [(8, 6)])
    softmax = Description(("i", "j"), A[i, j] / total("k", A[i, k]))
    agree(op("softmax", (S0, -1), [(8, 6)], (8, 6)), softmax, {"d0": "i", "d1": "j"}, [(8, 6)], k=6)


def windows() -> list[tuple[int, int, int, int, int]]:
    """(kernel, dilation, stride, padding, out): all that keep source = out · stride and skip no rows."""
    return [
        (kernel, dilation, stride, padding, out)
        for kernel, dilation, stride, out in product((1, 2, 3, 5), (1, 2), (1, 2, 4), (4, 8, 12))
        for reach in (dilation * (kernel - 1),)
        if stride <= reach + 1  # a longer stride skips rows, which the factor rule counts with the window before them
        for padding in range(reach + 1)
        if (out * stride + 2 * padding - reach - 1) // stride + 1 == out
        if reach - padding
        >= stride - 1  # else nobody reads the last rows of a part, which the factor rule counts with it
    ]


@pytest.mark.parametrize("window", windows(), ids=str)
def test_windows(window: tuple[int, int, int, int, int]) -> None:
    """Kernels, dilations, strides and paddings, wherever the factor rule lets the dim be cut."""
    kernel, dilation, stride, padding, out = window
    source = out * stride
    conv = op(
        "conv1d", (S0, S1, None, (stride,), (padding,), (dilation,), 1), [(4, 2, source), (6, 2, kernel)], (4, 6, out)
    )
    by_hand = Description(
        ("b", "co", "x"), total("ci dx", A[b, ci, x * stride + dx * dilation - padding] * B[co, ci, dx])
    )
    names = {"batch": "b", "out": "co", "in": "ci", "s0": "x"}
    agree(conv, by_hand, names, [(4, 2, source), (6, 2, kernel)], dx=kernel)


def test_elementwise_ops_are_found() -> None:
    add = of_op(op("add", (S0, S1), [(8, 6), (6,)], (8, 6)))
    assert is_elementwise(add, 0) and not is_elementwise(add, 1)
    assert not is_elementwise(of_op(op("softmax", (S0, -1), [(8, 6)], (8, 6))), 0)
    assert not is_elementwise(of_op(op("transpose", (S0, 0, 1), [(6, 6)], (6, 6))), 0)
    assert not is_elementwise(of_op(op("cumsum", (S0, 1), [(8, 6)], (8, 6))), 0)


def test_every_kind_of_part_is_whole_together() -> None:
    """Parts of an output index together read all that the op reads."""
    conv = op("conv1d", (S0, S1, None, (1,), (1,), (1,), 1), [(4, 2, 8), (6, 2, 3)], (4, 6, 8))
    parts = [of_op(conv).regions(ends, extents_of(conv), {0: (4, 2, 8), 1: (6, 2, 3)})[0][2] for ends in halves("s0")]
    assert parts == [(0, 5), (3, 8)]
    assert Fraction(1, 2) == next(halves("s0"))["s0"][1]
