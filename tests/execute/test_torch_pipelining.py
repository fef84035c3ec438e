"""Where torch's pipelining runtime can run a table, ours makes the same losses and gradients of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from execute.chain import SAMPLES, chain_model, layers
from execute.conftest import Pools
from execute.torch_pipelining_jobs import Gradients, Step
from meshwright.cluster.model import Mesh
from meshwright.plan.model import Plan, Schedule, Stage
from meshwright.plan.schedules import home, rows_of, to_csv

M = 8
CASES = [
    # schedule, ranks, stages a rank, micro-batches, arguments
    ("gpipe", 2, 1, M, {}),
    ("gpipe", 4, 1, M, {}),
    ("1f1b", 2, 1, M, {}),
    ("1f1b", 4, 1, M, {}),
    ("1f1b", 4, 1, 1, {}),
    ("dapple", 4, 1, M, {"policy": "B"}),
    ("interleaved", 2, 2, M, {}),
    ("interleaved", 4, 2, M, {}),
    ("bfs", 4, 2, M, {}),
    ("zb-h1", 2, 1, M, {}),
    ("zb-h1", 4, 1, M, {}),
    ("zb-h2", 4, 1, M, {}),
    ("zb-auto", 4, 1, M, {}),
    ("zb-v", 2, 2, M, {}),
    ("zb-v", 4, 2, M, {}),
    ("v-half", 4, 2, M, {}),
    ("v-min", 4, 2, M, {}),
    ("hanayo", 2, 2, M, {}),
    ("hanayo", 2, 4, M, {}),
    ("hanayo", 4, 2, M, {}),
    ("dualpipev", 4, 2, M, {}),
]


@pytest.mark.parametrize(("name", "p", "v", "m", "args"), CASES, ids=[f"{c[0]}-{c[1]}x{c[2]}-{c[3]}" for c in CASES])
def test_gradients_are_those_of_torchs_runtime(
    name: str, p: int, v: int, m: int, args: dict[str, int | str], pools: Pools
) -> None:
    depth = p * v
    model = chain_model(depth, m)
    schedule = Schedule(name, m, {**({"v": v} if v > 1 else {}), **args})
    ranks = [home(schedule, p, s) for s in range(depth)]
    stages = tuple(Stage(ops, Mesh((r,), ("data",), (1,))) for ops, r in zip(layers(model.graph), ranks, strict=True))
    plan = Plan(model.graph.digest, SAMPLES * m, stages, schedule)
    whole = {t.name: model.values.whole(t) for t in model.graph.tensors if t.role == "param"}
    step = Step(
        replace(model.task(plan), batch=()),
        to_csv(rows_of(schedule, depth)),
        [(whole[f"layers.{s}.weight"], whole[f"layers.{s}.bias"]) for s in range(depth)],
        [tuple(s for s in range(depth) if ranks[s] == r) for r in range(p)],
        model.batch,
    )
    ours: Gradients = {}
    theirs: Gradients = {}
    for own, torchs, losses, their_losses in pools(p).run("execute.torch_pipelining_jobs:both", step):
        ours |= own
        theirs |= torchs
        assert losses == pytest.approx(their_losses, rel=1e-6)
    assert ours.keys() == theirs.keys() == whole.keys()
    for n in whole:  # products and sums of the two differ in the last bit
        torch.testing.assert_close(ours[n], theirs[n], rtol=1e-6, atol=1e-8)
