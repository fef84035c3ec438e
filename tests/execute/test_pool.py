"""Pools of ranks: jobs, failures, deaths, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
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


def _until_dead(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, processes))


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


def test_a_rank_that_ends_by_itself_is_named_with_its_exit_code() -> None:
    with pytest.raises(ExecutionError, match=r"^rank 0 ended with exit code 3; the other was stopped$"):
        Pool(2).run("execute.jobs:left", 3)


def test_ranks_end_when_the_process_that_they_were_forked_from_is_killed() -> None:
    pool = Pool(2)
    processes = pool.processes()
    (nursery,) = {int(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[1]) for p in processes}
    assert nursery != os.getpid()
    os.kill(nursery, signal.SIGKILL)
    with pytest.raises(ExecutionError, match=r"^rank [01] was killed by signal 9; the other was stopped$"):
        pool.run("execute.jobs:moved", [])
        time.sleep(2)
        pool.run("execute.jobs:moved", [])
    deadline = time.monotonic() + 10
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, processes))


def test_why_no_rank_could_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('no such library')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ExecutionError, match=r"^rank 0 ended with exit code 1 while starting") as caught:
        Pool(2)
    assert "OSError: no such library" in caught.value.hint


def test_no_two_ranks_draw_the_same_numbers(pools: Pools) -> None:
    one, other = pools(2).run("execute.jobs:drawn", None)
    assert one[0] != other[0] and one[1] != other[1]


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
    _until_dead(ranks)


def test_a_closed_pool_leaves_no_process_and_no_folder() -> None:
    with Pool(1) as pool:
        processes, folder = pool.processes(), pool._folder
        assert folder.exists()
    assert not any(_alive(p) for p in processes)
    assert not folder.exists()


def test_a_rank_that_ends_while_its_pool_is_closed_is_no_error() -> None:
    pool = Pool(2)
    left, gone = pool.processes()
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert pool._brood is not None
    pool._brood.pids[1] = ended.pid  # what the parent knows of a rank whose end the nursery has yet to tell
    pool.close()
    assert not _alive(left)
    _until_dead([gone])
