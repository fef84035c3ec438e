"""How long a person waits for the command line: help, completion, and a plan of 405 billion parameters on 16,384 GPUs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time

COMMAND = [sys.executable, "-m", "meshwright"]
BIG = ["plan", "llama-3.1-405b", "--cluster", "h100x16384", "--batch", "2048", "--seq", "8192", "-q"]
COMPLETE = {"_MESHWRIGHT_COMPLETE": "complete_bash", "COMP_WORDS": "meshwright plan llama-", "COMP_CWORD": "2"}
TRIES = 3


def measured(args: list[str], folder: str, **env: str) -> tuple[float, float]:
    """(seconds, peak bytes of the largest child so far)."""
    began = time.perf_counter()
    # A completion that finds nothing ends with another code, so the output says whether it worked.
    done = subprocess.run([*COMMAND, *args], cwd=folder, env={**os.environ, **env}, capture_output=True, text=True)
    spent = time.perf_counter() - began
    if not done.stdout:
        raise SystemExit(f"{args} wrote nothing: {done.stderr}")
    return spent, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024.0


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        env = {"MESHWRIGHT_CACHE": os.path.join(folder, "cache")}
        rows = [
            ("meshwright --help", min(measured(["--help"], folder)[0] for _ in range(TRIES)), 0.5, "s"),
            ("complete a model", min(measured([], folder, **COMPLETE)[0] for _ in range(TRIES)), 0.15, "s"),
        ]
        fresh, memory = measured(BIG, folder, **env)
        again, _ = measured(BIG, folder, **env)
        rows += [
            ("405B on 16,384, fresh", fresh, 30.0, "s"),
            ("405B on 16,384, captured before", again, 5.0, "s"),
            ("405B on 16,384, peak memory", memory / 2**30, 2.0, "GiB"),
        ]
    for name, value, gate, unit in rows:
        print(f"{name:34}{value:8.3f} {unit:4} gate {gate:g}   {'ok' if value <= gate else 'MISSED'}")
    return 0 if all(value <= gate for _, value, gate, _ in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
