"""Commands run in this process, in a folder of their own, with one cache of captured graphs for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import Command, Done

from meshwright.cli.entry import run


@pytest.fixture(scope="session")
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def meshwright(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph_cache: Path
) -> Command:
    """`meshwright("plan", "gpt2")` -> exit code and what was written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MESHWRIGHT_CACHE", str(graph_cache))
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "MESHWRIGHT_CLUSTER", "MESHWRIGHT_PLANNER"):
        monkeypatch.delenv(name, raising=False)

    def command(*args: str) -> Done:
        capsys.readouterr()
        code = run(list(args))
        seen = capsys.readouterr()
        return Done(code, seen.out, seen.err)

    return command
