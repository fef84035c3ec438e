"""The two sides of bench_execute inside one pair of rank processes: a plan under our runtime, and torch's own trainer.

Both train the same transformers module from the same values on the same samples with the same optimizer, on one core and
one thread a rank. They run in turns, never at the same time.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from meshwright.execute.ops.params import Values
from meshwright.execute.proof.counting import Counting
from meshwright.execute.proof.verification import constants_of, load_values
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.optimizer import AdamW
from meshwright.execute.step.runtime import Runtime
from meshwright.graph.ir import Graph
from meshwright.graph.source import ModelSource
from meshwright.lower.program import Program
from meshwright.plan.model import Plan

LEARNING_RATE = 1e-3
WARM_UP = 2
"""Steps before anything is measured."""


@dataclass(frozen=True)
class Match:
    """What both sides are given."""

    theirs: str
    """ddp, fully_shard, tp, tp+sequence."""
    program: Program
    graph: Graph
    plan: Plan
    source: ModelSource
    seq: int
    samples: int
    blocks: int
    steps: int
    """A block and side."""


@dataclass
class Outcome:
    seconds: list[tuple[float, float]]
    """Per block: (ours, theirs) of one step, as this rank saw it."""
    losses: tuple[list[float], list[float]]
    """Of the steps before the blocks; theirs is the mean over ranks."""
    calls: tuple[Counter[Any], Counter[Any]]
    """Collectives of one step: (kind, bytes, ranks) -> times."""


def one_core(rank: int) -> None:
    """This process and all its threads on core `rank`."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {cores[rank % len(cores)]})


def play(context: Context, match: Match) -> Outcome:
    one_core(context.rank)
    module, _ = match.source.build(match.samples, match.seq, "float32", device="cpu", attention="sdpa")
    values = Values(0)
    load_values(match.graph, module, values)
    generator = torch.Generator().manual_seed(1)
    batches = [match.source.random_inputs(match.samples, match.seq, generator) for _ in range(4)]
    runtime = Runtime(
        match.program, match.graph, match.plan, values, constants_of(match.graph, module), AdamW(LEARNING_RATE),
        context.hardware, context.groups, rank=context.rank,
    )  # fmt: skip
    ours = _Ours(runtime)
    theirs = _SIDES[match.theirs](module, context)

    sides: tuple[Callable[[Mapping[str, Tensor]], float], ...] = (ours, theirs)
    losses: tuple[list[float], list[float]] = ([], [])
    calls: tuple[Counter[Any], Counter[Any]] = (Counter(), Counter())
    for batch in batches[: WARM_UP + 1]:
        for side, found, counted in zip(sides, losses, calls, strict=True):
            with _All() as counting:
                found.append(side(batch))
            counted.clear()
            counted.update(counting.calls)
    mean = torch.tensor(losses[1])
    dist.all_reduce(mean)
    losses = (losses[0], (mean / context.world).tolist())

    seconds = []
    for block in range(match.blocks):
        took = [0.0, 0.0]
        order = (0, 1) if block % 2 == 0 else (1, 0)
        for which in order:
            dist.barrier()
            begin = time.perf_counter()
            for k in range(match.steps):
                sides[which](batches[k % len(batches)])
            took[which] = (time.perf_counter() - begin) / match.steps
        seconds.append((took[0], took[1]))
        context.event(block)
    return Outcome(seconds, losses, calls)


class _All(Counting):
    """Functional collectives, too: DTensor uses those."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # first what it is made of
        kind = _FUNCTIONAL.get(str(func))
        if kind is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        out = func(*args, **(kwargs or {}))
        held = out if kind == "all_gather" else args[0]
        self.calls[kind, held.numel() * held.element_size(), tuple(range(dist.get_world_size()))] += 1
        return out


_FUNCTIONAL = {
    "_c10d_functional.all_reduce.default": "all_reduce",
    "_c10d_functional.all_gather_into_tensor.default": "all_gather",
    "_c10d_functional.reduce_scatter_tensor.default": "reduce_scatter",
    "_c10d_functional.all_to_all_single.default": "all_to_all",
}


class _Ours:
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def __call__(self, batch: Mapping[str, Tensor]) -> float:
        losses = self.runtime.gradients([batch])  # torch's sides compute no norm either
        self.runtime.update()
        return float(losses[0])


class _Theirs:
    """A module of transformers under one of torch's own wrappers."""

    def __init__(
        self,
        module: nn.Module,
        parameters: Any,
        own: Callable[[Tensor], Tensor],
        *,
        parallel_loss: bool = False,
        positions: bool = False,
    ) -> None:
        """`positions`: say them, because the module would count those of the embedding's own part."""
        self.module, self.own, self.parallel_loss, self.positions = module, own, parallel_loss, positions
        named: dict[bool, list[Tensor]] = {}
        for parameter in parameters:  # foreach mixes no plain tensors with distributed ones
            named.setdefault(isinstance(parameter, DTensor), []).append(parameter)
        self.optimizer = torch.optim.AdamW([{"params": group} for group in named.values()], LEARNING_RATE, foreach=True)

    def __call__(self, batch: Mapping[str, Tensor]) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        if self.parallel_loss:
            with loss_parallel():
                loss = self._loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss = self._loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        shown = loss.detach()
        return float(shown.full_tensor() if isinstance(shown, DTensor) else shown)

    def _loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: self.own(x) for name, x in batch.items()}
        if self.positions:
            inputs["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        found = self.module(**inputs)
        return found.loss  # type: ignore[no-any-return]


def _chunk(context: Context) -> Callable[[Tensor], Tensor]:
    return lambda x: x.chunk(context.world)[context.rank]


def _ddp(module: nn.Module, context: Context) -> _Theirs:
    wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True)
    return _Theirs(wrapped, wrapped.parameters(), _chunk(context))


def _fully_shard(module: nn.Module, context: Context) -> _Theirs:
    mesh = init_device_mesh("cpu", (context.world,))
    for layer in module.model.layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return _Theirs(module, module.parameters(), _chunk(context))


def _tensor(module: nn.Module, context: Context, sequence: bool) -> _Theirs:
    """torch's own tensor parallel recipe for Llama, with a vocabulary-parallel embedding and cross-entropy."""
    mesh = init_device_mesh("cpu", (context.world,))
    along = Shard(1)
    within = PrepareModuleInput(
        input_kwarg_layouts={"hidden_states": along}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
    )
    ffn = PrepareModuleInput(input_layouts=(along,), desired_input_layouts=(Replicate(),))
    out = along if sequence else Replicate()
    model = module.model
    plan: dict[str, Any] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=out),
        "lm_head": ColwiseParallel(
            input_layouts=out if sequence else None, output_layouts=Shard(-1), use_local_output=False
        ),
    }
    if sequence:
        plan["model.norm"] = SequenceParallel(use_local_output=True)
    parallelize_module(module, mesh, plan)
    for layer in model.layers:  # type: ignore[union-attr]
        inner: dict[str, Any] = {
            f"self_attn.{name}_proj": ColwiseParallel(use_local_output=True) for name in ("q", "k", "v")
        }
        inner |= {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel()}
        inner |= {
            "self_attn.o_proj": RowwiseParallel(output_layouts=out),
            "mlp.down_proj": RowwiseParallel(output_layouts=out),
        }
        if sequence:
            norm = SequenceParallel(use_local_output=True)
            inner |= {"input_layernorm": norm, "post_attention_layernorm": norm, "self_attn": within, "mlp": ffn}
        parallelize_module(layer, mesh, inner)
    return _Theirs(module, module.parameters(), lambda x: x, parallel_loss=True, positions=sequence)


_SIDES: Mapping[str, Callable[[nn.Module, Context], _Theirs]] = {
    "ddp": _ddp,
    "fully_shard": _fully_shard,
    "tp": lambda module, context: _tensor(module, context, False),
    "tp+sequence": lambda module, context: _tensor(module, context, True),
}
