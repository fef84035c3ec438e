"""What the shell completes: without torch, without the parser where that can be, and the same with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshwright.cli.completion import (
    cluster_names,
    layout_words,
    model_names,
    model_or_plan,
    planner_lists,
    planner_names,
    quick,
    setting_names,
)

MOST_CPU = 0.2
"""Seconds of CPU for an answer; the whole process, Python's own start among them."""


def in_bash(words: list[str], ends_with_blank: bool = False) -> dict[str, str]:
    typed = ["meshwright", *words]
    place = len(typed) - (0 if ends_with_blank else 1)
    return {"_MESHWRIGHT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(typed), "COMP_CWORD": str(place)}


def asked(line: str) -> dict[str, str]:
    return in_bash(line.split(), line.endswith(" ") or not line)


LINES = [
    "", "pl", "plan ", "plan llama-", "plan gpt2 -c h100x", "compare gpt2 --cluster a100", "models gpt", "check g",
    "plan gpt2 --planner gr", "plan gpt2 --bud", "plan gpt2 --fix t", "plan nothing-like-it", "simulate gp", "new pl",
    "plan gpt2 -c h100x8 --fix tp=2,p", "plan gpt2 --planner pase --set m", "compare gpt2 --planners grid,gp",
    "clusters h", "planners pi", "plan gpt2 --batch 64 --precision b", "plan gpt2 --objective ", "simulate --recompute f",
    "plan --json gpt2 -c a100x", "plan gpt2 -q --planner pase --set order=", "verify ", "plan gpt2 mod",
    "export x --to ", "plan gpt2 --for t", "exporters m",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_the_quick_answer_is_the_parsers(line: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").write_text("{}")
    for name in ("gpx.json", "cluster.toml"):
        (tmp_path / name).write_text("{}")
    parser = "from meshwright.cli.app import app; app(prog_name='meshwright')"
    ours = "from meshwright.cli import main; main()"
    answers = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            env={**os.environ, **asked(line)},
            timeout=60,
            cwd=tmp_path,
        ).stdout.split()
        for code in (ours, parser)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("plan llama-", "llama-3.1-8b"), ("plan gpt2 -c h100x6", "h100x64"), ("plan gpt2 --planner gr", "grid"),
        ("plan gpt2 -c h100x8 --fix t", "tp=4"), ("plan gpt2 --planner pase --set m", "memory="), ("sim", "simulate"),
        ("compare gpt2 --planners grid,gp", "grid,gpipe"), ("clusters h1", "h100"),
    ],
)  # fmt: skip
def test_an_answer_costs_little_and_loads_neither_torch_nor_the_parser(line: str, some: str) -> None:
    code = (
        "import os, sys; from meshwright.cli.completion import quick; print(quick(os.environ));"
        "print(*{'torch', 'numpy', 'typer', 'pydantic'} & set(sys.modules), os.times().user + os.times().system)"
    )
    spent = []
    for _ in range(3):
        env = {**os.environ, **asked(line)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        *found, last = done.stdout.splitlines()
        assert some in found
        spent.append(float(last))  # and no module before it
    assert min(spent) < MOST_CPU


def test_bash_breaks_words_at_an_equals_sign() -> None:
    """`tp=` and `tp=2,p` as bash hands them over; it takes what is behind its own break."""
    plan = ["plan", "gpt2", "-c", "h100x8", "--fix"]
    assert quick(in_bash([*plan, "tp", "="])).split() == ["1", "2", "4", "8"]
    assert quick(in_bash([*plan, "tp", "=", "2,p"])).split() == ["2,pp=1", "2,pp=2", "2,pp=4", "2,pp=8"]
    assert quick(in_bash([*plan, "tp", "=", "2,pp", "="])).split() == ["1", "2", "4", "8"]
    assert quick(in_bash([*plan, "tp=4", "--planner", "gr"])).split() == ["grid"]


def test_zsh_and_fish_are_answered_in_their_own_form() -> None:
    line = {"_TYPER_COMPLETE_ARGS": "meshwright plan llama-3.1-8"}
    assert quick({"_MESHWRIGHT_COMPLETE": "complete_zsh", **line}) == "_arguments '*: :((\"llama-3.1-8b\"))'"
    fish = {"_MESHWRIGHT_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args", **line}
    assert quick(fish) == "llama-3.1-8b"
    assert quick({**fish, "_TYPER_COMPLETE_FISH_ACTION": "is-args"}) == ""
    assert quick({**fish, "_TYPER_COMPLETE_ARGS": 'meshwright plan "llama-3.1-8'}) == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize("line", ["plan llama-", "plan gpt2 -c h100x", "plan gpt2 -c h100x8 --fix tp=2,p"])
def test_zsh_and_fish_get_what_the_parser_says(shell: str, line: str) -> None:
    env = {
        "_MESHWRIGHT_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": f"meshwright {line}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    parser = "from meshwright.cli.app import app; app(prog_name='meshwright')"
    slow = subprocess.run([sys.executable, "-c", parser], capture_output=True, text=True, env={**os.environ, **env})
    assert quick(env) == slow.stdout.strip()


def test_names_are_those_of_the_registry() -> None:
    from meshwright.planners import registry

    assert planner_names("") == registry.names()
    assert "llama-3.1-8b" in model_names("llama-3.1")
    assert cluster_names("h100x6") == ["h100x64"]
    assert planner_lists("grid,gp") == ["grid,gpipe"] and "grid,grid" not in planner_lists("grid,gr")


def test_settings_are_those_of_the_planner_and_their_words() -> None:
    from meshwright.planners import registry
    from meshwright.settings import parameters

    for name, kind in registry.planners().items():
        found = setting_names(SimpleNamespace(params={"planner": name}), "")
        assert {f"{p}=" for p in parameters(kind)} <= set(found), name
    context = SimpleNamespace(params={"planner": "grid"})
    assert setting_names(context, "prune=") == ["prune=true", "prune=false"]
    assert "devices=" in setting_names(SimpleNamespace(params={}), "d")


def test_completed_degrees_divide_the_cluster(tmp_path: Path) -> None:
    context = SimpleNamespace(params={"cluster": "h100x8"})
    assert layout_words(context, "tp=") == ["tp=1", "tp=2", "tp=4", "tp=8"]
    assert layout_words(context, "tp=2,p") == ["tp=2,pp=1", "tp=2,pp=2", "tp=2,pp=4", "tp=2,pp=8"]
    (tmp_path / "c.toml").write_text("[[node]]\ndevices = 2\ncount = 3\n")
    context = SimpleNamespace(params={"cluster": str(tmp_path / "c.toml")})
    assert layout_words(context, "pp=") == ["pp=1", "pp=2", "pp=3", "pp=6"]
    assert layout_words(SimpleNamespace(params={"cluster": "h100x65"}), "pp=") == []
    assert layout_words(SimpleNamespace(params={"cluster": "nowhere.toml"}), "pp=") == []


def test_files_and_plans_beside_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt9-h100x8").mkdir()
    (tmp_path / "gpt9-h100x8" / "plan.json").write_text("{}")
    (tmp_path / "gpt9.toml").write_text("")
    assert model_or_plan("gpt9") == ["gpt9.toml", "gpt9-h100x8"]
    assert quick(asked("show gpt9")).split() == ["gpt9-h100x8"]
