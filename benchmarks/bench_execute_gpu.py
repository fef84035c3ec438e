"""One GPU: our step against torch's own on the same model, and both against the prediction.

python benchmarks/bench_execute_gpu.py [--small] [--steps 12]

bfloat16 products with float32 weights: ours keeps float32 masters beside bfloat16 weights, torch's loop runs under
autocast. Times are medians over interleaved blocks of steps; memory is the allocator's peak of a step. `--small` shrinks the
models, to try the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import meshwright as mw

BLOCKS, WARM = 5, 3
ENDS = {"bos_token_id": 0, "eos_token_id": 0}


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    batch: int
    seq: int
    vocab: int


def cases(small: bool) -> list[Case]:
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    gpt = GPT2Config(**still, **ENDS, **({"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 128} if small else {}))
    wide = (64, 176, 4, 2, 128) if small else (4096, 14336, 32, 8, 32000)
    hidden, ffn, heads, kv, vocab = wide
    llama = LlamaConfig(
        num_hidden_layers=2 if small else 4, hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocab, max_position_embeddings=4096, tie_word_embeddings=False, **ENDS,
    )  # fmt: skip
    seq = 64 if small else 1024
    return [
        Case("GPT-2 124M", lambda: GPT2LMHeadModel(gpt), 2 if small else 16, seq, gpt.vocab_size),
        Case("Llama 8B, 4 blocks", lambda: LlamaForCausalLM(llama), 2, seq if small else 4096, vocab),
    ]


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-4, fused=torch.cuda.is_available())


def batches(case: Case, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, case.vocab, (case.batch, case.seq), generator=generator) for _ in range(count)]


Step = Callable[[Tensor], float]


def torch_step(case: Case, compiled: bool) -> Step:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    module = case.build().to(device)
    rule = adamw(list(module.parameters()))
    called = torch.compile(module) if compiled else module

    def step(ids: Tensor) -> float:
        own = ids.to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = called(input_ids=own, labels=own).loss
        loss.backward()
        rule.step()
        rule.zero_grad()
        return float(loss.detach())

    return step


def our_step(case: Case, compiled: bool, plan: object) -> Step:
    torch.manual_seed(0)
    job = mw.parallelize(
        case.build(), plan, optimizer=adamw, precision="bf16", compile="inductor" if compiled else None
    )  # type: ignore[arg-type]
    return lambda ids: job.train_step({"input_ids": ids, "labels": ids}).loss


def timed(step: Step, ids: Sequence[Tensor]) -> list[float]:
    found = []
    for x in ids:
        began = time.perf_counter()
        step(x)  # reads its loss, so the device has finished
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=4, help="of each block")
    parser.add_argument("--cluster", default="h200x1")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not asked.small:
        print("no GPU here; --small tries the script on the CPU")
        return 0
    for case in cases(asked.small):
        plan = mw.plan(
            case.build,
            cluster=asked.cluster,
            batch=case.batch,
            seq=case.seq,
            fix={"micro-batch": case.batch, "recompute": "none"},
        )
        said = plan.simulation
        assert said is not None
        print(
            f"{case.name}: predicted {1e3 * said.step_seconds:.1f} ms, {sum(said.peak_by[0].values()) / 2**30:.2f} GiB",
            flush=True,
        )
        for compiled in (False, True):
            ids = batches(case, WARM + asked.steps)
            makers = {"torch": lambda: torch_step(case, compiled), "meshwright": lambda: our_step(case, compiled, plan)}  # noqa: B023
            steps, losses, peaks, times = {}, {}, {}, {}
            for name, make in makers.items():
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                    rest = torch.cuda.memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                steps[name] = make()
                losses[name] = [steps[name](x) for x in ids[:WARM]]
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                    steps[name](ids[WARM])
                    peaks[name] = torch.cuda.max_memory_allocated() - rest
                times[name] = []
            for _ in range(BLOCKS):
                for name, step in steps.items():
                    times[name] += timed(step, ids[WARM:])
            for name in makers:
                row = {
                    "model": case.name, "who": name, "compiled": compiled, "ms": 1e3 * statistics.median(times[name]),
                    "spread_ms": 1e3 * (max(times[name]) - min(times[name])), "peak_gib": peaks.get(name, 0) / 2**30,
                    "predicted_ms": 1e3 * said.step_seconds, "predicted_gib": sum(said.peak_by[0].values()) / 2**30,
                    "losses": losses[name],
                }  # fmt: skip
                print(json.dumps(row), flush=True)
            del steps
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
