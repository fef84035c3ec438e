"""Small plans that choose how each op is cut, and how each parameter rests."""

from __future__ import annotations

from math import prod

from meshwright.cluster import Mesh
from meshwright.plan.model import Cut, Layout, OpSharding, Plan, Schedule, Stage, Storage
from meshwright.testing import mlp

GRAPH = mlp(3)
"""Stem, three equal blocks, head: five weights of one size."""
PARAMS = [t.name for t in GRAPH.params()]


def plan_of(
    cuts: dict[str, dict[str, str]], storage: dict[str, Storage] | None = None, shape: tuple[int, ...] = (2,)
) -> Plan:
    """`cuts`: per op, per factor its axes in one string: "x0 x1"."""
    shardings = {op: OpSharding({f: tuple(map(Cut, x.split())) for f, x in own.items()}) for op, own in cuts.items()}
    mesh = Mesh(range(prod(shape)), tuple(f"x{i}" for i in range(len(shape))), shape)
    stage = Stage(tuple(op.name for op in GRAPH.ops), mesh, shardings, storage=storage or {})
    return Plan(GRAPH.digest, 8, (stage,), Schedule("1f1b", 1))


def cut(*axes: str) -> Layout:
    """The first dim of a weight over these axes."""
    return Layout((((0, tuple(map(Cut, axes))),), ((0, ()),)))


def everywhere(factor: str, axes: str) -> dict[str, dict[str, str]]:
    return {op: {factor: axes} for op in ("stem/linear", "layers.0.fc/linear", "head/linear")}
