"""A checkpoint folder is complete or not there, wherever its writer is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meshwright.errors import InputError
from meshwright.execute.saved import folders


def _written(target: Path, step: int) -> None:
    part = folders.begin(target)
    (part / "a").write_text(str(step))
    (part / "b").write_text(str(step))
    folders.publish(target, {"step": step})


def _killed_at(point: int, action: Callable[[], None]) -> bool:
    """Runs `action` in a process that kills itself at its `point`-th event of the file system; whether it got that far."""
    child = os.fork()
    if child == 0:
        left = [point]

        def hook(event: str, _: tuple[object, ...]) -> None:
            if event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("same_name", [True, False])
def test_a_save_killed_at_any_point_leaves_one_whole_checkpoint(tmp_path: Path, same_name: bool) -> None:
    """Also when the save after it is killed at the same point; the one after those leaves nothing aside."""
    seen = set()
    for point in range(200):
        place = tmp_path / f"{same_name}-{point}"
        first, second = place / "ckpt", place / ("ckpt" if same_name else "next")
        _written(first, 1)
        got_there = _killed_at(point, lambda second=second: _written(second, 2))  # type: ignore[misc]
        _killed_at(point, lambda second=second: _written(second, 3))  # type: ignore[misc]
        found = folders.whole(second) or first
        step = folders.facts(found)["step"]
        assert {(found / name).read_text() for name in "ab"} == {str(step)}
        seen.add(step)
        _written(second, 4)
        assert folders.facts(second)["step"] == 4
        assert {p.name for p in place.iterdir()} == {first.name, second.name}
        if not got_there:
            break
    else:
        pytest.fail("the save never ended")
    assert point > 6
    assert {1, 3} <= seen


def test_what_is_no_checkpoint_is_neither_replaced_nor_read(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(
        InputError, match=r"mine: exists and is no checkpoint, so it is not replaced: choose another name$"
    ):
        folders.begin(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes").read_text() == "keep"
    with pytest.raises(
        InputError, match=r"mine: no whole checkpoint: a folder that a run wrote holds meshwright\.json$"
    ):
        folders.facts(tmp_path / "mine")
    (tmp_path / "mine" / folders.SEAL).write_text('{"schema": "other/1", "step": 1}')
    with pytest.raises(InputError, match=r'mine: schema "other/1" is not known: this version reads meshwright'):
        folders.facts(tmp_path / "mine")


def test_a_run_ends_every_interrupted_save_of_its_folder_and_touches_nothing_else(tmp_path: Path) -> None:
    _written(tmp_path / "step-2", 2)
    part = folders.begin(tmp_path / "step-4")
    (part / "a").write_text("half")
    _written(tmp_path / "other", 6)
    os.rename(tmp_path / "other", tmp_path / "step-6.part")  # sealed, not yet named
    (tmp_path / "mine.part").mkdir()
    folders.tidy(tmp_path, "step-*")
    assert {p.name for p in tmp_path.iterdir()} == {"step-2", "step-6", "mine.part"}
    assert folders.facts(tmp_path / "step-6")["step"] == 6
