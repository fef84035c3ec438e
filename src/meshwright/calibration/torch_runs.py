"""Whole training steps on one GPU in plain torch, eager and compiled: what kernels alone do not tell.

In a step products run slower than alone (the chip is at its power limit), and light ops, losses and optimizers as their
software has them. Small models teach that, as the steps of any other stack do (`stack.learn_stack`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..graph.source import ConfigSource
from ..graph.zoo.gpt import config
from ..plan.problem import Problem, Recipe
from ..planners.grid import Grid
from .profile import Profile
from .stack import Step
from .timing import summary

WARM_UP, ROUNDS = 4, 9


def training_step(
    source: ConfigSource, batch: int, seq: int, device: torch.device, compiled: bool
) -> Callable[[], None]:
    """One step of the user's module: weights, gradients and moments in bfloat16, fused AdamW, random tokens."""
    module, _ = source.build(batch, seq, "bfloat16", device=str(device), attention="meshwright")
    settings: Any = module.config
    ids = torch.randint(0, int(settings.vocab_size), (batch, seq), device=device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    forward: Callable[..., Any] = torch.compile(module) if compiled else module

    def step() -> None:
        forward(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def recipe(batch: int, compiled: bool) -> Recipe:
    """What `training_step` trains."""
    return Recipe(batch, state_bytes=4.0, param_dtype="bfloat16", grad_dtype="bfloat16", fused=compiled)


@dataclass(frozen=True, slots=True)
class Small:
    layers: int
    width: int
    tokens: int
    batch: int
    vocabulary: int

    def source(self) -> ConfigSource:
        sizes = config(self.layers, self.width, self.width // 64, self.tokens, self.vocabulary)
        return ConfigSource("own", "own", "config", sizes, self.batch, self.tokens)


STEPS = (
    Small(4, 1024, 1024, 16, 32768),
    Small(4, 1024, 1024, 16, 1024),
    Small(3, 4096, 2048, 4, 32768),
    Small(6, 512, 512, 4, 8192),
)
"""With and without a large head, wide, and so small that the host sets the pace."""
TINY = (Small(2, 64, 64, 2, 512), Small(2, 128, 64, 2, 512))
"""For tests on a CPU."""


def torch_steps(
    profile: Profile, device: torch.device, software: str, compiled: bool, smalls: tuple[Small, ...] = STEPS
) -> list[Step]:
    """Medians of the steps of some models, each alone on the device.

    Raises:
        CaptureError: the installed torch cannot capture them. RuntimeError: they do not run here.
    """
    assert profile.local is not None
    cluster = profile.local.cluster(1)
    found = []
    for small in smalls:
        source = small.source()
        graph = source.graph(2, small.tokens, "bfloat16")
        problem = Problem(graph, cluster, profile.cost("bfloat16", software), recipe(small.batch, compiled))
        fix = {"dp": 1, "micro_batch": small.batch, "recompute": "none"}
        plan = Grid(fix=fix, top=1).plan(problem).plan
        assert plan is not None
        step = training_step(source, small.batch, small.tokens, device, compiled)
        seconds = [_timed(step, device) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
        how = "compiled" if compiled else "eager"
        name = f"own step: {small.layers} layers of {small.width}, {small.batch} x {small.tokens} tokens, {small.vocabulary} words, {how}"
        timing = summary(seconds)
        found.append(Step(name, problem, plan, timing.seconds, timing=timing))
    return found


def _timed(step: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
