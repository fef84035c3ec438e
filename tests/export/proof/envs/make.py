"""An environment of its own for each trainer, from the files beside this one: `make targets`.

A file NAME.txt lists what pip installs into .targets/NAME. Two kinds of comment in it are read:

    # Python 3.12       the least version of Python; without it, the one that runs this
    # pip --no-deps     more words for pip

An environment that cannot be made (no such Python, no network) is said in one line, and the tests that need it skip.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("MESHWRIGHT_TARGETS", HERE.parents[3] / ".targets"))
NEWEST = 15
"""Minor versions of Python that are looked for, from the least that is asked for."""


def main() -> None:
    for file in sorted(HERE.glob("*.txt")):
        print(f"{file.stem:16}", made(file), flush=True)


def made(file: Path) -> str:
    """Make one environment, unless it is newer than its file; what became of it."""
    place = FOLDER / file.stem
    ready = place / ".ready"
    if ready.exists() and ready.stat().st_mtime >= file.stat().st_mtime:
        return "ready"
    text = file.read_text(encoding="utf-8")
    python = interpreter(text)
    if not python:
        return f"not made: it needs {wanted(text)} on the PATH"
    more = " ".join(re.findall(r"^# pip (.+)$", text, re.MULTILINE)).split()
    steps = (
        [python, "-m", "venv", "--clear", str(place)],
        [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *more, "-r", str(file)],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(place, ignore_errors=True)
            lines = (done.stderr or done.stdout).strip().splitlines()
            return f"not made: {lines[-1] if lines else 'pip failed'}"
    ready.touch()
    return "made"


def wanted(text: str) -> str:
    found = re.search(r"^# Python (3\.\d+)", text, re.MULTILINE)
    return f"python{found[1]} or later" if found else "python3"


def interpreter(text: str) -> str:
    """A Python that is new enough and starts; "" if there is none."""
    found = re.search(r"^# Python 3\.(\d+)", text, re.MULTILINE)
    least = int(found[1]) if found else 0
    if sys.version_info.minor >= least:
        return sys.executable
    known = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for minor in range(least, NEWEST):
        beside = [str(p) for p in sorted(known.glob(f"3.{minor}.*/bin/python"))]
        for python in (shutil.which(f"python3.{minor}"), *beside):
            if python and not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
                return python
    return ""


if __name__ == "__main__":
    main()
