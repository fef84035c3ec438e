"""Three published steps of a source, drawn at random, calibrate our constants; its other steps are predicted.

Every source begins with constants that were fitted without it. Up to `ROWS` of its steps, evenly over them; the error is that
of the steps that were not drawn, mean over draws. Beside it: what taking off the median bias of the same three reaches.

    python benchmarks/bench_own_steps.py [--data FOLDER] [--draws N] [SOURCE …]

Gate: the median over sources falls, and by more than the median bias alone.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from meshwright.calibration.profile import with_constants
from meshwright.calibration.stack import Factors, learn, slower
from meshwright.graph.ir import Floats
from meshwright.validation.fit import predict, prepare
from meshwright.validation.parameters import tables
from meshwright.validation.plans import Case, cost_of
from meshwright.validation.rows import Row, read
from meshwright.validation.score import fitted

ROWS, TAUGHT = 12, 3


def price(cases: Sequence[Case], source: str, factors: Factors) -> Floats:
    """Seconds of the cases by the constants fitted without `source`, changed by factors."""
    from meshwright.plan.problem import Problem
    from meshwright.simulate import simulate

    plain_families, plain_software = tables(fitted().get(source, fitted()["all"]))
    used = {c.problem.cluster.types[0].family for c in cases}
    families = {k: with_constants(f, slower(f, factors)) if k in used else f for k, f in plain_families.items()}
    software = {k: with_constants(s, slower(s, factors)) for k, s in plain_software.items()}
    found = []
    for c in cases:
        p = c.problem
        own = Problem(p.graph, p.cluster, cost_of(c.row, families, software), p.recipe)
        found.append(simulate(own, c.plan, program=c.program, detail=False).step_seconds)
    return np.array(found)


def mape(predicted: Floats, measured: Floats) -> float:
    return float(np.mean(np.abs(predicted / measured - 1)))


def calibrated(rows: Sequence[Row], source: str, draws: int) -> tuple[float, float, float]:
    """(error of the rows, after the median bias of three, after three were learnt from)."""
    cases = prepare(rows)
    measured = np.array([c.row.seconds for c in cases])
    plain = predict(cases, fitted().get(source, fitted()["all"]))
    taken = random.Random(source)
    before, biased, learnt = [], [], []
    for _ in range(draws):
        drawn = taken.sample(range(len(cases)), TAUGHT)
        rest = [k for k in range(len(cases)) if k not in drawn]
        before.append(mape(plain[rest], measured[rest]))
        bias = np.exp(np.median(np.log(plain[drawn] / measured[drawn])))
        biased.append(mape(plain[rest] / bias, measured[rest]))
        found = learn(partial(price, [cases[k] for k in drawn], source), measured[drawn])
        learnt.append(mape(price([cases[k] for k in rest], source, found.values), measured[rest]))
    return float(np.mean(before)), float(np.mean(biased)), float(np.mean(learnt))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MESHWRIGHT_DATA", "shared/data")))
    parser.add_argument("--draws", type=int, default=3)
    asked = parser.parse_args(arguments)
    if not (asked.data / "measured").is_dir():
        print(f"no measured steps in {asked.data}: nothing is compared")
        return 0
    rows = [r for r in read(asked.data).rows if not r.flags]
    names = asked.sources or [n for n in sorted({r.source for r in rows}) if n in fitted()]
    found = []
    print(f"{'source':24}{'steps':>6}{'before':>9}{'bias of 3':>11}{'3 learnt':>10}")
    for name in names:
        own = [r for r in rows if r.source == name]
        own = own[:: -(-len(own) // ROWS)]
        if len(own) <= TAUGHT:
            continue
        found.append(calibrated(own, name, asked.draws))
        print(
            f"{name:24}{len(own):6}"
            + "".join(f"{100 * x:{w}.1f} %" for x, w in zip(found[-1], (7, 9, 8), strict=True)),
            flush=True,
        )
    table = np.array(found)
    for word, over in (("mean", table.mean(axis=0)), ("median", np.median(table, axis=0))):
        print(
            f"{word + ' over sources':30}"
            + "".join(f"{100 * x:{w}.1f} %" for x, w in zip(over, (7, 9, 8), strict=True))
        )
    before, biased, learnt = np.median(table, axis=0)
    kept = learnt < min(before, biased)
    print("met" if kept else "missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
