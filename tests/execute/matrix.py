"""Cells of the matrix, run: scaled-down models with what one process computes on them, made once; the checks of a cell.

verify          loss, every gradient, weights after one plain step, collectives counted
three steps     SGD with momentum: every weight as on one process; AdamW: every loss
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from execute.cells import FAMILY, Cell, degrees, layout_of, micro_batches_of
from execute.conftest import Model, Pools
from execute.jobs import Trained, Training
from execute.layouts import plan_of
from meshwright.execute.ops.params import Values
from meshwright.execute.ops.site import own_part
from meshwright.execute.proof.verification import (
    BUCKET,
    ROUNDING,
    Answer,
    compare,
    constants_of,
    load_values,
    loss_of,
    reference,
)
from meshwright.execute.ranks.mesh_groups import Groups, MeshView, ranks_of
from meshwright.execute.step.buckets import CAPACITY
from meshwright.execute.step.optimizer import SGD, AdamW
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.lower.program import Program
from meshwright.plan.model import Plan

SMALL = {
    "blocks": 2, "width": 32, "heads": 8, "kv_heads": 2, "ffn": 48, "vocab": 32, "seq": 8, "experts": 8, "image": 32,
}  # fmt: skip
"""Two key-value heads: fewer than the ranks of most layouts."""
STEPS = 3
RULES = {"momentum": SGD(lr=0.05, momentum=0.9), "adamw": AdamW(lr=1e-3)}
BUCKETS = {"momentum": BUCKET, "adamw": CAPACITY}
"""Bytes of gradients that are summed together: several sums a stage with the one rule, one with the other."""
WEIGHT_LIMIT = 1e-5
"""Of a weight after three steps, over the larger of its own largest element and one step's change."""
LOSS_LIMIT = 1e-4
"""Relative, of the losses under AdamW, whose first steps divide gradients by themselves."""


@dataclass(frozen=True)
class Truth:
    """What one process has after each step."""

    losses: tuple[tuple[float, ...], ...]
    weights: Mapping[str, Tensor]
    rounding: Mapping[str, float]
    """Of the weights, by the same steps in float64."""
    loss_rounding: float


@dataclass(frozen=True)
class Small:
    """A scaled-down family with its samples for three steps."""

    model: Model
    batches: tuple[tuple[Mapping[str, Tensor], ...], ...]


@cache
def small(family: str, samples: int, micro_batches: int) -> Small:
    source, shrink = resolve(family), Shrink(**{**SMALL, **FAMILY[family].sizes}, dropout=0.0)
    dtype = FAMILY[family].dtype
    graph = source.graph(samples, shrink.seq, dtype, shrink=shrink, cache=False)
    module, _ = source.build(samples, shrink.seq, dtype, device="cpu", shrink=shrink, attention="eager")
    generator = torch.Generator().manual_seed(0)
    batches = tuple(
        tuple(
            source.random_inputs(samples, shrink.seq, generator, shrink=shrink, dtype=dtype)
            for _ in range(micro_batches)
        )
        for _ in range(STEPS)
    )
    values = Values(0, "uneven")
    truth = reference(graph, module, batches[0], values)
    return Small(Model(graph, module, values, constants_of(graph, module), batches[0], truth), batches)


@cache
def truth_of(family: str, samples: int, micro_batches: int, optimizer: str) -> Truth:
    found = small(family, samples, micro_batches)
    load_values(found.model.graph, found.model.module, found.model.values)
    losses, weights = _steps(copy.deepcopy(found.model.module), found.batches, optimizer)
    rounding, loss_rounding = dict.fromkeys(weights, 0.0), 0.0
    try:
        exact_losses, exact = _steps(copy.deepcopy(found.model.module).double(), found.batches, optimizer)
    except RuntimeError:  # grouped products have no float64 form
        pass
    else:
        rounding = {name: float((w - exact[name]).abs().max()) for name, w in weights.items() if w.numel()}
        pairs = zip(losses, exact_losses, strict=True)
        loss_rounding = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    return Truth(losses, weights, rounding, loss_rounding)


def _steps(
    module: nn.Module, batches: Sequence[Sequence[Mapping[str, Tensor]]], optimizer: str
) -> tuple[tuple[tuple[float, ...], ...], dict[str, Tensor]]:
    wide = next(module.parameters()).dtype
    rule = RULES[optimizer](list(module.parameters()))
    found = []
    for batch in batches:
        rule.zero_grad()
        losses = []
        for one in batch:
            inputs = {k: x.to(wide) if x.is_floating_point() else x for k, x in one.items()}
            loss = loss_of(module(**inputs))
            (loss / len(batch)).backward()
            losses.append(float(loss.detach()))
        rule.step()
        found.append(tuple(losses))
    return tuple(found), {n: p.detach().clone() for n, p in module.named_parameters(remove_duplicate=False)}


# ------------------------------------------------------------------ a cell


def key_of(cell: Cell) -> tuple[str, int, int]:
    """(family, samples of a micro-batch, micro-batches): as many samples as the parts they are cut into."""
    n = degrees(cell)
    return cell.family, max(4, n.get("dp", 1) * n.get("ep", 1)), micro_batches_of(cell)


def plan_of_cell(cell: Cell) -> Plan:
    key = key_of(cell)
    return plan_of(small(*key).model.graph, layout_of(cell), key[2])


def problems(cell: Cell, pools: Pools) -> list[str]:
    """Whatever is not as on one process; empty if the cell runs right."""
    key, plan = key_of(cell), plan_of_cell(cell)
    own, rule = small(*key), cell.optimizer
    task = replace(own.model.task(plan), batch=(), bucket_bytes=BUCKETS[rule])
    answers: list[tuple[Answer, Trained]] = pools(cell.ranks).run(
        "execute.jobs:proven_and_trained", Training(task, RULES[rule], own.batches)
    )
    result = compare(task, own.model.truth, [answer for answer, _ in answers])
    found = [*result.problems, *result.not_verified]
    return found or differences(own.model, task.program, [after for _, after in answers], truth_of(*key, rule), rule)


def differences(model: Model, program: Program, answers: Sequence[Trained], truth: Truth, optimizer: str) -> list[str]:
    """Of three steps under `optimizer`: losses of all but the first, and weights under SGD, against one process."""
    found = []
    limit = LOSS_LIMIT * max(1.0, *(abs(x) for step in truth.losses for x in step)) + ROUNDING * truth.loss_rounding
    for rank, answer in enumerate(answers):
        for k, (got, want) in enumerate(zip(answer.losses, truth.losses[1:], strict=True), 1):
            found += [
                f"rank {rank}, step {k}: loss {a:.7g}, one process {b:.7g}"
                for a, b in zip(got, want if got else (), strict=True)
                if not abs(a - b) <= limit
            ]
    if not any(answer.losses[-1] for answer in answers):
        found.append("no rank computed a loss")
    if optimizer == "momentum":
        found += _weights(model, program, answers, truth)
    return found


def _weights(model: Model, program: Program, answers: Sequence[Trained], truth: Truth) -> list[str]:
    found, ranks = [], ranks_of(program)
    for code in program.stages:
        views = [MeshView(code.mesh, rank, ranks, Groups()) for rank in sorted({ranks[d] for d in code.mesh.devices})]
        for p in code.params:
            whole = truth.weights[p.name]
            if not whole.numel():
                continue
            before = model.values.whole(model.graph.tensor[p.name])
            size = max(float(whole.abs().max()), float((whole - before).abs().max()))
            limit = WEIGHT_LIMIT * size + ROUNDING * truth.rounding.get(p.name, 0.0)
            for view in views:
                got, want = answers[view.rank].weights[code.stage, p.name], own_part(whole, p.rest, view)
                if not want.numel():
                    continue
                error = float((got - want).abs().max()) if got.shape == want.shape else float("inf")
                if not error <= limit:
                    found.append(
                        f"rank {view.rank}: {p.name} after {STEPS} steps differs by {error:.1e}, limit {limit:.1e}"
                    )
    return found
