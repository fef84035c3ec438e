"""A graph is captured once, and never served to a model that is not the one it was captured from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshwright.graph import cache
from meshwright.graph.serial import equal_graphs
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink

SMALL = Shrink(blocks=2, width=32, heads=2, vocab=64, seq=16)
MODEL = """
import torch
from torch import nn
from pieces.layer import Layer
def build():
    return Layer(), torch.zeros(4, 8)
"""
LAYER = """
from torch import nn
import pieces.sizes as sizes
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, sizes.WIDTH)
    def forward(self, x):
        return self.inner(x).square().mean()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MESHWRIGHT_CACHE", str(folder))
    return folder


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a capture."""
    from meshwright.graph import capture as module

    made: list[int] = []
    original = module.capture
    monkeypatch.setattr(module, "capture", lambda *a, **k: made.append(1) or original(*a, **k))
    return made


def user_model(folder: Path, width: int = 5) -> str:
    (folder / "pieces").mkdir(exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "pieces" / "__init__.py").write_text("")
    (folder / "pieces" / "layer.py").write_text(LAYER)
    (folder / "pieces" / "sizes.py").write_text(f"WIDTH = {width}\n")
    return f"{folder / 'model.py'}:build"


def test_the_second_graph_is_the_first_one_read_back(captures: list[int]) -> None:
    first = resolve("gpt2").graph(shrink=SMALL)
    second = resolve("gpt2").graph(shrink=SMALL)
    assert len(captures) == 1
    assert first is not second
    assert equal_graphs(first, second)
    assert first.digest and first.runs == second.runs


def test_every_question_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, llama = resolve("gpt2").identity(), resolve("llama-3.1-8b").identity()
    keys = {
        cache.key(model, batch, seq, dtype, shrink)
        for model in (gpt, llama)
        for batch in (2, 3)
        for seq in (64, 128)
        for dtype in ("float32", "bfloat16")
        for shrink in (None, SMALL)
    }
    assert len(keys) == 32
    before = cache.key(gpt, 2, 64, "float32", None)
    assert before == cache.key(resolve("gpt2").identity(), 2, 64, "float32", None)
    for package in ("torch", "transformers", "meshwright"):
        original = cache.version
        monkeypatch.setattr(cache, "version", lambda n, p=package, o=original: "0.0" if n == p else o(n))
        assert cache.key(gpt, 2, 64, "float32", None) != before
        monkeypatch.setattr(cache, "version", original)


def test_editing_a_module_that_the_model_imports_gives_a_new_graph(tmp_path: Path, captures: list[int]) -> None:
    spec = user_model(tmp_path, 5)
    assert resolve(spec).graph(4).tensor["inner.weight"].shape == (5, 8)
    assert resolve(spec).graph(4).tensor["inner.weight"].shape == (5, 8)
    assert len(captures) == 1
    user_model(tmp_path, 7)
    assert resolve(spec).graph(4).tensor["inner.weight"].shape == (7, 8)
    assert len(captures) == 2


def test_a_comment_elsewhere_in_the_folder_changes_nothing(tmp_path: Path) -> None:
    spec = user_model(tmp_path)
    before = resolve(spec).identity()
    (tmp_path / "notes.py").write_text("# not imported\n")
    assert resolve(spec).identity() == before
    assert sorted(before["sources"]) == ["model.py", "pieces/__init__.py", "pieces/layer.py", "pieces/sizes.py"]  # type: ignore[call-overload]


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b", b"not gzip", None])
def test_a_damaged_file_is_captured_again_and_mended(place: Path, captures: list[int], damage: bytes | None) -> None:
    first = resolve("gpt2").graph(shrink=SMALL)
    (file,) = place.glob("*.graph.json.gz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert equal_graphs(resolve("gpt2").graph(shrink=SMALL), first)
    assert len(captures) == 2
    assert file.read_bytes() == whole
    assert [f.name for f in place.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captures: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MESHWRIGHT_CACHE", str(tmp_path / "file" / "below"))
    assert resolve("gpt2").graph(shrink=SMALL).ops
    assert resolve("gpt2").graph(shrink=SMALL).ops
    assert len(captures) == 2


def test_a_cached_graph_loads_no_torch(tmp_path: Path) -> None:
    spec = user_model(tmp_path)
    program = (
        "import sys\nfrom meshwright.graph.source import resolve\nfrom meshwright.graph.zoo import Shrink\n"
        f"s = resolve({spec!r})\n"
        "graphs = [s.graph(s.default_batch, s.default_seq),"
        " resolve('gpt2').graph(shrink=Shrink(blocks=2, width=32, heads=2, vocab=64, seq=16))]\n"
        "print([len(g.ops) for g in graphs], 'torch' in sys.modules)"
    )

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ)
        )
        return done.stdout

    first, second = run(), run()
    assert first.endswith("True\n")
    assert second == first.replace("True", "False")
