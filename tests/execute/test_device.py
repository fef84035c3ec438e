"""One choice of hardware; where there is a GPU, a whole step runs on it with NCCL."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from execute.conftest import zoo_model
from execute.layouts import Layout, plan_of
from meshwright.execute.proof.verification import SGD, STEP, Answer, compare
from meshwright.execute.ranks.device import hardware
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.step.runtime import Runtime


def test_a_machine_told_to_use_its_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWRIGHT_DEVICE", "cpu")
    assert (hardware().device.type, hardware().backend) == ("cpu", "gloo")


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
        found = Answer([])

        def seen(stage: int, name: str, grad: torch.Tensor) -> None:
            found.gradients[stage, name] = grad.cpu()

        runtime.seen = seen
        found.losses = runtime.gradients(model.batch)
        runtime.update()
        found.updated = {(0, n): x.cpu() for n, x in runtime.locals[0].params.items()}
    finally:
        dist.destroy_process_group()
    assert os.environ.get("MESHWRIGHT_DEVICE") is None
    problems = compare(task, model.truth, [found]).problems
    assert problems == ()
