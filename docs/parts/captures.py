"""Part of `make docs`: puts true output of the commands into README.md and docs/*.md, and takes the picture of the report.

A block between `<!-- run: COMMAND -->` and `<!-- end -->` is replaced by what COMMAND prints. Commands run in one folder
in the order of the files, so that a later one may show what an earlier one wrote.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .pages import DOCS, ROOT, pages, write

BLOCK = re.compile(r"(<!-- run: (?P<command>.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = DOCS / "report.png"
SHOWN = "llama-3.1-8b-h100x64"
"""Folder of the plan whose report is photographed."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def output(command: str, folder: Path) -> str:
    """What the command prints to stdout; a failing command stops the build."""
    words = shlex.split(command)
    args = [sys.executable, "-m", "meshwright", *words[1:]]
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(args, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.rstrip()


def rebuilt(text: str, folder: Path) -> str:
    def block(found: re.Match[str]) -> str:
        print(f"$ {found['command']}", flush=True)
        return f"{found[1]}```\n$ {found['command']}\n{output(found['command'], folder)}\n```\n{found[3]}"

    return BLOCK.sub(block, text)


def picture(report: Path) -> None:
    """The first screens of a report, as a browser draws them."""
    browser = next((b for b in map(shutil.which, BROWSERS) if b), None)
    if browser is None or not report.exists():
        print("no browser: the picture stays as it is")
        return
    subprocess.run(
        [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1750",
            "--virtual-time-budget=8000", f"--screenshot={PICTURE}", report.as_uri(),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    print(f"wrote {PICTURE.relative_to(ROOT)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for page in pages():
            write(page, rebuilt(page.read_text(encoding="utf-8"), folder))
        picture(folder / SHOWN / "report.html")
