"""A script of ours, run by the Python of a target's own environment: JSON goes in, JSON comes out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("MESHWRIGHT_TARGETS", HERE.parents[2] / ".targets"))
"""Holds an environment for each target."""


def run(name: str, script: str, payload: Any, env: Mapping[str, str] | None = None, timeout: float = 1500.0) -> Any:
    """What the script prints last, parsed; the test skips where there is no such environment."""
    python = FOLDER / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment of {name} in {FOLDER}: make targets")
    done = subprocess.run(
        [str(python), str(HERE / script)],
        input=json.dumps(payload),
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": "", **(env or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
