"""Commands and code of the pages are what the program takes; the pages for beginners are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from parts.blocks import all_commands, blocks, commands, words
from parts.pages import DOCS, ROOT, pages

from meshwright.cli.app import app
from meshwright.cli.spread import spread_sets
from meshwright.cluster import resolve
from meshwright.errors import InputError
from meshwright.graph.zoo import entries
from meshwright.planners import registry

GROUP: Any = typer.main.get_command(app)
USAGE: Any = typer.BadParameter.__mro__[1]
"""What typer's parser raises for any wrong command line."""
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*|.*(?:…|\.toml|\.json|\.py|:build|\.txt|/).*")
"""MODEL, problem.toml, model.py:build: what a reader puts in."""
RUN = ("start.md",)
"""Pages whose blocks are files and commands that follow each other."""


def names(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def parsed(command: str) -> typer.Context:
    given = words(command.partition(" > ")[0])
    given = [
        "VALUE" if w == "…" and before.startswith("--") else w for before, w in zip(["", *given], given, strict=False)
    ]
    args = spread_sets([word for word in given if word != "…"])
    top = GROUP.make_context("meshwright", [args[0]], resilient_parsing=True)
    kind = GROUP.get_command(top, args[0])
    assert kind is not None, f"no command {args[0]}"
    takes = {o for p in kind.params if not getattr(p, "is_flag", False) for o in p.opts}
    if args[-1] in takes and args[-1].startswith("-"):  # an option that is spoken of, without its value
        args = [*args, "VALUE"]
    shown = "--help" in args or not [a for a in args[1:] if a[0] != "-" and a != "VALUE"]
    return kind.make_context(args[0], [a for a in args[1:] if a != "--help"], parent=top, resilient_parsing=shown)


@pytest.mark.parametrize("page", pages(), ids=names)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    known = {e.name for e in entries()}
    for command, line in all_commands(page.read_text(encoding="utf-8")):
        where = f"{names(page)}:{line}: {command}"
        try:
            given = parsed(command).params
        except USAGE as error:
            pytest.fail(f"{where}: {error.format_message()}")
        model = given.get("model")
        for one in (model,) if isinstance(model, str) else model or ():
            assert one in known or PLACEHOLDER.fullmatch(one), f"{where}: no model {one}"
        cluster = given.get("cluster")
        if isinstance(cluster, str) and not PLACEHOLDER.fullmatch(cluster) and not cluster.startswith("local"):
            try:
                resolve(cluster)
            except InputError as error:
                pytest.fail(f"{where}: {error}")
        for planner in [given.get("planner"), *str(given.get("planners") or "").split(",")]:
            if (
                planner
                and planner != "all"
                and not PLACEHOLDER.fullmatch(planner)
                and ":" not in planner
                and planner not in "abc"
            ):
                assert planner in registry.names(), f"{where}: no planner {planner}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("meshwright plan gpt2 -c a100x8 --bath 8", "No such option"),
        ("meshwright simulate gpt2 --dp many", "--dp many: must be a whole number"),
        ("meshwright verify RUN --ranks 2 MORE", "MORE"),
        ("meshwright exprot PLAN", "no command exprot"),
    ],
)
def test_a_wrong_command_is_found(wrong: str, message: str) -> None:
    with pytest.raises((USAGE, InputError, AssertionError), match=message):
        parsed(wrong)


def test_commands_are_found_in_blocks_and_in_text() -> None:
    text = "`meshwright show X`\n```\n$ meshwright plan a \\\n  -c b   # why\nanswer\n```\n`meshwright models`\n"
    assert list(all_commands(text)) == [
        ("meshwright plan a -c b", 2),
        ("meshwright show X", 1),
        ("meshwright models", 7),
    ]


@pytest.mark.parametrize("page", pages(), ids=names)
def test_code_of_a_page_is_code(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind == "python":
            compile(block.body.replace("for plan in ...:", "for plan in ():"), f"{names(page)}:{block.line}", "exec")
        elif block.kind == "toml":
            tomllib.loads(block.body)
        assert block.kind in ("", "python", "toml", "sh", "text", "json", "yaml"), (
            f"{names(page)}:{block.line}: {block.kind}"
        )


@pytest.mark.parametrize("page", RUN)
def test_pages_for_beginners_run_as_they_stand(
    page: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files are written, commands run and Python executed, in the order of the page. What takes minutes is left to `make docs`."""
    source = Path(__file__).resolve().parents[2] / "src"
    env = {
        **os.environ,
        "PYTHONPATH": str(source),
        "MESHWRIGHT_CACHE": str(tmp_path_factory.mktemp("graphs")),
        "NO_COLOR": "1",
    }

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, (
            f"{' '.join(args)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
        return done.stdout

    ran = []
    for block in blocks((DOCS / page).read_text(encoding="utf-8")):
        if block.file:
            (tmp_path / block.file).write_text(block.body, encoding="utf-8")
        elif block.kind == "python":
            (tmp_path / "page.py").write_text(block.body, encoding="utf-8")
            ran.append(run("page.py"))
        for command in commands(block) if block.kind == "sh" else ():
            if "llama-3.1-8b" not in command:
                ran.append(run("-m", "meshwright", *words(command)))
    assert len(ran) == 6
    assert "the plan computes what one device computes" in ran[1]
    assert {"plan.json", "report.html", "trace.json.gz", "problem.toml"} <= {
        p.name for p in (tmp_path / "model-localx2").iterdir()
    }
