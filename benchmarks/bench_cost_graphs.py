"""Certified choices of recorded and built cost graphs, and Alpa's stage programme, in CPU seconds.

    python benchmarks/bench_cost_graphs.py FOLDER

FOLDER holds the public reference data (docs/data.md): autoparallel/*.npz and alpa-dp/*.npz. A second run of each counts:
kernels are compiled, nothing else is kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from meshwright.cost.stage_tables import StageTables
from meshwright.formats.detect import read
from meshwright.planners._options import options_of
from meshwright.solvers.certified import certified
from meshwright.solvers.message_passing import pass_messages
from meshwright.solvers.reductions import reduced
from meshwright.solvers.stage_programme import best_stages

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    call()
    began = time.process_time()
    found = call()
    return found, time.process_time() - began


def main(folder: Path) -> None:
    print(
        f"{'cost graph':16} {'nodes':>6} {'left':>6} {'sweeps':>6} {'reduce s':>9} {'pass s':>7} {'all s':>7}  optimum"
    )
    for path in sorted((folder / "autoparallel").glob("*.npz")):
        graph = options_of(read(path)).graph
        small, of_reduction = timed(lambda g=graph: reduced(g))  # type: ignore[misc]
        passed, of_messages = timed(lambda g=small.graph: pass_messages(g))  # type: ignore[misc]
        found, whole = timed(lambda g=graph: certified(g))  # type: ignore[misc]
        proof = "proved" if found.gap == 0 else f"gap {found.gap:.1e}"
        print(
            f"{path.stem:16} {len(graph.unary):6} {len(small.graph.unary):6} {passed.sweeps:6} {of_reduction:9.3f} "
            f"{of_messages:7.3f} {whole:7.3f}  {found.value:.4f} {proof}"
        )
    print(f"\n{'stage programme':16} {'layers':>6} {'devices':>7} {'t_max tried':>11} {'s':>7}  cost")
    for path in sorted((folder / "alpa-dp").glob("*.npz")):
        problem = read(path)
        cost = problem.cost
        assert isinstance(cost, StageTables)
        sizes = [n * m for n, m in cost.submeshes]
        found_stages, seconds = timed(
            lambda c=cost, s=sizes, p=problem: best_stages(c.seconds, c.following, s, p.cluster.count, p.recipe.samples)  # type: ignore[misc]
        )
        print(
            f"{path.stem:16} {cost.seconds.shape[0]:6} {problem.cluster.count:7} {found_stages.tried:11} {seconds:7.4f}  "
            f"{found_stages.cost:.8g}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
