"""Exported settings run on four ranks: accelerate in a loop of a user's, transformers in its Trainer. The losses are those of our
runner under the plan, and of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.proof.hf_cases import case_of, payload
from export.proof.target import run
from meshwright.export.registry import load
from meshwright.layouts.point import Point

pytestmark = pytest.mark.slow
CUT = Point(4, 1, 1, False, 1, 2, 3, "none", "1f1b")
ACCELERATE = {
    "whole copies": ("llama", replace(CUT, zero=0)),
    "weights cut": ("llama", CUT),
    "weights cut, tied": ("gpt2", CUT),
    "copies of what is cut": ("llama", replace(CUT, replicate=2)),
    "gathered once": ("llama", replace(CUT, reshard=False)),
    "cut, all again": ("llama", replace(CUT, recompute="full")),
    "gathered once, all again": ("llama", replace(CUT, reshard=False, recompute="full")),
    "tensor": ("llama", replace(CUT, dp=1, tp=4, zero=0)),
    "tensor and weights cut, all again": ("llama", replace(CUT, dp=2, tp=2, recompute="full")),
}
TRANSFORMERS = {
    "whole copies": ("llama", replace(CUT, zero=0)),
    "weights cut": ("llama", CUT),
    "weights cut, tied": ("tied llama", CUT),
    "copies of what is cut": ("llama", replace(CUT, replicate=2)),
    "tensor and weights cut, tied": ("tied llama", replace(CUT, dp=2, tp=2)),
    "tensor with norms of heads": ("qwen3", replace(CUT, dp=2, tp=2, recompute="full")),
    "tensor inside of experts": ("mixtral", replace(CUT, dp=2, tp=2)),
    "experts": ("mixtral", replace(CUT, dp=2, ep=2)),
    "experts over tensor members": ("mixtral", replace(CUT, dp=2, tp=2, whole_experts=True)),
}


@pytest.mark.parametrize(
    ("target", "name"),
    [("accelerate", name) for name in ACCELERATE] + [("transformers", name) for name in TRANSFORMERS],
)
def test_losses_are_those_of_our_runner(target: str, name: str, tmp_path: Path) -> None:
    case = case_of(tmp_path, *(ACCELERATE if target == "accelerate" else TRANSFORMERS)[name])
    theirs = run("accelerate", "hf_run_script.py", payload(load(target), case, tmp_path))
    assert case.ours == pytest.approx(case.one, rel=1e-5)
    assert theirs == pytest.approx(case.ours, rel=1e-5)
    assert case.ours[-1] < case.ours[0]
