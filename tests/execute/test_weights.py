"""safetensors files are read by parts, as slices of the whole, and written so that safetensors itself reads them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.execute.ops.site import own_part
from meshwright.execute.ranks.mesh_groups import Groups, MeshView
from meshwright.execute.saved.parts import Part
from meshwright.execute.saved.weights import Weights, created
from meshwright.plan.layout import replicated
from meshwright.plan.model import Cut, Layout

MESH = Mesh(range(6), ("a", "b"), (2, 3))


def _views() -> Iterator[MeshView]:
    for rank in range(6):
        yield MeshView(MESH, rank, {d: d for d in range(6)}, Groups())


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], Layout]:
    """Up to three dims of up to two sub-dimensions, each axis cutting one of them, evenly or not."""
    dims = [[draw(st.integers(1, 7)) for _ in range(draw(st.integers(1, 2)))] for _ in range(draw(st.integers(1, 3)))]
    places = [(d, s) for d, subs in enumerate(dims) for s in range(len(subs))]
    cuts: dict[tuple[int, int], tuple[Cut, ...]] = {}
    for axis in draw(st.permutations(["a", "b"])):
        place = draw(st.sampled_from([*places, None]))
        if place is not None:
            cuts[place] = (*cuts.get(place, ()), Cut(axis))
    layout = Layout(tuple(tuple((n, cuts.get((d, s), ())) for s, n in enumerate(subs)) for d, subs in enumerate(dims)))
    return tuple(int(torch.tensor(subs).prod()) for subs in dims), layout


@settings(max_examples=100, deadline=None)
@given(case=_layouts(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_a_part_read_from_a_file_is_the_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[tuple[int, ...], Layout], dtype: torch.dtype
) -> None:
    shape, layout = case
    whole = torch.arange(torch.tensor(shape).prod().item()).reshape(shape).to(dtype)
    file = tmp_path_factory.mktemp("w") / "model.safetensors"
    save_file({"x": whole, "y": torch.ones(2)}, file)
    weights = Weights.open(file)
    covered = torch.zeros(shape)
    for view in _views():
        got = weights.part("x", layout, view, shape)
        assert got.dtype == dtype
        assert torch.equal(got, own_part(whole, layout, view))
        for box in Part.of(got, shape, layout, view).boxes:
            assert torch.equal(box.view, whole[box.slices])
            covered[box.slices] = 1
    assert bool(covered.all())


def test_a_created_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    """Odd sizes, no elements, no dims, one byte and eight: every tensor aligned, none overlapping."""
    shapes = {
        "odd.bf16": ((3, 5), torch.bfloat16), "scalar": ((), torch.float32), "none": ((0, 4), torch.float32),
        "bool": ((3,), torch.bool), "long": ((2, 2), torch.int64), "float": ((7,), torch.float32),
    }  # fmt: skip
    wrote = {
        name: (torch.arange(len(name) * 100) + 1)[: t.numel()] for name, t in created(tmp_path / "x", shapes).items()
    }
    for name, tensor in created(tmp_path / "x", shapes).items():
        tensor.copy_(wrote[name].reshape(tensor.shape).to(tensor.dtype))
    found = load_file(tmp_path / "x")
    assert found.keys() == shapes.keys()
    for name, (shape, dtype) in shapes.items():
        assert found[name].shape == shape and found[name].dtype == dtype
        assert torch.equal(found[name].flatten(), wrote[name].to(dtype))


def test_a_folder_of_several_files_reads_as_one_also_after_pickling(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    first = Weights.open(tmp_path)
    first.whole("a")
    weights: Weights = pickle.loads(pickle.dumps(first))
    assert set(weights.names) == {"a", "b"}
    assert torch.equal(weights.whole("a"), torch.ones(2)) and torch.equal(weights.whole("b"), torch.zeros(3))
    assert weights.shapes == {"a": (2,), "b": (3,)}


def test_what_cannot_be_read_is_named_in_one_sentence(tmp_path: Path) -> None:
    view = next(_views())
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    weights = Weights.open(tmp_path)
    with pytest.raises(InputError, match=r"holds no b$"):
        weights.part("b", replicated((2,)), view, (2,))
    with pytest.raises(InputError, match=r"a has shape \(2,\) there, not \(3,\)$"):
        weights.part("a", replicated((3,)), view, (3,))
    with pytest.raises(
        InputError, match=r"none: no such file or folder: give a .safetensors file or a folder with one$"
    ):
        Weights.open(tmp_path / "none")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(InputError, match=r"names gone.safetensors, which is not there$"):
        Weights.open(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes()[:20])
    with pytest.raises(InputError, match=r"cut.safetensors: not a whole safetensors file: "):
        Weights.open(tmp_path / "cut.safetensors")
