"""Conversions, forward and dual, played on arrays: every shard right, every gradient complete."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.lower.convert import Axes, Step, axes_of, steps

MESH = {"a": 2, "b": 2, "c": 2}
SHAPE = (8, 8)
DEVICES = [dict(zip(MESH, c, strict=True)) for c in itertools.product(*(range(n) for n in MESH.values()))]
Values = list[np.ndarray]


def part(whole: np.ndarray, layout: Axes, at: dict[str, int]) -> np.ndarray:
    for dim, axes in enumerate(layout):
        for a in axes:
            whole = np.split(whole, MESH[a], axis=dim)[at[a]]
    return whole


def peers(k: int, axis: str) -> list[int]:
    """Devices that differ from device k in `axis` only, in order."""
    same = [j for j, d in enumerate(DEVICES) if all(d[a] == DEVICES[k][a] for a in MESH if a != axis)]
    return sorted(same, key=lambda j: DEVICES[j][axis])


def do(action: str, values: Values, axis: str, gather: int, cut: int) -> Values:
    out = []
    for k, d in enumerate(DEVICES):
        group = [values[j] for j in peers(k, axis)] if axis else []
        i = d.get(axis, 0)
        if action == "identity":
            out.append(values[k])
        elif action == "all_reduce":
            out.append(sum(group))
        elif action == "all_gather":
            out.append(np.concatenate(group, axis=gather))
        elif action == "reduce_scatter":
            out.append(np.split(sum(group), MESH[axis], axis=gather)[i])
        elif action == "slice":
            out.append(np.split(values[k], MESH[axis], axis=gather)[i])
        elif action == "pad":
            zeros = [np.zeros_like(values[k])] * MESH[axis]
            zeros[i] = values[k]
            out.append(np.concatenate(zeros, axis=gather))
        else:
            whole = np.concatenate(group, axis=gather)
            out.append(np.split(whole, MESH[axis], axis=cut)[i])
    return out


def forward(path: tuple[Step, ...], values: Values) -> Values:
    for s in path:
        values = do(s.forward, values, s.axis, s.atom, s.atom2)
    return values


def backward(path: tuple[Step, ...], grads: Values) -> Values:
    for s in reversed(path):
        gather, cut = (s.atom2, s.atom) if s.backward == "all_to_all" else (s.atom, s.atom2)
        grads = do(s.backward, grads, s.axis, gather, cut)
    return grads


@st.composite
def layouts(draw: st.DrawFn) -> Axes:
    axes = draw(st.permutations(sorted(MESH)))
    dims: list[tuple[str, ...]] = [(), ()]
    for a in axes:
        where = draw(st.integers(-1, 1))
        if where >= 0:
            dims[where] = (*dims[where], a)
    return tuple(dims)


@settings(max_examples=300, deadline=None)
@given(layouts(), layouts(), st.sets(st.sampled_from(sorted(MESH))), st.integers(0, 2**31))
def test_every_device_ends_with_its_part(src: Axes, dst: Axes, partial: set[str], seed: int) -> None:
    partial -= axes_of(src)
    rng = np.random.default_rng(seed)
    terms = {
        c: rng.integers(-9, 9, SHAPE).astype(float)
        for c in itertools.product(*(range(MESH[a]) for a in sorted(partial)))
    }
    whole = sum(terms.values())
    values = [part(terms[tuple(d[a] for a in sorted(partial))], src, d) for d in DEVICES]
    path = steps(src, tuple(sorted(partial)), dst, frozenset(), frozenset())
    for d, v in zip(DEVICES, forward(path, values), strict=True):
        np.testing.assert_array_equal(v, part(whole, dst, d))


@settings(max_examples=500, deadline=None)
@given(layouts(), layouts(), st.sets(st.sampled_from(sorted(MESH))), st.integers(0, 2**31))
def test_the_dual_completes_every_gradient(src: Axes, dst: Axes, summed: set[str], seed: int) -> None:
    """Each device reads its part of the converted value; along `summed` axes the readers add up, along others they are copies."""
    summed -= axes_of(dst)
    rng = np.random.default_rng(seed)
    weights: dict[tuple[int, ...], np.ndarray] = {}
    truth = np.zeros(SHAPE)
    grads: Values = []
    for d in DEVICES:
        key = tuple(d[a] for a in sorted(summed))
        if key not in weights:
            weights[key] = rng.integers(-9, 9, SHAPE).astype(float)
            truth += weights[key]
        grads.append(part(weights[key], dst, d))
    path = steps(src, (), dst, frozenset(summed), frozenset())
    for d, g in zip(DEVICES, backward(path, grads), strict=True):
        np.testing.assert_array_equal(g, part(truth, src, d))


@settings(max_examples=300, deadline=None)
@given(layouts(), st.integers(0, 2**31))
def test_a_padded_gradient_is_a_partial_sum(dst: Axes, seed: int) -> None:
    """A parameter stored whole, used cut: nothing moves backwards, the end-of-step sum completes it."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(-9, 9, SHAPE).astype(float)
    path = steps(((), ()), (), dst, frozenset(), axes_of(dst))
    grads = backward(path, [part(truth, dst, d) for d in DEVICES])
    for axis in sorted(axes_of(dst)):
        grads = do("all_reduce", grads, axis, -1, -1)
    assert all(s.backward == "pad" for s in path)
    for g in grads:
        np.testing.assert_array_equal(g, truth)


def test_no_step_where_nothing_changes() -> None:
    assert steps((("a",), ()), (), (("a",), ()), frozenset(), frozenset()) == ()


def test_tensor_parallel_sums_are_two_a_layer() -> None:
    """Column then row parallel: the identity whose dual sums, and the sum whose dual is the identity."""
    enter = steps(((), ()), (), ((), ()), frozenset({"a"}), frozenset())
    leave = steps(((), ()), ("a",), ((), ()), frozenset(), frozenset())
    assert [(s.forward, s.backward) for s in enter + leave] == [("identity", "all_reduce"), ("all_reduce", "identity")]
