"""Pools of ranks: jobs, failures, deaths, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from execute.conftest import Pools
from meshwright.errors import ExecutionError, InputError
from meshwright.execute.ranks.pool import Pool


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_rank_runs_the_job_and_events_arrive(pools: Pools) -> None:
    events: list[tuple[int, Any]] = []
    results = pools(2).run("execute.jobs:echoed", "word", event=lambda rank, value: events.append((rank, value)))
    assert results == [(0, 2, "word"), (1, 2, "word")]
    assert sorted(events) == [(0, ("event of", 0)), (1, ("event of", 1))]


def test_a_rank_that_is_killed_ends_all_within_thirty_seconds_with_one_sentence() -> None:
    pool = Pool(3)
    processes = pool.processes()
    start = time.monotonic()
    with pytest.raises(ExecutionError) as caught:
        pool.run("execute.jobs:killed", 1)
    assert time.monotonic() - start < 30
    assert str(caught.value) == "rank 1 was killed by signal 9; the other 2 were stopped"
    assert caught.value.exit_code == 1
    assert not any(_alive(p) for p in processes)


def test_an_error_of_our_own_keeps_its_kind_and_sentence() -> None:
    pool = Pool(2)
    processes = pool.processes()
    with pytest.raises(InputError, match="this rank cannot go on"):
        pool.run("execute.jobs:failing", 1)
    assert not any(_alive(p) for p in processes)


PARENT = """
import sys, time
from meshwright.execute.ranks.pool import Pool
pool = Pool(2)
print(*pool.processes(), flush=True)
time.sleep(60)
"""


def test_ranks_end_when_the_process_that_started_them_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    ranks = [int(word) for word in parent.stdout.readline().split()]
    assert len(ranks) == 2 and all(map(_alive, ranks))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, ranks))


def test_a_closed_pool_leaves_no_process_and_no_folder() -> None:
    with Pool(1) as pool:
        processes, folder = pool.processes(), pool._folder
        assert folder.exists()
    assert not any(_alive(p) for p in processes)
    assert not folder.exists()
