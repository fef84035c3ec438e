"""Ctrl-C: the first one keeps the best plan so far, with nothing found the exit code is 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SEARCH = """
import time
from meshwright.planners import Planner
from meshwright.planners.grid import Grid
from meshwright.planners.types import Info


class Endless(Planner):
    info = Info("endless", "never ends", 2026, "a test", frozenset(), frozenset({{"dag", "memory"}}), frozenset({{"time"}}))

    def search(self, problem, run):
        if {offers}:
            found = Grid(top=1).plan(problem)
            run.offer(found.objective, lambda: found.plan)
        open("searching", "w").close()
        while True:
            run.tick(1, "search")
            time.sleep(0.01)

    def objective(self, problem, plan):
        return Grid().objective(problem, plan)
"""


def stopped(folder: Path, offers: bool, cache: Path) -> subprocess.CompletedProcess[str]:
    (folder / "endless.py").write_text(SEARCH.format(offers=offers))
    process = subprocess.Popen(
        [sys.executable, "-m", "meshwright", "plan", "gpt2", "-c", "a100x8", "--seq", "256", "--planner", "./endless.py"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MESHWRIGHT_CACHE": str(cache)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "searching").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("offers", [True, False])
def test_the_first_ctrl_c_keeps_the_best_plan_so_far(tmp_path: Path, graph_cache: Path, offers: bool) -> None:
    done = stopped(tmp_path, offers, graph_cache)
    if offers:
        assert done.returncode == 0, done.stderr
        assert "stopped: best so far" in done.stdout
        assert (tmp_path / "gpt2-a100x8" / "plan.json").exists()
    else:
        assert done.returncode == 130, done.stderr
        assert done.stderr.splitlines()[-1] == "meshwright: stopped; nothing was written"
        assert not (tmp_path / "gpt2-a100x8").exists()
