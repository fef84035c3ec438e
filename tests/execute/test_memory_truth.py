"""The simulator's peak of plans that run op by op, against what the CPU allocator hands out on one rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meshwright.cluster import resolve as cluster_of
from meshwright.cost import Analytic
from meshwright.execute.ranks.device import hardware
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.ranks.worker import Context
from meshwright.execute.step.optimizer import AdamW
from meshwright.graph.source import ConfigSource, resolve
from meshwright.graph.zoo import Shrink
from meshwright.lower import lower, unrolled
from meshwright.plan.model import Plan
from meshwright.plan.problem import Problem, Recipe
from meshwright.simulate import simulate

from .layouts import Layout, plan_of

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from _allocated import Peak, Trial, measure, measured

LIMIT = 0.05


def peak_of(name: str, recompute: str, *, fused: bool = False) -> tuple[dict[str, float], Peak]:
    """(simulated bytes by category, what was allocated) of two micro-batches of two samples."""
    source = resolve(name)
    assert isinstance(source, ConfigSource)
    shrink = Shrink(blocks=4, width=128, heads=4, kv_heads=2, ffn=320, vocab=512, seq=128, dropout=0.0)
    graph = source.graph(2, 128, "float32", shrink=shrink)
    plan: Plan = plan_of(graph, Layout(recompute=recompute), 2)
    recipe = Recipe(plan.samples, compute_dtype="float32", fused=fused)
    lowered = lower(graph, plan, recipe)
    problem = Problem(graph, cluster_of("localx1"), Analytic(precision="float32"), recipe)
    said = simulate(problem, plan, program=lowered).peak_by[0]
    trial = Trial(unrolled(lowered, graph), graph, plan, source, 128, "float32", AdamW(), 2**18, shrink)
    (found,) = measured(lambda: [measure(Context(0, 1, hardware(), Groups()), trial)])
    told = {**said, "activations": said["activations"] + said["loss"], "workspace": said["buffers"]}
    return {c: told[c] for c in found.by}, found


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        ("llama-3.1-8b", "full"),
        *(pytest.param("llama-3.1-8b", how, marks=SLOW) for how in ("none", "light")),
        *(pytest.param("gpt2", how, marks=SLOW) for how in ("none", "light", "full")),
    ],
)
def test_the_simulated_peak_is_what_is_allocated(name: str, recompute: str) -> None:
    told, found = peak_of(name, recompute)
    assert sum(told.values()) == pytest.approx(found.total, rel=LIMIT)
    for category, nbytes in told.items():
        assert abs(nbytes - found.by[category]) <= LIMIT * found.total, (category, told, found.by)


def test_fused_kernels_would_keep_less_than_eager_torch_allocates() -> None:
    told, found = peak_of("llama-3.1-8b", "none", fused=True)
    assert told["activations"] < 0.9 * found.by["activations"]


def test_what_rests_is_counted_to_the_byte() -> None:
    told, found = peak_of("gpt2", "none")
    for category in ("weights", "gradients"):
        assert found.by[category] == pytest.approx(told[category], rel=1e-6)
