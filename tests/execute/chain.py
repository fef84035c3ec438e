"""A chain of layers, and its training without a flush written out by hand: no autograd, no engine, one list of versions a
stage.

    y = tanh(x Wᵀ + b) a layer, loss = mean (y − t)²          stage s = layer s
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

import torch
from torch import Tensor, nn

from execute.conftest import Model, model_of
from meshwright.cluster.model import Mesh
from meshwright.graph.ir import Graph
from meshwright.plan.model import Plan, Schedule, Stage, Weights
from meshwright.plan.schedules.chimera import worker
from meshwright.planners._profile import by_samples

WIDTH, SAMPLES = 5, 2


class Chain(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return (x - t).square().mean()


Batch = Mapping[str, Tensor]


def batches(steps: int, micro_batches: int, seed: int = 0) -> list[list[Batch]]:
    g = torch.Generator().manual_seed(seed)
    return [
        [{n: torch.randn(SAMPLES, WIDTH, generator=g) for n in ("x", "t")} for _ in range(micro_batches)]
        for _ in range(steps)
    ]


@cache
def chain_model(depth: int, micro_batches: int) -> Model:
    (batch,) = batches(1, micro_batches)
    with torch.device("meta"):
        module, inputs = Chain(depth), {n: torch.zeros(SAMPLES, WIDTH) for n in ("x", "t")}
    return model_of(module, inputs, list(batch), Chain(depth))


def layers(graph: Graph) -> list[tuple[str, ...]]:
    """Ops of each layer; the loss is with the last."""
    starts = [k for k, op in enumerate(graph.ops) if op.kind == "linear"]
    names = [op.name for op in graph.ops]
    ends = [*starts[1:], len(names)]
    return [tuple(names[a:b]) for a, b in zip([0, *starts[1:]], ends, strict=True)]


def chain_plan(
    graph: Graph,
    schedule: str,
    micro_batches: int,
    weights: Weights,
    replicas: Sequence[int] = (),
    args: Mapping[str, int | str] | None = None,
) -> Plan:
    """One layer a stage. `replicas`: of each stage, which take turns."""
    own, stages, at = layers(graph), [], 0
    for s, ops in enumerate(own):
        n = replicas[s] if replicas else 1
        stages.append(Stage(ops, Mesh(range(at, at + n), ("data",), (n,)), deal="data" if n > 1 else ""))
        at += n
    found = dict(args or {}) | ({"replicas": ",".join(map(str, replicas))} if replicas else {})
    return Plan(
        graph.digest, SAMPLES * micro_batches, tuple(stages), Schedule(schedule, micro_batches, found, (), weights)
    )


Version = tuple[Tensor, Tensor]
Rule = Callable[[int, int], int]
"""(stage, micro-batch) -> version."""
Step = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class ByHand:
    """What a loop over versions makes of a stream of micro-batches."""

    losses: list[float] = field(default_factory=list)
    versions: list[list[Version]] = field(default_factory=list)


def by_hand(
    first: Sequence[Version],
    steps: Sequence[Sequence[Batch]],
    reads: Rule,
    every: Sequence[int],
    optimizer: Step,
    again: Rule | None = None,
) -> ByHand:
    """`every`: micro-batches of one update, a stage. `again`: version whose weights the way back multiplies with; None: the
    one of the way there."""
    stream = list(chain.from_iterable(steps))
    depth, found = len(first), ByHand(versions=[[(w.clone(), b.clone())] for w, b in first])
    masters = [[nn.Parameter(w.clone()), nn.Parameter(b.clone())] for w, b in first]
    rules = [optimizer(p) for p in masters]
    sums = [[torch.zeros_like(p) for p in own] for own in masters]
    for k, one in enumerate(stream):
        there = [found.versions[s][reads(s, k)] for s in range(depth)]
        xs = [one["x"]]
        for w, b in there:
            xs.append(torch.tanh(xs[-1] @ w.T + b))
        found.losses.append(float((xs[-1] - one["t"]).square().mean()))
        back = 2 * (xs[-1] - one["t"]) / xs[-1].numel()
        grads = []
        for s in reversed(range(depth)):
            z = back * (1 - xs[s + 1] ** 2)
            grads.append((s, z.T @ xs[s], z.sum(0)))
            w, _ = found.versions[s][again(s, k)] if again else there[s]
            back = z @ w
        for s, dw, db in grads:
            sums[s][0] += dw
            sums[s][1] += db
            if (k + 1) % every[s] == 0 or k + 1 == len(stream):
                count = (k % every[s]) + 1
                for p, total in zip(masters[s], sums[s], strict=True):
                    p.grad = total / count
                rules[s].step()
                found.versions[s].append((masters[s][0].detach().clone(), masters[s][1].detach().clone()))
                sums[s] = [torch.zeros_like(p) for p in masters[s]]
    return found


def pipes_plan(graph: Graph, schedule: str, micro_batches: int, width: int = 1, f: int = 1, form: str = "") -> Plan:
    """One layer a stage, in 2f pipes; `width` ranks share the samples of a micro-batch."""
    own, stages = layers(graph), []
    cuts = by_samples(graph, "data") if width > 1 else {}
    for pipe in range(2 * f):
        for s, ops in enumerate(own):
            w = worker(len(own), f, pipe, s)
            mesh = Mesh(range(w * width, (w + 1) * width), ("data",), (width,))
            stages.append(Stage(ops, mesh, cuts, pipe=pipe))
    args: dict[str, int | str] = {"f": f, "form": form or "direct"} if schedule == "chimera" else {}
    return Plan(graph.digest, SAMPLES * micro_batches, tuple(stages), Schedule(schedule, micro_batches, args))
