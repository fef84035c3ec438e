"""Does the calibrated `local` profile order plans as running them does?

A small GPT on four ranks of this machine, in every layout of the grid but with zero-bubble schedules: a backward in two parts
runs op by op in our runtime, at a price that a profile does not know. The plans are drawn by seed, before anything is measured, from those within twice
the best predicted step; all of them live in the same ranks and run in turns, one step each a round, in an order that changes.

    python benchmarks/bench_calibrate.py [--profile FILE] [--plans N] [--rounds N] [--seed N] [--json FILE]

Without --profile this machine is measured first. Gate: of the pairs that are more than 8 % apart, nine in ten are in the
right order, and the plan predicted fastest is at most 5 % slower than the fastest measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]  # the ranks look here, too

from meshwright.calibration import Profile, load  # noqa: E402
from meshwright.calibration.measure import measure  # noqa: E402
from meshwright.errors import InputError, Unsupported  # noqa: E402
from meshwright.execute.ranks.pool import Pool  # noqa: E402
from meshwright.execute.training.samples import Samples  # noqa: E402
from meshwright.execute.training.trainer import Setup  # noqa: E402
from meshwright.execute.training.training import prepare  # noqa: E402
from meshwright.graph.source import ConfigSource  # noqa: E402
from meshwright.graph.zoo.gpt import config  # noqa: E402
from meshwright.plan.problem import Problem, Recipe  # noqa: E402
from meshwright.planners.grid import Grid  # noqa: E402
from meshwright.planners.types import Considered  # noqa: E402

RANKS, LAYERS, WIDTH, HEADS, SEQ, VOCABULARY, BATCH = 4, 8, 256, 4, 128, 2048, 16
WITHIN = 2.0
"""Plans are drawn from those that are predicted to take at most so many times the best."""
APART, ORDERED, REGRET = 1.08, 0.90, 0.05
WARM_UP = 2
SCHEDULES = ("1f1b", "gpipe", "interleaved", "bfs")


@dataclass
class Drawn:
    words: str
    predicted: float
    setup: Setup
    samples: Samples


def source() -> ConfigSource:
    return ConfigSource("small-gpt", "small-gpt", "config", config(LAYERS, WIDTH, HEADS, SEQ, VOCABULARY), BATCH, SEQ)


def problem(profile: Profile) -> Problem:
    """As our runtime trains it on CPUs: float32, op by op."""
    assert profile.local is not None
    recipe = Recipe(BATCH, compute_dtype="float32", fused=False)
    graph = source().graph(2, SEQ, "float32")
    return Problem(graph, profile.local.cluster(RANKS), profile.cost("float32"), recipe)


def drawn(asked: Problem, count: int, seed: int) -> list[Drawn]:
    """Plans that can run, by their predicted step; drawn among all within `WITHIN` of the best, before anything is measured."""
    result = Grid(top=100_000, prune=False, allow={"schedule": SCHEDULES}).plan(asked)
    near = [c for c in result.considered if c.objective <= WITHIN * result.considered[0].objective]
    random.Random(seed).shuffle(near)
    found: list[Drawn] = []
    refused = 0
    for c in near:
        if len(found) == count:
            break
        try:
            setup, samples, _ = prepare(c.plan(), source(), seq=SEQ, seed=0)
        except (Unsupported, InputError):  # priced, but not run: `docs/refusals.md`
            refused += 1
            continue
        found.append(Drawn(_words(c), c.objective, setup, samples))
        print(f"  {len(found)} of {count} drawn: {found[-1].words}", file=sys.stderr, flush=True)
    print(
        f"{len(result.considered)} plans priced, {len(near)} within {WITHIN:g} of the best; {len(found)} drawn by seed {seed}, "
        f"{refused} more drawn that cannot run"
    )
    return sorted(found, key=lambda d: d.predicted)


def _words(c: Considered) -> str:
    recompute = "" if c.recompute == "none" else f" recompute {c.recompute}"
    return f"{c.layout} {c.micro_batch} x {c.micro_batches}{' ' + c.schedule if c.schedule else ''}{recompute}"


def run(plans: Sequence[Drawn], rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [round, plan] of the slowest rank, and seconds of all ranks on the cores."""
    seconds, used = np.zeros((2, rounds, len(plans)))
    order = random.Random(seed)
    losses: dict[int, set[float]] = {}
    with Pool(RANKS, timeout=600) as pool:
        for k, d in enumerate(plans):
            pool.run("_many_plans:start", (k, d.setup), timeout=1200)
        for round_ in range(-WARM_UP, rounds):
            turn = list(range(len(plans)))
            order.shuffle(turn)
            for k in turn:
                found = pool.run("_many_plans:step", (k, plans[k].samples.batch(round_ + WARM_UP)), timeout=600)
                losses.setdefault(round_, set()).add(round(found[0][2], 3))
                if round_ >= 0:
                    seconds[round_, k] = max(f[0] for f in found)
                    used[round_, k] = sum(f[1] for f in found)
    apart = max(max(found) - min(found) for found in losses.values())
    print(f"losses of all plans agree within {apart:.3f}: they compute the same steps")
    return seconds, used


def judged(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, int, float]:
    """(share of pairs in the right order of those that are apart, their number, regret)."""
    pairs = [
        (predicted[i] < predicted[j]) == (measured[i] < measured[j])
        for i, j in combinations(range(len(measured)), 2)
        if max(measured[i] / measured[j], measured[j] / measured[i]) > APART
    ]
    share = float(np.mean(pairs)) if pairs else 1.0
    return share, len(pairs), float(measured[int(np.argmin(predicted))] / measured.min() - 1.0)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--plans", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before")
    profile = load(asked.profile) if asked.profile else measure(ranks=RANKS)
    plans = drawn(problem(profile), asked.plans, asked.seed)
    seconds, used = run(plans, asked.rounds, asked.seed)
    low, measured, high = np.percentile(seconds, (25, 50, 75), axis=0)
    predicted = np.array([d.predicted for d in plans])
    print(f"{'plan':44}{'predicted s':>12}{'measured s':>12}{'spread':>8}{'off by':>8}{'core s':>8}")
    for k, d in enumerate(plans):
        spread, off = (high[k] - low[k]) / 2 / measured[k], predicted[k] / measured[k] - 1
        print(
            f"{d.words:44}{predicted[k]:12.3f}{measured[k]:12.3f}{100 * spread:6.1f} %{100 * off:+6.1f} %"
            f"{np.median(used[:, k]):8.2f}"
        )
    share, pairs, regret = judged(predicted, measured)
    kept = share >= ORDERED and regret <= REGRET
    print(
        f"{100 * share:.1f} % of {pairs} pairs more than {100 * (APART - 1):.0f} % apart in order (gate {100 * ORDERED:.0f}), "
        f"regret {100 * regret:.1f} % (gate {100 * REGRET:.0f}); {asked.rounds} rounds, load {os.getloadavg()[0]:.1f} after: "
        f"{'met' if kept else 'missed'}"
    )
    if asked.json:
        rows: list[dict[str, Any]] = [
            {
                "plan": d.words,
                "predicted_s": d.predicted,
                "measured_s": seconds[:, k].tolist(),
                "core_s": used[:, k].tolist(),
            }
            for k, d in enumerate(plans)
        ]
        asked.json.write_text(json.dumps({"plans": rows, "ordered": share, "pairs": pairs, "regret": regret}), "utf-8")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
