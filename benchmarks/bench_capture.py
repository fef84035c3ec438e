"""Llama-3.1-405B at full depth: traced, and read back from the cache. Exit 1 when a limit is missed.

python benchmarks/bench_capture.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile

MODEL = "llama-3.1-405b"
# name -> (limit, unit)
LIMITS = {"fresh_s": 30.0, "fresh_gib": 1.0, "cached_s": 2.0}
# ru_maxrss counts kilobytes, on macOS bytes.
PROGRAM = f"""
import json, resource, sys, time
from meshwright.graph.source import resolve
graph = resolve({MODEL!r}).graph()
blocks_from = time.process_time()
used = resource.getrusage(resource.RUSAGE_SELF)
seconds = used.ru_utime + used.ru_stime
from meshwright.graph.blocks import repeated_runs
runs = repeated_runs(graph)
print(json.dumps({{
    "seconds": seconds,
    "gib": used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20),
    "blocks_s": time.process_time() - blocks_from,
    "ops": len(graph.ops),
    "runs": [[run.name, run.length, run.count] for run in runs],
    "torch": "torch" in sys.modules,
}}))
"""


def measure() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MESHWRIGHT_CACHE"] = folder
        fresh, cached = measure(), measure()
    print(f"{MODEL}, {fresh['ops']} ops, runs {fresh['runs']}; {platform.machine()}, {os.cpu_count()} cores")
    found = {"fresh_s": fresh["seconds"], "fresh_gib": fresh["gib"], "cached_s": cached["seconds"]}
    missed = 0
    for name, limit in LIMITS.items():
        value = float(str(found[name]))
        missed += value > limit
        print(f"{name:<10} {value:8.2f}   limit {limit:5.1f}   {'missed' if value > limit else 'ok'}")
    print(f"repeated blocks {float(str(fresh['blocks_s'])):.3f} s; the cached process loaded torch: {cached['torch']}")
    return 1 if missed or cached["torch"] else 0


if __name__ == "__main__":
    sys.exit(main())
