"""Every model of the zoo at full size, planned on six kinds of machine and exported to every target and version: what is planned
has an answer, what is written reads back at its price, and what the table of levels calls exact is written exactly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from export.answered import Prices, answers, check
from export.test_levels import TABLE, TARGETS
from meshwright.cluster import resolve as cluster_of
from meshwright.export.base import Exporter
from meshwright.export.outcome import Exported
from meshwright.export.registry import load, names
from meshwright.export.setup import Setup, setup_of
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve as model_of
from meshwright.graph.zoo import by_name, entries
from meshwright.planners.grid import Grid
from meshwright.request import Request
from meshwright.stated import CAPTURED_SAMPLES, PRECISIONS, problem_of

PRESETS = ("v100", "a100", "h100", "b200", "mi300x", "tpu-v5p")
BYTES, FREE = 20, 0.5
"""A parameter with its gradient and its moments takes about so many bytes; so much of a device is left to activations."""
TOP = 4
TRIES = 3
"""Times that the devices are doubled where activations take more than is left to them."""


def devices(name: str, preset: str) -> int:
    """As many as the model needs at least, in powers of two from 16."""
    memory = cluster_of(f"{preset}x16").types[0].memory
    n = 16
    while BYTES * by_name()[name].parameters > n * memory * (1 - FREE):
        n *= 2
    return n


@cache
def exporters() -> dict[str, Exporter]:
    """All versions of all targets."""
    return {f"{name}@{v}": load(f"{name}@{v}") for name in names() for v in type(load(name)).versions}


def planned(name: str) -> Iterator[list[Setup]]:
    """Per machine the fastest plans that fit, on those machines that have any."""
    source = model_of(name)
    request = Request(name)
    graph: Graph = source.graph(batch=CAPTURED_SAMPLES, seq=source.default_seq, dtype=PRECISIONS[request.precision])
    for preset in PRESETS:
        n = devices(name, preset)
        for _ in range(TRIES):
            problem = problem_of(request, graph, cluster_of(f"{preset}x{n}"), source.default_batch)
            fits = (c.plan for c in Grid(top=TOP).plan(problem).considered if c.over == 0)
            found = [setup_of(problem, plan(), name) for plan in fits if plan is not None]
            if found:
                yield found
                break
            n *= 2


def rows_of(setup: Setup) -> list[str]:
    """Rows of the table of levels that a plan has; "" for what no row has."""
    p, m = setup.point, setup.layout.micro_batches
    found = []
    cut = p.replicas * p.cp > 1
    if p.pp > 1:
        found.append({0: "pipeline", 1: "pipeline + ZeRO 1"}.get(p.zero, ""))
        found.append("chunks" if p.chunks > 1 else "")
        found.append("uneven stages" if len({len(s.layers) for s in setup.shares}) > 1 else "pipeline")
        if p.schedule not in ("1f1b", "interleaved"):
            found.append(f"schedule {p.schedule}")
    elif cut:
        several = "several micro-batches" if m > 1 else "one micro-batch"
        groups = "ZeRO 3 in groups (hybrid)" if p.replicate > 1 else "ZeRO 3"
        found.append({0: "data parallelism", 1: "ZeRO 1", 2: f"ZeRO 2, {several}"}.get(p.zero, groups))
        found += ["ZeRO 3, gathered once"] * (not p.reshard)
    if p.tp > 1:
        found.append("tensor + ZeRO 3" if p.zero == 3 else "tensor")
        found.append(
            {0: "tensor + sequence", 1: "tensor + sequence + ZeRO 1"}.get(p.zero, "") if p.sequence else "tensor"
        )
    if p.cp > 1:
        found.append({"gather": "context, gathered", "ulysses": "context, by heads"}.get(p.context, ""))
    if p.ep > 1:
        found.append("experts + ZeRO 3" if p.zero == 3 else "experts")
    if p.recompute != "none":
        words = {"full": "recompute all", "attention": "recompute attention", "light": "recompute light ops"}
        found.append("recompute first layers" if p.recompute.startswith("first:") else words.get(p.recompute, ""))
    return found


def is_exact_by_the_table(target: str, setup: Setup) -> bool:
    """Whether the table calls all that a plan says exact; where a target cannot recompute nothing, no row says that it does."""
    if setup.point.recompute == "none" and load(target).least_again != "none":
        return False
    return all(row in TABLE and TABLE[row][TARGETS.index(target)] == "E" for row in rows_of(setup))


def check_level(target: str, found: Exported) -> None:
    """Exact where the table says so, unless the model is none of the target's, has stages that end between its layers, or breaks
    a condition."""
    if found.level == "exact" or found.broken or not is_exact_by_the_table(target, found.setup):
        return
    words = {s.word for s in found.said if s.level != "exact"}
    assert words <= {"model", "stages"}, (target, found.setup.point, words, found.sentences)


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_every_plan_of_a_model_has_an_answer_from_every_target(name: str) -> None:
    machines = 0
    for setups in planned(name):
        machines, prices = machines + 1, Prices()
        for setup in setups:
            for target, exporter in exporters().items():
                first, *lossy = answers(exporter, setup)
                check_level(target if target in TARGETS else exporter.name, first)
                for found in (first, *lossy):
                    check(found, prices)
    assert machines >= len(PRESETS) - 1
