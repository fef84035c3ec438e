"""A small answered problem with hand-made figures, so that layout and wording can be checked without a search."""

from __future__ import annotations

import pytest
from hand_made import GIB, hopper, priced, simulation, small_graph, small_plan

from meshwright.report.outcome import Outcome, Question


@pytest.fixture
def outcome() -> Outcome:
    first = {"compute": 14.1, "all_gather": 0.6, "reduce_scatter": 0.5, "optimizer": 0.1, "idle": 0.3}
    memory = {"weights": 15.0, "gradients": 0.5, "optimizer": 1.4, "activations": 41.9, "loss": 3.3, "buffers": 1.0}
    graph = small_graph()
    question = Question(
        "llama-3.1-8b", graph, hopper(64), 1024, 8192, "bf16", "adamw", installed=79.6 * GIB, usable=71.6 * GIB
    )
    return Outcome(
        question,
        "ok",
        "grid",
        "optimal",
        evaluated=296,
        refused=41,
        seconds=6.3,
        candidates=(
            priced("dp64 z2", 15.6, 63.1),
            priced("dp64 z3", 15.9, 49.6),
            priced("dp32 pp2 z1", 16.6, 66.8, schedule="1f1b", micro_batches=32),
            priced("dp32 tp2 z1", 17.1, 47.6, micro_batches=32),
            priced("dp64 z1", 19.8, 53.7, recompute="full"),
        ),
        misses=(priced("dp64 z1", float("nan"), 92.5, over_bytes=20.9 * GIB, mfu=float("nan")),),
        plan=small_plan(),
        simulations=(
            simulation(15.6, first, memory),
            simulation(15.9, first | {"all_gather": 0.9}, memory | {"weights": 1.5}),
            simulation(16.6, first | {"bubble": 1.0}, memory, lanes=2),
            simulation(17.1, first | {"all_reduce": 1.5}, memory),
        ),
        family="h100",
        files={"plan.json": 14321, "report.html": 712000, "trace.json.gz": 912000, "problem.toml": 310},
        folder="llama-3.1-8b-h100x64",
    )
