"""The simulator's peak per rank against what the CPU allocator really handed out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "execute")]  # the ranks look here, too

from layouts import Layout, plan_of  # noqa: E402

from meshwright.cluster import resolve as cluster_of  # noqa: E402
from meshwright.cost import Analytic  # noqa: E402
from meshwright.execute.optimizer import AdamW  # noqa: E402
from meshwright.execute.pool import Pool  # noqa: E402
from meshwright.graph.source import ConfigSource  # noqa: E402
from meshwright.lower import lower, unrolled  # noqa: E402
from meshwright.plan.problem import Problem, Recipe  # noqa: E402
from meshwright.simulate import simulate  # noqa: E402

LAYOUTS = [
    (Layout(), 2),
    (Layout(dp=2), 2),
    (Layout(dp=2, zero=1), 2),
    (Layout(dp=2, zero=2), 2),
    (Layout(dp=2, zero=3), 2),
    (Layout(tp=2), 2),
    (Layout(tp=2, sequence=True), 2),
    (Layout(recompute="light"), 2),
    (Layout(recompute="full"), 2),
    (Layout(pp=2), 4),
    (Layout(pp=2, recompute="full"), 4),
    (Layout(dp=2, tp=2), 2),
]


def llama(layers: int) -> ConfigSource:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": 256,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 704, "vocab_size": 1024,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    return ConfigSource("bench", "llama-bench", "config", config, 2, 512)


def main(arguments: Sequence[str]) -> int:
    from _allocated import CATEGORIES, Trial

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--largest", type=int, default=0)
    parser.add_argument("--seq", type=int, default=256)
    asked = parser.parse_args(arguments)
    source, dtype, seq = llama(6), asked.dtype, asked.seq
    pools: dict[int, Pool] = {}
    for layout, m in LAYOUTS:
        if asked.only and asked.only != str(layout):
            continue
        samples = 2 * layout.dp
        graph = source.graph(samples, seq, dtype)
        plan = plan_of(graph, layout, m)
        recipe = Recipe(plan.samples, compute_dtype=dtype, fused=False)
        lowered = lower(graph, plan, recipe)
        program = unrolled(lowered, graph)
        problem = Problem(graph, cluster_of(f"localx{layout.ranks}"), Analytic(precision=dtype), recipe)
        said = simulate(problem, plan, program=lowered)
        if layout.ranks not in pools:
            pools[layout.ranks] = Pool(layout.ranks, timeout=300)
        found = pools[layout.ranks].run("_allocated:measure", Trial(program, graph, plan, source, seq, dtype, AdamW(), 2**20))
        for rank, peak in enumerate(found):
            lane = next(k for k, x in enumerate(said.lanes) if x.first_device <= rank < x.first_device + x.devices)
            by = dict(said.peak_by[lane])
            told = {
                "weights": by["weights"], "gradients": by["gradients"], "optimizer": by["optimizer"],
                "activations": by["activations"] + by["loss"], "workspace": by["buffers"],
            }
            total = sum(told.values())
            print(f"{layout!s:24s} rank {rank} at {peak.during:7s} simulated {total / 1e6:7.2f} MB real {peak.total / 1e6:7.2f} off {total / peak.total - 1:+.1%}  " +
                " ".join(f"{c} {told[c] / 1e6:.1f}/{peak.by[c] / 1e6:.1f}" for c in CATEGORIES), flush=True)
            if asked.largest:
                print("        simulated", {k: round(v / 1e6, 2) for k, v in by.items()})
                for row in peak.largest[: asked.largest]:
                    print("      ", row)
                for name, a, b in peak.rows:
                    print(f"        {name:10s} {a / 1e6:8.2f} {b / 1e6:8.2f}")
            if rank == 0 and layout.pp == 1:
                break
            if asked.largest > 1:
                print(lowered.stages[0].segments)
    for pool in pools.values():
        pool.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
