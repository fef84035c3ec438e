"""PaSE's search on its own graphs against the seconds that the original program took on them.

python benchmarks/bench_pase.py [DATA]

Warm solve time is that of `plan` on a problem that is read and whose kernels are compiled: tables of prices, elimination,
plan. Gate: the published optimum, and a hundredth of the original's time where that is 10 s or more. The originals' times are
from a shared 2-core machine (that of inception3 on 32 and 64 devices a loaded one).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from meshwright.formats import pase
from meshwright.planners.pase import PaSE

HERE = Path(__file__).resolve().parent
LONG, TIMES = 10.0, 100.0
"""Seconds of the original from which on, and how many times faster, the search must be."""
ROWS: tuple[tuple[str, int, int, float | None], ...] = (
    ("alexnet", 4, 148215719552, 0.15), ("alexnet", 8, 97098296512, 0.24), ("alexnet", 16, 70320712672, 0.15),
    ("alexnet", 32, 53136349552, 2.4),
    ("rnnlm", 4, 6866837733376, 0.05), ("rnnlm", 8, 4024963186688, 0.08), ("rnnlm", 16, 2476066881536, 0.06),
    ("inception3", 4, 986757044608, 4.8), ("inception3", 8, 782140602432, 10.1), ("inception3", 32, 602425599824, 436.0),
    ("inception3", 64, 553203648656, 989.0),
    ("transformer", 4, 2189181321216, 7.3), ("transformer", 8, 1421082828800, 48.9), ("transformer", 16, 1004992614400, 624.0),
    ("resnet101", 4, 1718742247936, None), ("resnet101", 16, 1244493633088, None), ("resnet101", 32, 1086268826784, None),
)  # fmt: skip
"""(graph, devices, published optimum, seconds of the original)."""


def main(arguments: list[str]) -> int:
    default = os.environ.get("MESHWRIGHT_DATA", HERE.parent.parent / "shared" / "data")
    data = Path(arguments[0] if arguments else default)
    if not data.is_dir():
        print(f"no reference data in {data}: collect the public files that docs/data.md lists, set MESHWRIGHT_DATA")
        return 0
    missed = 0
    print(
        f"{'graph':<14}{'devices':>8}{'optimum flop':>18}{'M':>4}{'table':>10}{'original s':>12}{'here CPU s':>12}{'times':>8}"
    )
    for name, devices, optimum, original in ROWS:
        problem = pase.read(data / "pase" / f"{name}.json.gz", devices=devices)
        PaSE().plan(problem)
        start = time.process_time()
        result = PaSE().plan(problem)
        seconds = time.process_time() - start
        told = result.carry
        assert isinstance(told, dict)
        fast = original is None or original < LONG or seconds * TIMES <= original
        good = result.objective == optimum and result.status == "optimal" and fast
        missed += not good
        ratio = f"{original / max(seconds, 1e-4):.0f}" if original is not None else "–"
        print(
            f"{name:<14}{devices:>8}{result.objective:>18.0f}{told['largest_dependent_set']:>4}{told['largest_table']:>10}"
            f"{original if original is not None else '–':>12}{seconds:>12.3f}{ratio:>8}" + ("" if good else "  ✗")
        )
    print(f"{len(ROWS) - missed} of {len(ROWS)} meet optimum and time")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
