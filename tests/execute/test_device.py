"""One choice of hardware; all of a step stays on it; where there is a GPU, a whole step runs on it with NCCL."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from execute.cells import FAMILIES
from execute.conftest import zoo_model
from execute.layouts import Layout, plan_of
from execute.matrix import small
from meshwright.errors import ExecutionError
from meshwright.execute.proof.verification import SGD, STEP, Answer, compare
from meshwright.execute.ranks.device import Hardware, hardware
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.ranks.pool import Pool
from meshwright.execute.step.runtime import Runtime


def test_a_machine_told_to_use_its_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWRIGHT_DEVICE", "cpu")
    assert (hardware().device.type, hardware().backend) == ("cpu", "gloo")


def test_more_ranks_than_gpus_are_told_before_any_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHWRIGHT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ExecutionError, match="a GPU for 1 of 2 ranks, and each takes one of its own") as told:
        Pool(2, backend="auto")
    assert "MESHWRIGHT_DEVICE=cpu" in told.value.hint


class _Elsewhere(TorchDispatchMode):
    """Notes operators that give a tensor (no single number) on another device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.found = device, set[str]()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.dim() and x.device != self.device:
                self.found.add(str(func))
        return out


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(
    "family", [pytest.param(f.name, marks=() if f.name in ("gpt2", "t5-large") else pytest.mark.slow) for f in FAMILIES]
)
def test_every_tensor_of_a_step_is_on_the_rank_s_device(family: str, recompute: str) -> None:
    """The meta device stands for a GPU: it is no CPU, and holds no numbers, so that the step ends where it reads its loss."""
    device = torch.device("meta")
    model = small(family, 4, 2).model
    plan = plan_of(model.graph, Layout(recompute=recompute), 2)
    runtime = Runtime(
        model.program(plan),
        model.graph,
        plan,
        model.values,
        model.constants,
        SGD(STEP),
        Hardware(device, "gloo"),
        Groups(),
    )
    batch = [{name: x.to(device) for name, x in one.items()} for one in model.batch]
    with _Elsewhere(device) as watch, pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        runtime.gradients(batch)
    assert watch.found == set()
    assert all(p.grad is not None for p in runtime.masters.values())


def test_a_step_on_a_gpu_with_nccl_gives_the_gradients_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine: run this test on one with a GPU")
    monkeypatch.delenv("MESHWRIGHT_DEVICE", raising=False)
    place = hardware(0)
    assert place.backend == "nccl"
    torch.backends.cuda.matmul.allow_tf32 = False
    model = zoo_model("llama-3.1-8b")
    plan = plan_of(model.graph, Layout(recompute="light"), len(model.batch))
    task = model.task(plan)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        alone = torch.ones(4, device=place.device)
        dist.all_reduce(alone)
        runtime = Runtime(
            task.program, model.graph, plan, model.values, model.constants, SGD(STEP), place, Groups(), dropout=False
        )
        found = Answer({})

        def seen(stage: int, name: str, grad: torch.Tensor) -> None:
            found.gradients[stage, name] = grad.cpu()

        runtime.seen = seen
        found.losses = {k: loss for (_, k), loss in runtime.gradients(model.batch).items()}
        runtime.update()
        found.updated = {(0, n): x.cpu() for n, x in runtime.locals[0].params.items()}
    finally:
        dist.destroy_process_group()
    assert os.environ.get("MESHWRIGHT_DEVICE") is None
    problems = compare(task, model.truth, [found]).problems
    assert problems == ()
