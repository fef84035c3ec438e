"""Our step against torch's own DDP, fully_shard and parallelize_module: same model, layout, samples, optimizer.

Two ranks, one core and one thread each; both sides live in the same two processes and run in turns, one block each, the
order changing from block to block. The ratio of a block is that of the slower rank's seconds.

python benchmarks/bench_execute.py [ddp | fully_shard | tp | tp+sequence …] [--blocks N] [--layers N]

Gate: the 95 % interval of ours / theirs (bootstrap over blocks) reaches 1.05; losses agree; a step takes 200 ms or more.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "execute")]  # the ranks look here, too

from layouts import Layout, plan_of  # noqa: E402
from meshwright.execute.ranks.pool import Pool  # noqa: E402
from meshwright.graph.source import ConfigSource  # noqa: E402
from meshwright.lower import lower, unrolled  # noqa: E402
from meshwright.plan.problem import Recipe  # noqa: E402

GATE, LEAST_SECONDS, LOSSES_APART = 1.05, 0.2, 1e-4
RANKS = 2
MATCHES: Mapping[str, tuple[Layout, int]] = {
    "ddp": (Layout(dp=RANKS), RANKS),
    "fully_shard": (Layout(dp=RANKS, zero=3), RANKS),
    "tp": (Layout(tp=RANKS), 1),
    "tp+sequence": (Layout(tp=RANKS, sequence=True), 1),
}
"""Torch's side -> (our layout, samples a step)."""


def llama(layers: int) -> ConfigSource:
    """Grouped key-value heads, d = 512; transformers' own class."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": 512,
        "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1408, "vocab_size": 4096,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return ConfigSource("bench", "llama-bench", "config", config, RANKS, 512)


def interval(ours: np.ndarray, theirs: np.ndarray, draws: int = 10_000) -> tuple[float, float, float]:
    """(ratio of the means, 95 % interval) by bootstrap over blocks."""
    generator = np.random.default_rng(0)
    index = generator.integers(0, len(ours), (draws, len(ours)))
    ratios = ours[index].mean(axis=1) / theirs[index].mean(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(ours.mean() / theirs.mean()), float(low), float(high)


def words(calls: Counter[Any]) -> str:
    """ "all_reduce 3 (63.1 MB)"."""
    kinds: dict[str, list[float]] = {}
    for (kind, nbytes, _), n in calls.items():
        entry = kinds.setdefault(kind, [0, 0.0])
        entry[0] += n
        entry[1] += n * nbytes
    return " · ".join(f"{k} {n:g} ({b / 1e6:.1f} MB)" for k, (n, b) in sorted(kinds.items())) or "none"


def compare(pool: Pool, theirs: str, blocks: int, steps: int, layers: int, seq: int) -> bool:
    """Prints one comparison; False if a gate is missed."""
    from _sides import Match

    layout, samples = MATCHES[theirs]
    source = replace(llama(layers), batch=samples, seq=seq)
    graph = source.graph(samples, seq, "float32", cache=False)
    plan = plan_of(graph, layout, 1)
    program = unrolled(lower(graph, plan, Recipe(plan.samples, compute_dtype="float32")), graph)
    match = Match(theirs, program, graph, plan, source, seq, samples, blocks, steps)
    found = pool.run("_sides:play", match, timeout=1200)
    seconds = np.array([outcome.seconds for outcome in found]).max(axis=0)  # the slower rank of each block and side
    ours, their = seconds[:, 0], seconds[:, 1]
    ratio, low, high = interval(ours, their)
    apart = max(abs(a - b) / abs(b) for a, b in zip(*found[0].losses, strict=True))
    kept = low <= GATE and apart <= LOSSES_APART and min(ours.mean(), their.mean()) >= LEAST_SECONDS
    print(
        f"{theirs:12s} ours {1e3 * ours.mean():7.1f} ms  theirs {1e3 * their.mean():7.1f} ms  ratio {ratio:.3f} "
        f"[{low:.3f}, {high:.3f}]  gate ≤ {GATE}  {'met' if kept else 'missed'}   "
        f"{blocks} blocks of {steps}, losses apart {apart:.0e}"
    )
    for name, calls in zip(("ours", "theirs"), found[0].calls, strict=True):
        print(f"             {name:6s} collectives a step: {words(calls)}", flush=True)
    return kept


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("sides", nargs="*", default=list(MATCHES))
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq", type=int, default=512)
    asked = parser.parse_args(arguments)
    kept = True
    with Pool(RANKS, timeout=600) as pool:
        for side in asked.sides:
            kept &= compare(pool, side, asked.blocks, asked.steps, asked.layers, asked.seq)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
