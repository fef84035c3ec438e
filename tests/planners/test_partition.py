"""How one op computes when its tensors disagree: the rules one by one, and what always holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshwright.planners._axes import Axes, Axis, is_prefix
from meshwright.planners._partition import computing
from meshwright.planners._propagate import Dim, FactorRole, Factors, Node, OpRole, Sharding

X, Y = Axis("x", 1, 2), Axis("y", 1, 4)
PASS: FactorRole = "pass"


def product(i: int, k: int, j: int) -> Node:
    """A[i k] B[k j] -> [i j]."""
    rule = Factors((i, k, j), (PASS, "reduction", PASS), (((0,), (1,)), ((1,), (2,))), (((0,), (2,)),))
    return Node("dot", (0, 1), (2,), rule)


def two(role: FactorRole = PASS, kind: OpRole = "elementwise", sizes: tuple[int, int] = (16, 16)) -> Node:
    """One operand, one result; `role` of the second dim."""
    dims = ((0,), (1,))
    return Node("op", (0,), (1,), Factors(sizes, (PASS, role), (dims,), (dims,)), kind)


def cut(*axes: Axes) -> Sharding:
    return Sharding(tuple(Dim(own, False) for own in axes))


def test_tensors_that_agree_stay() -> None:
    found = computing(product(8, 8, 8), [cut((X,), (Y,)), cut((Y,), ()), cut((X,), ())])
    assert found.cuts == ((X,), (Y,), ()) and found.moved == ()


def test_of_two_tensors_the_larger_and_then_the_more_sharded_stays() -> None:
    rule = Factors((16, 8), (PASS, "reduction"), (((0,), (1,)),), (((0,),),))
    reduce = Node("reduce", (0,), (1,), rule)
    assert computing(reduce, [cut((X,), ()), cut((Y,))]).cuts == ((X,), ())
    assert computing(two(), [cut((X,), ()), cut((X,), (Y,))]).cuts == ((X,), (Y,))
    assert computing(two(), [cut((X,), ()), cut((Y,), ())]).cuts == ((Y,), ())
    assert computing(two("permutation"), [cut((), (Y,)), cut((X,), ())]).cuts == ((X,), ())


def test_the_wish_with_most_elements_behind_it_is_first() -> None:
    small, large = computing(product(16, 32, 64), [cut((Y,), ()), cut((), (Y,)), cut((), (Y,))]), product(160, 32, 64)
    assert small.cuts == ((), (), (Y,)) and small.moved == (0,)
    assert computing(large, [cut((Y,), ()), cut((), (Y,)), cut((Y,), ())]).cuts == ((Y,), (), ())


def test_a_reduction_that_one_operand_wants_is_done_where_its_sums_are_small() -> None:
    assert computing(product(16, 32, 64), [cut((), (Y,)), cut((), ()), cut((), ())]).cuts == ((), (), ())
    assert computing(product(16, 320, 4), [cut((), (Y,)), cut((), ()), cut((), ())]).cuts == ((), (Y,), ())


def test_stored_weights_come_after_activations_however_large() -> None:
    node, tensors = product(4, 64, 256), [cut((X,), ()), cut((X,), ()), cut((X,), ())]
    assert computing(node, tensors).cuts == ((), (X,), ())
    assert computing(node, tensors, (False, True, False)).cuts == ((X,), (), ())
    table = [cut((), ()), cut((), (Y,)), cut((), ())]
    assert computing(node, table, (False, True, False)).cuts[2] == (Y,)  # no activation minds


def test_what_must_be_whole_moves_to_a_dim_that_all_have_if_it_fits() -> None:
    assert computing(two("replication"), [cut((), (X,)), cut((), (X,))]).cuts == ((X,), ())
    assert computing(two("replication", sizes=(15, 16)), [cut((), (X,)), cut((), (X,))]).cuts == ((), ())
    assert computing(two("blocked"), [cut((), (X,)), cut((), (X,))]).cuts == ((), ())


def test_a_minor_factor_waits_for_its_major_one() -> None:
    """[ij] -> [i, j]: j alone would be a strided part of the merged dim."""
    rule = Factors((4, 4), (PASS, PASS), (((0, 1),),), (((0,), (1,)),))
    split = Node("reshape", (0,), (1,), rule, "regroup")
    assert computing(split, [cut(()), cut((), (X,))]).cuts == ((), ())
    assert computing(split, [cut(()), cut((Y,), (X,))]).cuts == ((Y,), (X,))
    assert computing(split, [cut(()), cut((X,), (Y,))]).cuts == ((X,), ())


AXES = st.sampled_from([(), (X,), (Y,), (X, Y), (Y, X), (Y.first(2),), (Y.after(2),), (Y.first(2), X)])


@st.composite
def tensors(draw: st.DrawFn, rank: int = 2) -> Sharding:
    found: list[Axes] = []
    for _ in range(rank):
        own = draw(AXES)
        used = [a for axes in found for a in axes]
        found.append(() if any(a.overlaps(b) for a in own for b in used) else own)
    return cut(*found)


@given(tensors(), tensors(), tensors(), st.tuples(*[st.sampled_from([4, 16, 64])] * 3), st.tuples(*[st.booleans()] * 3))
def test_an_op_uses_each_axis_once_and_only_as_some_tensor_has_it(
    a: Sharding, b: Sharding, c: Sharding, sizes: tuple[int, int, int], stored: tuple[bool, bool, bool]
) -> None:
    node = product(*sizes)
    found = computing(node, [a, b, c], stored)
    used = [axis for axes in found.cuts for axis in axes]
    assert not any(p.overlaps(q) for k, p in enumerate(used) for q in used[k + 1 :])
    for f, axes in enumerate(found.cuts):
        having = [
            s.dims[d].axes for s, dims in zip((a, b, c), node.rule.tensors) for d, dim in enumerate(dims) if f in dim
        ]
        assert not axes or any(is_prefix(axes, own) for own in having)
    for t, (s, dims) in enumerate(zip((a, b, c), node.rule.tensors)):
        same = all(found.cuts[f] == s.dims[d].axes for d, dim in enumerate(dims) for f in dim)
        assert (t in found.moved) == (not same)
    assert computing(node, [a, b, c], stored) == found
