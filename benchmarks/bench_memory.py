"""The simulator's peak per rank against what the CPU allocator really handed out, and against torch's own trackers.

Plans of a small Llama, two or four micro-batches, ops one by one (`Recipe.fused = False`), as the executor runs them on a
CPU. The model is a thousandth of a real one, and so are the buckets of gradients (256 KiB).

python benchmarks/bench_memory.py [--only "dp2 zero3"] [--rows]

Gate: total within 5 %, each category within 5 % of the total, on every rank.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "execute")]  # the ranks look here, too

from layouts import Layout, plan_of  # noqa: E402
from meshwright.cluster import resolve as cluster_of  # noqa: E402
from meshwright.cost import Analytic  # noqa: E402
from meshwright.execute.ranks.pool import Pool  # noqa: E402
from meshwright.execute.step.optimizer import AdamW  # noqa: E402
from meshwright.graph.source import ConfigSource  # noqa: E402
from meshwright.lower import lower, unrolled  # noqa: E402
from meshwright.plan.problem import Problem, Recipe  # noqa: E402
from meshwright.simulate import simulate  # noqa: E402

GATE = 0.05
CATEGORIES = ("weights", "gradients", "optimizer", "activations", "workspace")
BUCKET_BYTES = 2**18
RANKS = 2
SEQ, SAMPLES = 512, 2
"""Tokens a sample; samples of a micro-batch on each data-parallel rank."""
TRIALS: Sequence[tuple[Layout, int, str]] = (
    *((layout, 2, "float32") for layout in (
        Layout(), Layout(dp=2), Layout(dp=2, zero=1), Layout(dp=2, zero=2), Layout(dp=2, zero=3), Layout(tp=2),
        Layout(tp=2, sequence=True), Layout(recompute="light"), Layout(recompute="full"),
    )),
    (Layout(pp=2), 4, "float32"),
    (Layout(pp=2, recompute="full"), 4, "float32"),
    *((layout, 2, "bfloat16") for layout in (
        Layout(), Layout(dp=2, zero=3), Layout(tp=2, sequence=True), Layout(recompute="full"),
    )),
)  # fmt: skip
"""(layout, micro-batches, dtype)."""


def llama(layers: int) -> ConfigSource:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": 256,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 704, "vocab_size": 1024,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return ConfigSource("bench", "llama-bench", "config", config, SAMPLES, SEQ)


def simulated(by: Mapping[str, float]) -> dict[str, float]:
    """`Simulation.peak_by` in the benchmark's categories."""
    return {
        "weights": by["weights"],
        "gradients": by["gradients"],
        "optimizer": by["optimizer"],
        "activations": by["activations"] + by["loss"],
        "workspace": by["buffers"],
    }


def compared(name: str, told: Mapping[str, float], found: Mapping[str, float]) -> bool:
    """Prints a line; False if a gate is missed."""
    total, real = sum(told.values()), sum(found.values())
    off = {c: (told[c] - found.get(c, 0.0)) / real for c in CATEGORIES}
    worst = max(CATEGORIES, key=lambda c: abs(off[c]))
    kept = abs(total / real - 1) <= GATE and abs(off[worst]) <= GATE
    parts = "  ".join(f"{c} {told[c] / 1e6:.1f}/{found.get(c, 0.0) / 1e6:.1f}" for c in CATEGORIES)
    print(
        f"{name:38s} simulated {total / 1e6:6.1f} MB  real {real / 1e6:6.1f}  {total / real - 1:+6.1%}  "
        f"worst {off[worst]:+6.1%} {worst:11s} {'met' if kept else 'missed'}   {parts}",
        flush=True,
    )
    return kept


def main(arguments: Sequence[str]) -> int:
    from _allocated import Trial, measured

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument(
        "--rows", action="store_true", help="bytes before and most bytes during each action, large blocks"
    )
    parser.add_argument("--layers", type=int, default=6)
    asked = parser.parse_args(arguments)
    source, kept, pools = llama(asked.layers), True, dict[int, Pool]()
    told_of: dict[tuple[str, str], Mapping[str, float]] = {}
    try:
        for layout, m, dtype in TRIALS:
            if asked.only and asked.only not in f"{layout} {dtype}":
                continue
            graph = source.graph(SAMPLES * layout.dp, SEQ, dtype)
            plan = plan_of(graph, layout, m)
            recipe = Recipe(plan.samples, compute_dtype=dtype, fused=False)
            lowered = lower(graph, plan, recipe)
            problem = Problem(graph, cluster_of(f"localx{layout.ranks}"), Analytic(precision=dtype), recipe)
            said = simulate(problem, plan, program=lowered)
            if layout.ranks not in pools:
                pools[layout.ranks] = Pool(layout.ranks, timeout=300)
            trial = Trial(unrolled(lowered, graph), graph, plan, source, SEQ, dtype, AdamW(), BUCKET_BYTES)
            found = measured(partial(pools[layout.ranks].run, "_allocated:measure", trial, timeout=600))
            for rank, peak in enumerate(found):
                lane = next(k for k, x in enumerate(said.lanes) if x.first_device <= rank < x.first_device + x.devices)
                told = simulated(said.peak_by[lane])
                told_of.setdefault((str(layout), dtype), told)
                kept &= compared(f"{layout} {dtype} rank {rank} ({peak.during})", told, peak.by)
                if asked.rows:
                    print(*peak.rows, *peak.largest, sep="\n    ")
    finally:
        for pool in pools.values():
            pool.close()
    return 0 if kept & _against_trackers(source, told_of) else 1


def _against_trackers(source: ConfigSource, told_of: Mapping[tuple[str, str], Mapping[str, float]]) -> bool:
    """torch's trackers follow the user's eager module; sharded, with torch's own order of gathers."""
    from _trackers import one_device, sharded

    kept = True
    if told := told_of.get((str(Layout()), "float32")):
        kept &= compared("MemTracker float32", told, one_device(source, SAMPLES, SEQ, "float32"))
    if (str(Layout()), "bfloat16") in told_of:
        # a module in bfloat16 has no masters: gradients and state are in its own dtype
        half = {"compute_dtype": "bfloat16", "grad_dtype": "bfloat16", "param_dtype": "bfloat16"}
        graph = source.graph(SAMPLES, SEQ, "bfloat16")
        recipe = Recipe(2 * SAMPLES, state_bytes=4.0, fused=False, **half)
        problem = Problem(graph, cluster_of("localx1"), Analytic(precision="bfloat16"), recipe)
        told = simulated(simulate(problem, plan_of(graph, Layout(), 2)).peak_by[0])
        kept &= compared("MemTracker bfloat16", told, one_device(source, SAMPLES, SEQ, "bfloat16"))
    if told := told_of.get((str(Layout(dp=2, zero=3)), "float32")):
        kept &= compared("FSDPMemTracker dp2 float32", told, sharded(source, SAMPLES, SEQ, "float32", RANKS))
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
