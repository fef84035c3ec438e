"""A captured model as a profile of each format: what is read is what was written, and the planner finds the same in both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.exporting import WRITTEN, asked, profile_text
from meshwright.formats import dapple, detect, dnn_partitioning, pipedream, piper
from meshwright.plan.problem import Problem
from meshwright.planners._tiers import tiers_of
from meshwright.planners.dapple import Dapple
from meshwright.planners.dnn_partitioning import DnnPartitioning
from meshwright.planners.pipedream import PipeDream
from meshwright.planners.piper import Piper
from meshwright.testing.tiny import mlp, problem_of


@pytest.fixture(scope="module")
def captured() -> Problem:
    return problem_of(mlp(6, width=1024, samples=64), "a100x4", samples=64)


def entries(text: str) -> list[str]:
    """Lines, or nodes, edges and fields, whose order says nothing; numbers to twelve digits."""
    if not text.startswith("{"):
        return text.splitlines()

    def rounded(value: object) -> object:
        if isinstance(value, float | int) and not isinstance(value, bool):
            return f"{value:.12g}"
        if isinstance(value, list):
            return [rounded(v) for v in value]
        return {k: rounded(v) for k, v in sorted(value.items())} if isinstance(value, dict) else value

    document = json.loads(text)
    rows = [row for key in ("nodes", "edges") for row in document.pop(key, [])]
    return [json.dumps(rounded(row)) for row in [*rows, document]]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_reads_the_same(captured: Problem, tmp_path: Path, name: str) -> None:
    file = tmp_path / "model"
    file.write_text(text := profile_text(captured, name, "mlp"))
    assert detect.format_of(file) == name
    problem = detect.read(file)
    again = {
        "dnn_partitioning": lambda: json.dumps(dnn_partitioning.write(problem)),
        "piper": lambda: json.dumps(piper.write(problem)),
        "pipedream": lambda: pipedream.write(problem),
        "dapple": lambda: json.dumps(dapple.write(problem, "mlp")),
    }[name]()
    assert sorted(entries(again)) == sorted(entries(text))
    (tmp_path / "twice").write_text(again)
    twice = detect.read(tmp_path / "twice")
    assert twice.graph.digest == problem.graph.digest


def test_the_same_optimum_through_each_format(captured: Problem, tmp_path: Path) -> None:
    file = tmp_path / "model"

    def read(name: str, **settings: object) -> Problem:
        file.write_text(profile_text(captured, name, "mlp"))
        return detect.read(file, **settings)

    direct, through = DnnPartitioning().plan(captured), DnnPartitioning().plan(read("dnn_partitioning"))
    assert through.objective == pytest.approx(direct.objective, rel=1e-9)
    tiers = tiers_of(captured.cluster, "test")
    levels = {"workers": tuple(t.count for t in tiers), "bandwidth": tuple(t.bandwidth for t in tiers)}
    for planner in (PipeDream(compression_ratio=1), PipeDream(cost="paper"), PipeDream(straight=True)):
        assert planner.plan(read("pipedream", **levels)).objective == pytest.approx(
            planner.plan(captured).objective, rel=1e-9
        )
    slow = captured.cluster.levels[-1].bandwidth
    given = read("dapple", workers=(4, 1), bandwidth=(captured.cluster.levels[0].bandwidth, slow))
    for dappled in (Dapple(collective_gain=1.0), Dapple(collective_gain=1.0, objective="paper", micro_batch=4)):
        found = dappled.plan(given).objective
        assert found == pytest.approx(dappled.plan(captured).objective, rel=0.5 if dappled.form == "paper" else 1e-9)
    # Nodes of this format are single ops, of which the captured model's layers are made: it can only cut more finely.
    finer = Piper(knapsack="exact").plan(read("piper"))
    whole = Piper(knapsack="exact", micro_batches=1, uneven=True).plan(captured)
    assert finer.objective <= whole.objective * (1 + 1e-9)


def test_what_is_asked_for_wrongly_is_refused() -> None:
    assert asked("piper=x.json") == ("piper", Path("x.json"))
    for text in ("x.json", "pipe=x.json", "piper="):
        with pytest.raises(InputError) as error:
            asked(text)
        assert str(error.value) == (
            f"--save-profile {text}: write FORMAT=FILE, such as piper=gpt2.json; formats are dnn_partitioning, piper, "
            "pipedream, dapple"
        )
