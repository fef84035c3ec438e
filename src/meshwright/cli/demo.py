"""`make demo`: a plan for 64 GPUs, then a small model of the same structure planned, verified and trained on this machine.

Run as `python -m meshwright.cli.demo [FOLDER]`. Ends with exit code 1 if a promise is not kept: the loss of every step
within 1e-4 of one process's, the last loss at least 1 nat below the first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MeshwrightError
from ..report.lines import encodable
from .entry import run

if TYPE_CHECKING:
    from ..execute import StepReport

BIG = ("llama-3.1-8b", "h100x64", 1024, 8192)
RANKS, BATCH, SEQ, STEPS = 4, 16, 128, 20
SIZES = {"blocks": 4, "width": 128, "heads": 4, "kv_heads": 2, "ffn": 352, "vocab": 256, "seq": SEQ}
"""Of the small Llama: every module of the big one, at sizes that a laptop trains."""
LEARNING_RATE = 3e-3
APART = 1e-4
"""Relative, between the plan's loss and one process's."""
NATS = 1.0


def main(folder: Path) -> int:
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    model, cluster, batch, seq = BIG
    big, small = folder / f"{model}-{cluster}", folder / "small-llama-localx4"
    fixed = folder / "small-llama-tp2-pp2"
    title(f"1. {model} on 64 H100: plan, prediction, report, trace")
    do("plan", model, "-c", cluster, "--batch", str(batch), "--seq", str(seq), "-o", str(big))

    title(f"2. The same structure, small, on {RANKS} processes of this machine")
    config = write_config(model, folder / "small-llama" / "config.json")
    say(f"{config}   " + ", ".join(f"{k} {v}" for k, v in SIZES.items()))
    common = (str(config), "-c", f"localx{RANKS}", "--batch", str(BATCH), "--seq", str(SEQ), "--precision", "fp32")
    do("plan", *common, "-o", str(small))

    title("3. Does that plan compute what one process computes?")
    do("verify", str(small), "--full-size")

    title(f"4. {STEPS} steps on real text under the planner's own plan, beside one process")
    kept = train(small)
    title(f"5. {STEPS} steps under --fix tp=2,pp=2, beside one process")
    do("plan", *common, "--fix", "tp=2,pp=2", "-o", str(fixed), "-q")
    kept = train(fixed) and kept

    title("Files")
    for place in (big, small, fixed):
        for path in sorted(place.iterdir()):
            say(f"  {path}")
    say(f"Open {big / 'report.html'} in a browser, {big / 'trace.json.gz'} in ui.perfetto.dev.")
    say(f"{'✓ every promise kept' if kept else '✗ a promise was not kept'}, {time.monotonic() - began:.0f} s")
    return 0 if kept else 1


def do(*args: str) -> None:
    """Show a command and run it; a failure ends the demo with its exit code."""
    say("$ meshwright " + " ".join(args))
    code = run(list(args))
    if code:
        raise SystemExit(code)


def write_config(model: str, path: Path) -> Path:
    """The configuration of `model` from the zoo, made small, as a config.json."""
    from ..graph.zoo import Shrink, by_name, smaller

    full = by_name()[model].config
    path.parent.mkdir(parents=True, exist_ok=True)
    found = smaller(full, full, Shrink(**SIZES), SEQ)
    path.write_text(json.dumps(dict(found), indent=1) + "\n", encoding="utf-8")
    return path


def train(plan: Path) -> bool:
    """Train beside one process; whether the losses agree and fall."""
    from .. import api

    losses: list[float] = []
    worst = 0.0

    def told(report: StepReport) -> None:
        nonlocal worst
        one = report.reference or 0.0
        apart = abs(report.loss - one) / abs(one)
        worst = max(worst, apart)
        losses.append(report.loss)
        say(f"  step {report.step:2}   plan {report.loss:.6f}   one process {one:.6f}   apart {apart:.1e}")

    api.run(plan, steps=STEPS, reference=True, learning_rate=LEARNING_RATE, on_step=told)
    fell = losses[0] - losses[-1]
    good = worst <= APART and fell >= NATS
    say(
        f"{'✓' if good else '✗'} at most {worst:.1e} apart (limit {APART:.0e}); "
        f"the loss fell by {fell:.2f} nats, from {losses[0]:.2f} to {losses[-1]:.2f} (at least {NATS:g})"
    )
    return good


def title(text: str) -> None:
    say(f"\n{text}\n{'─' * len(text)}")


def say(text: str) -> None:
    sys.stdout.write(encodable(text, sys.stdout.encoding or "ascii") + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        code = main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
    except MeshwrightError as error:
        sys.stderr.write(f"meshwright: {error.message}\n")
        code = error.exit_code
    raise SystemExit(code)
