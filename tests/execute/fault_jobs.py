"""What goes wrong on a rank, on purpose. Also a script: one rank under torchrun that trains and dies when it is told to."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from meshwright.execute.ranks.worker import Context
from meshwright.execute.training.trainer import Trainer


def die_in_a_save(point: int) -> None:
    """Kills this process at the `point`-th event of the file system on the thread that writes checkpoints."""
    left = [point]

    def hook(event: str, _: tuple[object, ...]) -> None:
        if threading.current_thread().name != "checkpoint":
            return
        if event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill"):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def armed(context: Context, order: tuple[int, int]) -> None:
    rank, point = order
    if context.rank == rank:
        die_in_a_save(point)


def poisoned(context: Context, rank: int) -> str:
    """One rank's parameters become NaN, from the next step on. Returns the name of the one that is."""
    trainer: Trainer = context.kept["trainer"]
    name, part = next((n, p) for local in trainer.runtime.locals.values() for n, p in local.params.items() if p.numel())
    if context.rank == rank:
        with torch.no_grad():
            part.view(-1)[0] = float("nan")
    return name


def main(config: str, folder: str, fault: str, seed: int) -> int:
    """Trains for 12 steps with a checkpoint every 2; exit code as `meshwright run` has it."""
    from execute.layouts import Layout
    from execute.tiny import RULE, SEQ, tiny_plan
    from meshwright.errors import MeshwrightError
    from meshwright.execute import train
    from meshwright.graph.source import resolve

    source, chance = resolve(config), random.Random(seed)
    victim, at = chance.randrange(2), chance.randrange(5, 10)
    mine = int(os.environ["RANK"]) == victim
    stepped, seconds = Trainer.step, [0.0]

    def step(self: Trainer, batch: Any) -> Any:
        if fault == "kill" and mine and self.runtime.step == at:  # within the next two steps, before the last one
            threading.Timer(chance.random() * 2 * seconds[-1], _die, (folder,)).start()
        done = stepped(self, batch)
        seconds.append(done.seconds)
        return done

    Trainer.step = step  # type: ignore[method-assign]
    if fault == "late" and mine:
        time.sleep(5)
    try:
        train(
            tiny_plan(source, Layout(dp=2, zero=1)), source, steps=12, seq=SEQ, optimizer=RULE, folder=Path(folder),
            save_every=2, on_step=lambda r: print("LOSS", r.step, r.loss, flush=True), timeout=60,
        )  # fmt: skip
    except MeshwrightError as error:
        print(f"meshwright: {error.message}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def _die(folder: str) -> None:
    (Path(folder) / "died").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], int(sys.argv[4])))
