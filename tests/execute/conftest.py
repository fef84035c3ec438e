"""Rank pools that live for the whole session, and small models with one process's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from meshwright.errors import ExecutionError
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import Reference, Task, VerifyResult, check, constants_of, reference
from meshwright.execute.ranks.pool import Pool
from meshwright.graph.blocks import with_runs
from meshwright.graph.capture import capture
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.lower import Program, lower, unrolled
from meshwright.plan.model import Plan
from meshwright.plan.problem import Recipe


@dataclass(frozen=True)
class Model:
    """A captured model, inputs, and what one process computes on them."""

    graph: Graph
    module: nn.Module
    values: Values
    constants: Mapping[str, Tensor]
    batch: tuple[Mapping[str, Tensor], ...]
    truth: Reference

    def program(self, plan: Plan) -> Program:
        return unrolled(lower(self.graph, plan, Recipe(plan.samples, compute_dtype="float32")), self.graph)

    def task(self, plan: Plan, program: Program | None = None) -> Task:
        return Task(program or self.program(plan), self.graph, plan, self.values, self.constants, self.batch)

    def check(self, plan: Plan, pool: Pool, program: Program | None = None) -> VerifyResult:
        return check(self.task(plan, program), self.truth, pool)


def model_of(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    batch: list[Mapping[str, Tensor]],
    real: nn.Module,
    seed: int = 0,
) -> Model:
    graph = with_runs(capture(module, inputs, next(iter(inputs.values())).shape[0]))
    values = Values(seed, "uneven")
    truth = reference(graph, real, batch, values)
    return Model(graph, real, values, constants_of(graph, real), tuple(batch), truth)


def scaled_model(name: str, shrink: Shrink, samples: int, micro_batches: int, seed: int = 0) -> Model:
    source = resolve(name)
    module, inputs = source.build(samples, shrink.seq, "float32", shrink=shrink)
    real, _ = source.build(samples, shrink.seq, "float32", device="cpu", shrink=shrink, attention="eager")
    generator = torch.Generator().manual_seed(seed)
    batch = [source.random_inputs(samples, shrink.seq, generator, shrink=shrink) for _ in range(micro_batches)]
    return model_of(module, inputs, batch, real, seed)


@cache
def zoo_model(name: str, blocks: int = 2, micro_batches: int = 2) -> Model:
    shrink = Shrink(blocks=blocks, width=32, heads=4, kv_heads=2, ffn=48, vocab=32, seq=8, dropout=0.0)
    return scaled_model(name, shrink, 4, micro_batches)


@cache
def uneven_model(name: str) -> Model:
    shrink = Shrink(blocks=1, width=24, heads=3, kv_heads=3, ffn=47, vocab=33, seq=7, dropout=0.0)
    return scaled_model(name, shrink, 3, 2)


ALIVE = 16
"""Ranks that wait for jobs at most: every process group of a waiting one wakes a thread a hundred times a second."""


class Pools:
    """One pool per number of ranks, those that were used last; a pool that broke is made anew."""

    def __init__(self) -> None:
        self._made: dict[int, Pool] = {}

    def __call__(self, ranks: int) -> Pool:
        pool = self._made.pop(ranks, None)
        if pool is None or not pool.whole():
            while self._made and sum(self._made) + ranks > ALIVE:
                self._made.pop(next(iter(self._made))).close()
            pool = Pool(ranks, timeout=30)
        self._made[ranks] = pool
        return pool

    def close(self) -> None:
        for pool in self._made.values():
            pool.close()


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    made = Pools()
    yield made
    made.close()


@pytest.fixture(scope="session")
def verdict(pools: Pools) -> Callable[[Model, Plan, int, Program | None], VerifyResult | ExecutionError]:
    """The result of a check, or the error that it ended with."""

    def run(model: Model, plan: Plan, ranks: int, program: Program | None = None) -> VerifyResult | ExecutionError:
        try:
            return model.check(plan, pools(ranks), program)
        except ExecutionError as error:
            return error

    return run
