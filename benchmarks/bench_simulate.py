"""How fast the simulator is, against its targets. Prints a table; exit 1 when a target is missed.

    python benchmarks/bench_simulate.py

CPU seconds of one thread (other load on the machine does not count), best of several runs, kernels compiled before.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from meshwright.lower import lower
from meshwright.plan.model import Schedule
from meshwright.simulate import Pricer, simulate
from meshwright.simulate.engine import as_task_graph, dispatch, relax, replay, topological
from meshwright.simulate.pipeline import orders, pipeline_times
from meshwright.simulate.tasks import chain, pipeline_tasks
from simulate.small import Rates, pipeline, problem
from simulate.small import chain as chain_graph

P, M, V = 64, 512, 4
"""523,264 tasks with sends."""


def best(run: Callable[[], object], times: int = 7) -> float:
    run()
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def machine() -> str:
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def rows() -> list[tuple[str, float, str, float, bool]]:
    """(what, figure, unit, target, more is better)."""
    schedule = Schedule("interleaved", M, {"v": V})
    rng = np.random.default_rng(0)
    seconds = rng.random((4, P * V)) + 0.5
    lag = np.full((P, V), 0.1)
    tasks = pipeline_tasks(orders(schedule, P * V), seconds, chain(P, V, lag, lag))
    n = tasks.fixed.tasks
    graph, order = as_task_graph(tasks.fixed), topological(tasks.fixed)
    per_rank = np.ascontiguousarray(seconds.reshape(4, V, P).transpose(0, 2, 1))
    # One micro-batch of one sample; the whole road from a plan.
    model = chain_graph(blocks=P * V, width=8)
    plan = pipeline(model, P, M, v=V, name="interleaved", samples=M)
    question = problem(model, P, Rates())
    folded = [pipeline(model, 16, 256, dp=d, samples=256 * d) for d in (1, 1024)]
    questions = [problem(model, 16 * d, Rates()) for d in (1, 1024)]
    one, many = (best(lambda q=q, f=f: simulate(q, f), 15) for q, f in zip(questions, folded, strict=True))
    program = lower(model, plan, question.recipe)
    pricer = Pricer(model, question.cluster, question.cost, question.recipe)
    warm = best(lambda: [pricer.stage(code, [1]) for code in program.stages]) / len(program.stages)
    return [
        ("event heap", n / best(lambda: dispatch(graph)) / 1e6, "M tasks/s", 5.0, True),
        ("relaxation", n / best(lambda: relax(tasks.fixed)) / 1e6, "M tasks/s", 40.0, True),
        ("replay of an order", n / best(lambda: replay(order, tasks.fixed.duration)) / 1e6, "M tasks/s", 40.0, True),
        (f"plan to seconds, {n:,} tasks", best(lambda: simulate(question, plan, detail=False), 3), "s", 0.5, False),
        ("1,024 replicas over one", many / one, "times", 1.1, False),
        ("a stage of priced blocks", warm * 1e6, "µs", 100.0, False),
        (
            "fast path, 32,768 actions",
            best(lambda: pipeline_times(Schedule("interleaved", 64, {"v": V}), per_rank[0], per_rank[1], lag, lag))
            * 1e3,
            "ms",
            5.0,
            False,
        ),
    ]


def main() -> int:
    print(f"bench_simulate   {machine()}")
    missed = 0
    for what, figure, unit, target, more in rows():
        good = figure >= target if more else figure <= target
        missed += not good
        print(f"  {'✓' if good else '✗'} {what:<36} {figure:10.3f} {unit:<10} target {'≥' if more else '≤'} {target:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
