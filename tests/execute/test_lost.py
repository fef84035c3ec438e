"""Another rank is gone, while a checkpoint is written or in a step: the run ends, and what is to be said of it is said."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.checkpoint.api import WRAPPED_EXCEPTION, CheckpointException

from meshwright.errors import ExecutionError
from meshwright.execute.ranks.lost import lost
from meshwright.execute.saved import box_planners
from meshwright.execute.training import one_rank

GONE = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:41307")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def save(*args: object, **settings: object) -> None:
        failures: dict[int, WRAPPED_EXCEPTION] = {1: (error, [])}  # type: ignore[dict-item]
        raise CheckpointException("writing", failures)

    monkeypatch.setattr(box_planners, "save_state", save)


def test_a_rank_that_is_gone_is_no_fault_of_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, GONE)
    with pytest.raises(RuntimeError, match="closed by peer") as found:
        box_planners.write({}, tmp_path, None)
    assert lost(found.value)


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(ExecutionError, match=r"could not be written: .*No space left on device"):
        box_planners.write({}, tmp_path, None)


@pytest.mark.parametrize("error", [GONE, ExecutionError("the loss is not a number at step 3 on rank 0")])
def test_a_launcher_that_stops_all_ranks_does_not_cut_off_the_last_words(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """It sends SIGTERM as soon as one rank has ended: from the error on until rank 0 has said it, that counts for nothing."""

    def steps(*_: object) -> None:
        raise error

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(one_rank, "_steps", steps)
    monkeypatch.setattr(one_rank, "ranks_of", lambda program: (0,))
    monkeypatch.setattr(one_rank.dist, "is_initialized", lambda: True)
    run: Any = SimpleNamespace(at=3, how="meshwright run")
    setup: Any = SimpleNamespace(program=None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ExecutionError, match=r"another rank ended at step 3|not a number at step 3"):
            one_rank.as_rank(setup, None, None, run, 1.0)  # type: ignore[arg-type]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
