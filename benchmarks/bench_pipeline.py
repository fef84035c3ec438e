"""Exact pipeline planners against the CPU seconds that the originals took on their own public inputs.

python benchmarks/bench_pipeline.py [DATA]

Warm solve time: everything is read and compiled before. Gate per input: at most the original's time, a tenth of it where
the original takes 10 s or more, for PipeDream's optimizer a hundredth; 0.1 s or less counts as equal. Exit 1 when any is missed, or a value is not the published
one. The originals' times are from a loaded 2-core machine (`expected.json` of each data folder), so a yardstick is printed:
seconds that a fixed loop takes here.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from math import isnan, nan
from pathlib import Path
from typing import Any

from meshwright.formats import dapple, dnn_partitioning, pipedream, piper
from meshwright.plan.problem import Problem
from meshwright.planners import Planner
from meshwright.planners._dapple_states import sums_of
from meshwright.planners.dapple import Dapple
from meshwright.planners.dnn_partitioning import DnnPartitioning
from meshwright.planners.pipedream import PipeDream
from meshwright.planners.piper import Piper

GIB = 2.0**30
EQUAL = 0.1
"""Seconds below which times count as equal."""
LONG = 10.0
"""Seconds of the original from which on a tenth is asked for."""
SAME = 1e-6
HERE = Path(__file__).resolve().parent


def yardstick() -> float:
    """Seconds of ten million additions in this interpreter, for comparing machines."""
    start = time.process_time()
    total = 0
    for i in range(10_000_000):
        total += i
    return time.process_time() - start


PIPEDREAM = (
    ("alexnet", "4", "1e9", 0.034217141, 0.5),
    ("vgg16", "4", "1e9", 0.205520896, 0.5),
    ("squeezenet1_0", "16", "1.25e9", 0.018771693, 0.5),
    ("gnmt", "16", "1.25e9", 0.017125, 42.0),
    ("resnet50", "4x4", "1e10,1.25e9", 0.043208469, 236.0),
    ("resnext50", "8x2", "1e10,1.25e9", nan, 909.0),
)
"""(profile, workers, bytes/s of each level, seconds a mini-batch or nan, CPU s of the original), ratio 1."""
DAPPLE = (
    ("xlnet-36", 128, 1, "8x2", 14.816194281),
    ("xlnet-36", 128, 1, "1x16", 11.934934544),
    ("bert-48", 64, 2, "8x2", 12.337061635),
    ("bert-48", 64, 2, "1x16", 9.734807991),
    ("vgg-19", 2048, 32, "8x2", 12.062334069),
    ("amoeba-36", 128, 1, "8x2", 11.875863950),
    ("amoeba-36", 128, 1, "1x16", 8.108117854),
)
"""(profile, samples of a step, of a micro-batch, GPUs x servers, speed-up over one device)."""
DAPPLE_SECONDS = 1.0
"""The least that the original took; its runs are given as 1 to 20 s."""
TIMES = {"pipedream": 100.0}
"""Planner -> how many times faster than its original, where that takes `LONG` or more; else 10."""


def cases(data: Path) -> list[tuple[str, Planner, Problem, float | None, float | None]]:
    """(name, planner, problem, published value (None: infeasible, nan: none given), CPU seconds of the original or None)."""
    found: list[tuple[str, Planner, Problem, float | None, float | None]] = []
    for model, workers, rates, value, seconds in PIPEDREAM:
        given = pipedream.read(data / "pipedream" / f"{model}.graph.txt", workers=workers, bandwidth=rates)
        found.append((f"pipedream {model} {workers}", PipeDream(compression_ratio=1.0), given, value, seconds))
    for model, batch, micro, workers, gain in DAPPLE:
        given = dapple.read(data / "dapple" / "states.json", profile=model, batch=batch, workers=workers)
        least = sums_of(given).total / gain
        found.append((f"dapple {model} {workers}", Dapple(micro_batch=micro), given, least, DAPPLE_SECONDS))
    rows: Any = json.loads((data / "piper" / "expected.json").read_text())["rows"]
    for row in rows:
        given = piper.read(
            data / "piper" / f"{row['graph']}.json", devices=row["K"], memory=row["M_GiB"] * GIB, bandwidth=25 * GIB,
            micro_batches=row["N"],
        )  # fmt: skip
        name = f"piper {row['graph']} K={row['K']} M={row['M_GiB']} N={row['N']}"
        found.append((name, Piper(), given, row["tps"], row.get("cpu_s_original")))
    expected: Any = json.loads((data / "dnn-partitioning" / "expected.json").read_text())
    for kind, value, seconds in (
        ("throughput", "dp", "dp_cpu_s_original"), ("latency", "dp_max_load", "dp_cpu_s_original"),
    ):  # fmt: skip
        for row in expected[kind]:
            path = data / "dnn-partitioning" / kind / f"{row['input']}.json"
            given = dnn_partitioning.read(path if path.exists() else path.with_name(path.name + ".xz"))
            found.append(
                (f"dnn_partitioning {kind} {row['input']}", DnnPartitioning(), given, row[value], row.get(seconds))
            )
    return found


def main(arguments: list[str]) -> int:
    default = os.environ.get("MESHWRIGHT_DATA", HERE.parent.parent / "shared" / "data")
    data = Path(arguments[0] if arguments else default)
    if not data.is_dir():
        print(f"no reference data in {data}: collect the public files that docs/data.md lists, set MESHWRIGHT_DATA")
        return 0
    all_cases = cases(data)
    print(f"yardstick {yardstick():.2f} s for ten million additions")
    # One input of each graph compiles every kernel that the table times.
    first = {planner.info.name: (planner, given) for _, planner, given, _, _ in reversed(all_cases)}
    for planner, given in [*first.values(), *((planner, given) for _, planner, given, _, _ in all_cases[-3:])]:
        planner.plan(given)
    missed = 0
    print(f"{'input':<52}{'value':>16}{'original s':>12}{'here s':>10}{'times':>9}{'peak MiB':>10}")
    for name, planner, given, published, original in all_cases:
        start = time.process_time()
        result = planner.plan(given)
        seconds = time.process_time() - start
        value = result.objective if result.plan is not None else None
        agrees = (value is None) == (published is None) and (
            value is None or published is None or isnan(published) or value <= published * (1 + SAME)
        )
        faster = TIMES.get(planner.info.name, 10.0) if original is not None and original >= LONG else 1.0
        allowed = None if original is None else max(EQUAL, original / faster)
        good = agrees and (allowed is None or seconds <= allowed)
        missed += not good
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        shown = f"{value:.8g}" if value is not None else "infeasible"
        ratio = f"{original / max(seconds, 1e-4):.0f}" if original is not None else "–"
        print(
            f"{name:<52}{shown:>16}{original if original is not None else '–':>12}{seconds:>10.3f}{ratio:>9}{peak:>10.0f}"
            + ("" if good else "  ✗ " + ("too slow" if agrees else f"published {published}"))
        )
    print(f"{len(all_cases) - missed} of {len(all_cases)} inputs meet value and time")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
