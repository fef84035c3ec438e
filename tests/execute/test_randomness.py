"""Random numbers belong to elements, not to ranks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.execute.ops.params import Values, seeded
from meshwright.execute.ops.randomness import global_index, keep_mask, normal, stream, uniform
from meshwright.execute.ops.site import own_part
from meshwright.execute.ranks.mesh_groups import Groups, MeshView
from meshwright.graph.ir import Tensor
from meshwright.plan.model import Cut, Layout

LAYOUT = Layout((((5, (Cut("x"),)),), ((3, ()), (4, (Cut("y"),)))))


def _views() -> list[MeshView]:
    mesh = Mesh(range(4), ("x", "y"), (2, 2))
    return [MeshView(mesh, r, {d: d for d in range(4)}, Groups()) for r in range(4)]


def test_the_global_index_of_a_part_is_the_part_of_the_global_index() -> None:
    whole = torch.arange(60).reshape(5, 12)
    for view in _views():
        assert torch.equal(global_index((5, 12), LAYOUT, view, torch.device("cpu")), own_part(whole, LAYOUT, view))


@given(st.integers(0, 2**31), st.text(max_size=8))
def test_a_seeded_part_is_the_part_of_the_seeded_whole(seed: int, name: str) -> None:
    described = Tensor(name, 240.0, (5, 12), "float32", "param")
    whole = seeded(described, seed)
    for view in _views():
        assert torch.equal(Values(seed).part(described, LAYOUT, view), own_part(whole, LAYOUT, view))


def test_dropout_keeps_the_share_it_should_and_differs_between_steps() -> None:
    index = torch.arange(200_000)
    first, second = (keep_mask(0.1, stream("op", 0, step, 0), index) for step in (0, 1))
    assert abs(float(first.float().mean()) - 0.9) < 0.003
    both = float((first & second).float().mean())
    assert abs(both - 0.81) < 0.004


def test_normal_numbers_have_mean_zero_and_deviation_one() -> None:
    x = normal(stream("w", 0), torch.arange(200_000))
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
    assert abs(float((x**3).mean())) < 0.03


def test_uniform_numbers_stay_inside_the_open_interval() -> None:
    x = uniform(7, torch.arange(100_000))
    assert float(x.min()) > 0 and float(x.max()) < 1
    assert abs(float(x.mean()) - 0.5) < 0.005
