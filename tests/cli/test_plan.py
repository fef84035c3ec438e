"""`plan`, `simulate`, `show`, `compare` from the command line, on a small real model."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import Command

from meshwright.errors import InputError
from meshwright.output_folder import check_free
from meshwright.request import Request, to_toml

SMALL = ("gpt2", "-c", "a100x8", "--batch", "64", "--seq", "256")


def test_plan_answers_on_one_screen_and_writes_four_files(meshwright: Command, tmp_path: Path) -> None:
    done = meshwright("plan", *SMALL)
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0].startswith("Plan for gpt2 on a100x8") and "batch 64 of 256 tokens · bf16 · AdamW" in lines[0]
    assert any(line.startswith("▶ 1 ") for line in lines)
    for label in ("Step ", "Memory ", "Why ", "Sure? ", "Next ", "Wrote "):
        assert sum(line.startswith(label) for line in lines) == 1
    assert max(map(len, lines)) <= 100 and len(lines) <= 40
    folder = tmp_path / "gpt2-a100x8"
    assert sorted(p.name for p in folder.iterdir()) == ["plan.json", "problem.toml", "report.html", "trace.json.gz"]
    assert json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_defaults_are_stated(meshwright: Command) -> None:
    done = meshwright("plan", "gpt2", "-c", "a100x8")
    assert "batch 512 (default) of 1,024 tokens (default)" in done.out


def test_json_is_one_object_with_units_in_its_keys(meshwright: Command) -> None:
    done = meshwright("plan", *SMALL, "--json")
    answer = json.loads(done.out)
    assert (answer["schema"], answer["status"]) == ("meshwright.plan/1", "ok")
    assert {"plan", "candidates", "why", "error_model", "files", "seconds", "result", "problem"} <= set(answer)
    best = answer["candidates"][0]
    assert best["step_s"] == pytest.approx(sum(answer["simulation"]["seconds_by"].values()))
    assert best["memory_bytes"] == pytest.approx(max(lane["peak_bytes"] for lane in answer["simulation"]["lanes"]))
    assert all(os.path.exists(path) for path in answer["files"].values())


def test_the_same_problem_is_overwritten_and_another_is_refused(meshwright: Command, tmp_path: Path) -> None:
    assert meshwright("plan", *SMALL).code == 0
    before = (tmp_path / "gpt2-a100x8" / "plan.json").read_bytes()
    assert meshwright("plan", *SMALL, "--fix", "tp=2").code == 0
    assert (tmp_path / "gpt2-a100x8" / "plan.json").read_bytes() != before
    refused = meshwright("plan", "gpt2", "-c", "a100x8", "--batch", "32", "--seq", "256")
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == (
        "meshwright: gpt2-a100x8/ holds another problem (batch 64, not 32): use -o gpt2-a100x8-2"
    )


def test_of_a_file_spelled_from_elsewhere_the_true_difference_is_said(tmp_path: Path) -> None:
    """problem.toml names the file from its own folder."""
    folder = tmp_path / "answer"
    folder.mkdir()
    held = Request(f"{tmp_path}/model.py:build", "a100x8", batch=64)
    (folder / "problem.toml").write_text(to_toml(held.seen_from(folder)))
    check_free(folder, held)
    with pytest.raises(InputError, match=r"holds another problem \(batch 64, not 32\)"):
        check_free(folder, replace(held, batch=32))


def test_a_folder_of_other_files_is_left_alone(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    done = meshwright("plan", *SMALL, "-o", "mine")
    assert done.err.splitlines()[-1] == (
        "meshwright: mine/ holds files but no problem.toml, so nothing there was overwritten: use -o mine-2"
    )
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_problem_toml_gives_the_same_plan_again(meshwright: Command, tmp_path: Path) -> None:
    assert meshwright("plan", *SMALL, "--fix", "tp=2").code == 0
    folder = tmp_path / "gpt2-a100x8"
    assert meshwright("plan", str(folder / "problem.toml"), "-o", "again").code == 0
    assert (tmp_path / "again" / "plan.json").read_bytes() == (folder / "plan.json").read_bytes()
    assert (tmp_path / "again" / "problem.toml").read_text() == (folder / "problem.toml").read_text()


def test_fix_and_top_are_obeyed(meshwright: Command) -> None:
    done = meshwright("plan", *SMALL, "--fix", "tp=2,pp=2", "--top", "3", "--json")
    fitting = [c for c in json.loads(done.out)["candidates"] if c["fits"]]
    assert fitting and all("tp2" in c["layout"] and "pp2" in c["layout"] for c in fitting)


def test_simulate_works_out_what_is_left_out(meshwright: Command, tmp_path: Path) -> None:
    done = meshwright("simulate", *SMALL, "--tp", "2", "--micro-batch", "4")
    assert done.code == 0
    assert "▶ 1 dp4 tp2" in done.out and "4 × 4" in done.out
    assert not list(tmp_path.iterdir())


def test_simulate_of_a_written_plan_gives_the_same_step(meshwright: Command) -> None:
    planned = json.loads(meshwright("plan", *SMALL, "--json").out)
    priced = json.loads(meshwright("simulate", "gpt2-a100x8", "--json").out)
    assert priced["simulation"]["step_s"] == pytest.approx(planned["simulation"]["step_s"], rel=1e-12)


def test_show_prints_the_table_again(meshwright: Command) -> None:
    first = meshwright("plan", *SMALL).out.splitlines()
    again = meshwright("show", "gpt2-a100x8", "--text").out.splitlines()
    cut = first.index(next(line for line in first if line.startswith("Sure?")))
    assert again[:cut] == first[:cut]
    assert meshwright("show", "gpt2-a100x8", "--diff", "gpt2-a100x8").code == 0


def test_a_plan_for_another_model_is_refused(meshwright: Command, tmp_path: Path) -> None:
    assert meshwright("plan", *SMALL).code == 0
    problem = tmp_path / "gpt2-a100x8" / "problem.toml"
    problem.write_text(problem.read_text().replace("seq = 256", "seq = 128"))
    done = meshwright("show", "gpt2-a100x8", "--text")
    assert done.code == 2
    assert "gpt2-a100x8/plan.json is for another gpt2: its graph is " in done.err
    problem.write_text(problem.read_text().replace('name = "gpt2"', 'name = "gpt2-medium"'))
    done = meshwright("show", "gpt2-a100x8", "--text")
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        "meshwright: plan.json is for gpt2, not gpt2-medium: 148 of 148 parameters differ, first transformer.wte.weight "
        "(50257×768, not 50257×1024)"
    )


def test_a_layout_that_does_not_fit_is_exit_3_with_what_it_is_over_by(meshwright: Command) -> None:
    done = meshwright("simulate", "gpt2", "-c", "p100x1", "--batch", "64", "--seq", "1024", "--micro-batch", "64")
    assert done.code == 3
    assert "over by" in done.out and "✗" in done.out


def test_compare_ranks_planners_and_says_what_they_claim(meshwright: Command, tmp_path: Path) -> None:
    done = meshwright("compare", *SMALL, "--planners", "grid,gpipe")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("gpt2 on a100x8, batch 64 of 256")
    assert lines[2].startswith("▶ 1") and "grid" in lines[2]
    folder = tmp_path / "compare-gpt2-a100x8"
    assert {"report.html", "results.csv", "cite.bib", "problem.toml", "plans"} == {p.name for p in folder.iterdir()}
    assert (folder / "results.csv").read_text().splitlines()[0].startswith("planner,family,status,fits,layout,step_s")


MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x, y):
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return {"loss": ((x - y) ** 2).mean(), "out": x}


def build():
    return Net(), {"x": torch.zeros(8, 64), "y": torch.zeros(8, 64)}
"""
CLUSTER = """
schema = 1
name = "mine"
[device.h100]
memory = "40 GiB"
[link.nvlink]
bandwidth = "450 GB/s"
[[node]]
device = "h100"
devices = 4
count = 2
link = "nvlink"
uplink = "ib"
[link.ib]
bandwidth = "400 Gb/s"
"""


def test_an_own_model_on_an_own_cluster(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    done = meshwright(
        "plan", "model.py:build", "-c", "cluster.toml", "--batch", "64", "--precision", "fp32", "-o", "out"
    )
    assert done.code == 0, done.err
    assert "on mine" in done.out.splitlines()[0] and "sample/s/GPU" in done.out
    again = meshwright("plan", "out/problem.toml", "-o", "again", "-q")
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "plan.json").read_bytes() == (tmp_path / "out" / "plan.json").read_bytes()


def test_a_local_hugging_face_config(meshwright: Command, tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": 256,
    }
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    done = meshwright("plan", "tiny/config.json", "-c", "a100x2", "--batch", "8", "--seq", "32", "-q")
    assert done.code == 0, done.err
    assert (tmp_path / "tiny-a100x2" / "plan.json").exists()
