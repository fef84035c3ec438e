"""The process that the ranks of a pool are forked from: `python -m meshwright.execute.ranks.nursery ADDRESS MEETING TIMEOUT
PARENT RANKS FOLDER`, the key on standard input.

torch takes seconds of a core to import, a rank's own start milliseconds:

    parent ──starts──▶ nursery: imports, then forks ──▶ rank 0 … n − 1 ──▶ log of each in FOLDER
       ▲                  │
       └── one line each ─┘   "RANK pid PID" when it is forked, "RANK code CODE" when it has ended (−9: killed by signal 9)

Before the forks it has one thread, has computed nothing and touched no GPU, so that nothing of it is half done in a rank.
It ends when all its ranks have, or with its parent; ranks end with it.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from . import worker

NEEDED = ("torch._dynamo", "meshwright.execute.proof.verification", "meshwright.execute.training.trainer")
"""What nearly every job imports; any optimizer of torch imports its compiler."""


def main() -> None:
    address, meeting, timeout, parent, ranks, folder = sys.argv[1:7]
    key = bytes.fromhex(sys.stdin.readline().strip())
    for name in NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is imported stays: neither collected nor copied in a rank
    own, numbers = os.getpid(), {}

    def work() -> None:
        worker.work(address, key, meeting, float(timeout), own)

    for rank in range(int(ranks)):
        process = os.fork()
        if process == 0:
            _be(rank, Path(folder), int(ranks), work)
        numbers[process] = rank
        print(rank, "pid", process, flush=True)
    threading.Thread(target=worker.end_with, args=(int(parent),), daemon=True).start()
    while numbers:
        process, status = os.waitpid(-1, 0)
        if process in numbers:
            print(numbers.pop(process), "code", os.waitstatus_to_exitcode(status), flush=True)


def _be(rank: int, folder: Path, ranks: int, work: Callable[[], None]) -> None:
    """Does not return."""
    code = 1
    try:
        log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
        if "numpy" in sys.modules:  # else every rank would draw the same numbers; torch and random see to it themselves
            sys.modules["numpy"].random.seed()
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
