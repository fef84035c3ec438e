"""Another rank is gone while a checkpoint is written: the run ends as if it had been lost in a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import WRAPPED_EXCEPTION, CheckpointException

from meshwright.errors import ExecutionError
from meshwright.execute.ranks.lost import lost
from meshwright.execute.saved import box_planners

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
