"""What cannot be captured is refused in one sentence that names module, file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshwright.errors import CaptureError
from meshwright.graph.source import resolve

HEAD = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Part() for _ in range(4)])
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.pow(2).mean()

def build():
    return Net(), torch.zeros(4, 8)
"""
PART = """
class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
    def forward(self, x):
        return {body}
"""


def write(folder: Path, part: str) -> str:
    file = folder / "moe.py"
    file.write_text(HEAD + part)
    return f"{file}:build"


def line_of(spec: str, text: str) -> int:
    lines = Path(spec.rpartition(":")[0]).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def refusal(spec: str) -> str:
    with pytest.raises(CaptureError) as found:
        resolve(spec).graph(4, dtype="float32", cache=False)
    return found.value.message


def test_branch_on_data_is_quoted_with_module_file_and_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part = PART.format(body="self.choose(x)") + (
        "    def choose(self, x):\n        if x.max() > 1:\n            return self.inner(x)\n        return x\n"
    )
    spec = write(tmp_path, part)
    line = line_of(spec, "if x.max()")
    assert refusal(spec) == (
        f'cannot capture layers.0 (moe.py:{line}): "if x.max() > 1" branches on data; use torch.where'
    )
    assert capfd.readouterr() == ("", ""), "torch prints the whole trace of a failed export"


def test_read_of_a_value_is_refused(tmp_path: Path) -> None:
    spec = write(tmp_path, PART.format(body="self.inner(x) * x.sum().item()"))
    line = line_of(spec, ".item()")
    assert refusal(spec) == (
        f'cannot capture layers.0 (moe.py:{line}): "return self.inner(x) * x.sum().item()" reads a value from data; '
        "keep it a tensor"
    )


def test_custom_autograd_function_is_refused_and_the_patch_is_gone(tmp_path: Path) -> None:
    import torch

    before = torch.autograd.Function.__dict__["apply"], torch.Tensor.__bool__, torch.Tensor.item
    part = (
        "class Twice(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return x * 2\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return g * 2\n"
    ) + PART.format(body="Twice.apply(self.inner(x))")
    spec = write(tmp_path, part)
    line = line_of(spec, "Twice.apply")
    assert refusal(spec) == (
        f"cannot capture layers.0 (moe.py:{line}): Twice is a custom autograd.Function, whose backward would be lost; "
        "write it as a custom_op of torch with register_autograd"
    )
    assert (torch.autograd.Function.__dict__["apply"], torch.Tensor.__bool__, torch.Tensor.item) == before


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_is_inlined_and_noted(tmp_path: Path, reentrant: bool) -> None:
    body = f"checkpoint(self.inner, x, use_reentrant={reentrant})"
    spec = write(tmp_path, PART.format(body=body))
    line = line_of(spec, "checkpoint(self")
    plain = (tmp_path / "plain").resolve()
    plain.mkdir()
    graph = resolve(spec).graph(4, dtype="float32", cache=False)
    without = resolve(write(plain, PART.format(body="self.inner(x)"))).graph(4, dtype="float32", cache=False)
    assert [op.kind for op in graph.ops] == [op.kind for op in without.ops]
    assert without.notes == ()
    assert graph.notes[0] == (
        f"checkpoint() in layers.0 (moe.py:{line}) is inlined: the plan decides what is recomputed"
    )


def test_padding_mask_of_a_transformers_model_is_refused() -> None:
    import torch

    from meshwright.graph.capture import capture
    from meshwright.graph.hazards import watched

    source = resolve("bert-large")
    from meshwright.graph.zoo import Shrink

    module, inputs = source.build(2, 16, shrink=Shrink(blocks=1, width=32, heads=2, vocab=64))
    inputs["attention_mask"] = torch.ones(2, 16, dtype=torch.int64, device="meta")
    with pytest.raises(CaptureError, match="attention_mask is a padding mask"), watched(module):
        capture(module, inputs, 2)


def test_reading_a_real_constant_is_no_hazard(tmp_path: Path) -> None:
    part = PART.format(body="self.inner(x) * (2 if LIMIT else 3)") + "\nLIMIT = torch.tensor(1.0)\n"
    graph = resolve(write(tmp_path, part)).graph(4, dtype="float32", cache=False)
    assert any(op.kind == "mul" for op in graph.ops)


def test_failure_inside_a_module_names_it(tmp_path: Path) -> None:
    spec = write(tmp_path, PART.format(body="self.inner(x.view(3, 3))"))
    line = line_of(spec, "x.view(3, 3)")
    assert refusal(spec).startswith(f"cannot capture layers.0 (moe.py:{line}): ")


def test_a_loop_that_is_written_out_step_by_step_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshwright.graph import hazards

    loop = "self.scan(x)\n    def scan(self, x):\n        for _ in range({steps}):\n            x = x + self.inner(x)\n        return x"
    monkeypatch.setattr(hazards, "_MOST_CALLS", 500)
    graph = resolve(write(tmp_path, PART.replace("{body}", loop.replace("{steps}", "10")))).graph(4, cache=False)
    assert sum(op.kind == "linear" for op in graph.ops) == 40
    with pytest.raises(CaptureError) as found:
        resolve(write(tmp_path, PART.replace("{body}", loop.replace("{steps}", "200")))).graph(4, cache=False)
    line = next(n for n, t in enumerate((tmp_path / "moe.py").read_text().splitlines(), 1) if "x + self.inner(x)" in t)
    place = str(found.value).removeprefix("cannot capture ")
    assert (
        place.startswith(("layers.0 ", "layers.0.inner ", "layers.1 ", "layers.1.inner "))
        and f"(moe.py:{line})" in place
    )
    assert str(found.value).endswith(
        ": more than 500 ops, so a loop is written out step by step; use an op that scans, or a shorter --seq"
    )
