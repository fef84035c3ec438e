"""`make bench`: every benchmark beside this file, each in a process of its own; exit 1 when any gate is missed.

python benchmarks/run.py [WORD …]      only those with a WORD in their name
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent


def machine() -> str:
    """Processor, cores and memory, for the head of every table."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, torch {version('torch')}"


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main(words: list[str]) -> int:
    print(f"machine  {machine()}\ncommit   {commit()}", flush=True)
    missed = []
    for script in sorted(HERE.glob("bench_*.py")):
        if words and not any(w in script.stem for w in words):
            continue
        print(f"\n── {script.stem.removeprefix('bench_')} " + "─" * 40, flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, str(script)], cwd=HERE.parent).returncode
        print(f"   {time.monotonic() - began:.0f} s, {'gates kept' if code == 0 else f'exit code {code}'}", flush=True)
        if code:
            missed.append(script.stem)
    print(f"\n{'✗ missed: ' + ', '.join(missed) if missed else '✓ every gate kept'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
