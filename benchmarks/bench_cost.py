"""One price at a time, as a search asks for it: CPU microseconds. Exit 1 when a limit is missed.

python benchmarks/bench_cost.py
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable

import numpy as np

from meshwright.cluster import Mesh, resolve
from meshwright.cost import Analytic, Group
from meshwright.graph.ir import Factor, Op, Rule

# What is measured -> limit in microseconds of CPU a call.
LIMITS = {
    "product, 1 shard": 15.0,
    "product, 1,000 shards": 400.0,
    "collective, known group": 10.0,
    "collective, new group of 2,048": 300.0,
    "resolve h100x100000": 5000.0,
}


def _linear(m: int, n: int, k: int) -> Op:
    rule = Rule(
        (Factor("m", m, samples=True), Factor("n", n), Factor("k", k)),
        ((("m",), ("k",)), (("n",), ("k",))),
        ((("m",), ("n",)),),
    )
    return Op("l", "linear", ("x", "w"), ("y",), rule, flops=2.0 * m * n * k)


def _microseconds(call: Callable[[], object], times: int) -> float:
    """Best of five runs of `times` calls."""
    call()
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(times):
            call()
        best = min(best, (time.process_time() - start) / times * 1e6)
    return best


def measure() -> dict[str, float]:
    model, cluster = Analytic(), resolve("h100x16384")
    device, op = cluster.types[0], _linear(8192, 14336, 4096)
    one = np.array([[8192, 14336, 4096]])
    many = np.repeat(one, 1000, axis=0)
    mesh = Mesh(range(16384), ("dp", "tp"), (2048, 8))
    group, size = Group(cluster, mesh, ("dp",)), np.array([1e8])
    return {
        "product, 1 shard": _microseconds(lambda: model.compute(op, one, device, "forward"), 2000),
        "product, 1,000 shards": _microseconds(lambda: model.compute(op, many, device, "forward"), 100),
        "collective, known group": _microseconds(lambda: model.collective("all_reduce", size, group), 2000),
        "collective, new group of 2,048": _microseconds(lambda: Analytic().collective("all_gather", size, group), 200),
        "resolve h100x100000": _microseconds(lambda: resolve("h100x100000"), 50),
    }


def main() -> int:
    print(f"cost model; {platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}")
    missed = 0
    for name, value in measure().items():
        missed += value > LIMITS[name]
        print(f"{name:<32} {value:9.1f} µs   limit {LIMITS[name]:7.1f}   {'missed' if value > LIMITS[name] else 'ok'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
