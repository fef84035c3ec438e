"""Trains the GPT-2 of transformers, unchanged, on the text that is shipped, one token a character.

python examples/train_gpt2.py                                        # one device
torchrun --nproc-per-node 4 examples/train_gpt2.py                   # four; the planner chooses how
torchrun --nproc-per-node 4 examples/train_gpt2.py --fix tp=2,pp=2   # four, as told
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import meshwright as mw
from meshwright.execute import read_text, tokenised


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 4), ("width", 128), ("heads", 4), ("seq", 64), ("batch", 16), ("steps", 50)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--fix", default="", help="degrees that the planner must take, such as tp=2,pp=2")
    parser.add_argument("--checkpoint", type=Path, help="a folder: gone on from if it is there, written at the end")
    return parser.parse_args()


def main() -> None:
    asked = options()
    text = tokenised(read_text(), vocabulary=128)

    def build() -> GPT2LMHeadModel:
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), asked.dropout)
        sizes = {"n_layer": asked.layers, "n_embd": asked.width, "n_head": asked.heads}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=128, n_positions=asked.seq, bos_token_id=0, eos_token_id=0, **sizes, **rates)
        )

    world = int(os.environ.get("WORLD_SIZE", "1"))
    fix = {k: int(v) for k, _, v in (word.partition("=") for word in asked.fix.split(",") if word)}
    plan = mw.plan(build, cluster=f"localx{world}", batch=asked.batch, seq=asked.seq, precision="fp32", fix=fix)

    with torch.device("meta"):  # no rank ever holds the whole model
        model = build()
    job = mw.parallelize(
        model,
        plan,
        optimizer=lambda p: torch.optim.AdamW(p, asked.lr),
        scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=10),
        clip=1.0,
    )
    if asked.checkpoint and asked.checkpoint.exists():
        job.load(asked.checkpoint)
    if job.rank == 0:
        print(f"{plan.candidates[0].layout} on {job.world} ranks, {job.local_batch} samples each", flush=True)

    for step in range(job.step, job.step + asked.steps):
        whole = text.windows(asked.batch, asked.seq - 1, step, seed=0)  # the same in every process
        own = whole[job.data_rank :: job.data_world]
        metrics = job.train_step({"input_ids": own, "labels": own})
        if job.rank == 0:
            print(f"step {metrics.step:4}  loss {metrics.loss:.6f}  norm {metrics.grad_norm:.4f}", flush=True)
    if asked.checkpoint:
        job.save(asked.checkpoint)
        job.wait()
    report = job.report() if asked.steps > 1 else None
    if job.rank == 0 and report is not None:
        print("\n".join(report.lines()))


if __name__ == "__main__":
    main()
