"""Three published steps of a source, drawn at random, calibrate our constants; its other steps are predicted.

Every source begins with constants that were fitted without it. Up to `ROWS` of its steps, evenly over them; the error is that
of the steps that were not drawn, mean over draws. Beside it: what taking off the median bias of the same three reaches, and
what sums over kinds of work say of the same draws, as the column "3 rows" of `validate` adds them instead of simulating; the
column also tells stacks of a source apart, which is not done here: a source that mixes stacks learns little.

    python benchmarks/bench_own_steps.py [--data FOLDER] [--draws N] [SOURCE …]

Gate: the median over sources falls, and by more than the median bias alone; sums and simulations agree within `AGREE`.
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

from meshwright.calibration.stack import Factors, Worth, learn, priors, slopes
from meshwright.graph.ir import Floats
from meshwright.plan.problem import Problem
from meshwright.simulate import simulate
from meshwright.simulate.several import seconds_by
from meshwright.validation.fit import prepare
from meshwright.validation.plans import Case, cost_of
from meshwright.validation.rows import Row, read
from meshwright.validation.score import constants_without, fitted
from meshwright.validation.worth import Stacks

ROWS, TAUGHT = 12, 3
AGREE = 0.005
Errors = tuple[float, float, float, float]
WORDS = ("before", "bias of 3", "3 learnt", "summed")


def price(cases: Sequence[Case], stacks: Stacks, factors: Factors) -> Floats:
    """Seconds of the cases as a stack that is slower by the factors takes."""
    found = []
    for c in cases:
        p = c.problem
        own = Problem(p.graph, p.cluster, cost_of(c.row, *stacks.tables(factors)), p.recipe)
        found.append(simulate(own, c.plan, program=c.program, detail=False).step_seconds)
    return np.array(found)


def at_once(cases: Sequence[Case], stacks: Stacks, several: Sequence[Factors]) -> Floats:
    """The same [case, factors] by several factors."""
    models = [[cost_of(c.row, *stacks.tables(f)) for f in several] for c in cases]
    return np.array([seconds_by(c.problem, c.plan, m, c.program) for c, m in zip(cases, models, strict=True)])


def mape(predicted: Floats, measured: Floats) -> float:
    return float(np.mean(np.abs(predicted / measured - 1)))


def calibrated(rows: Sequence[Row], source: str, draws: int) -> Errors:
    """Error of the rows: before, after the median bias of three, after three were learnt from, and the same by sums."""
    cases = prepare(rows)
    stacks, prior = Stacks(constants_without(source), cases), priors().get(source, priors()["all"])
    measured = np.array([c.row.seconds for c in cases])
    plain = price(cases, stacks, {})
    sums = Worth(plain, np.array([stacks.worth(c) for c in cases]))
    taken = random.Random(source)
    found = []
    for _ in range(draws):
        drawn = taken.sample(range(len(cases)), TAUGHT)
        rest = [k for k in range(len(cases)) if k not in drawn]
        bias = np.exp(np.median(np.log(plain[drawn] / measured[drawn])))
        own = [cases[k] for k in drawn]
        by = partial(slopes, partial(at_once, own, stacks))
        learnt = learn(partial(price, own, stacks), measured[drawn], prior, by).values
        taught = sums.of(drawn)
        summed = learn(taught.price, measured[drawn], prior, taught.slopes).values
        said = (
            plain[rest],
            plain[rest] / bias,
            price([cases[k] for k in rest], stacks, learnt),
            sums.of(rest).price(summed),
        )
        found.append([mape(seconds, measured[rest]) for seconds in said])
    before, biased, simulated, added = np.mean(found, axis=0)
    return float(before), float(biased), float(simulated), float(added)


def line(name: str, errors: Sequence[float]) -> str:
    return f"{name:30}" + "".join(f"{100 * x:10.1f} %" for x in errors)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MESHWRIGHT_DATA", "shared/data")))
    parser.add_argument("--draws", type=int, default=2)
    asked = parser.parse_args(arguments)
    if not (asked.data / "measured").is_dir():
        print(f"no measured steps in {asked.data}: nothing is compared")
        return 0
    rows = [r for r in read(asked.data).rows if not r.flags]
    names = asked.sources or [n for n in sorted({r.source for r in rows}) if n in fitted()]
    found = []
    print(f"{'source':24}{'steps':>6}" + "".join(f"{word:>12}" for word in WORDS))
    for name in names:
        own = [r for r in rows if r.source == name]
        own = own[:: -(-len(own) // ROWS)]
        if len(own) <= TAUGHT:
            continue
        found.append(calibrated(own, name, asked.draws))
        print(line(f"{name:24}{len(own):6}", found[-1]), flush=True)
    table = np.array(found)
    for word, over in (("mean", table.mean(axis=0)), ("median", np.median(table, axis=0))):
        print(line(f"{word} over sources", over))
    before, biased, learnt, summed = np.median(table, axis=0)
    kept = learnt < min(before, biased) and abs(summed - learnt) < AGREE
    print("met" if kept else "missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
