"""Every sentence, whole. A command that fails writes nothing to stdout and nothing to disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import Command

from meshwright.errors import InputError
from meshwright.graph.zoo import entries
from meshwright.request import Request
from meshwright.stated import state

SENTENCES = [
    (
        ["plan", "lama-3.1-8b"],
        f'no model "lama-3.1-8b": did you mean llama-3.1-8b? ("meshwright models" lists {len(entries())})',
    ),
    (
        ["plan", "meta-llama/Llama-3.1-8B"],
        '"meta-llama/Llama-3.1-8B" is a hub name and meshwright downloads nothing: use llama-3.1-8b, or give a local '
        "config.json",
    ),
    (
        ["plan", "gpt2", "--cluster", "h100x65"],
        "h100x65: nodes of h100 hold 8, so the count is 1 to 8 or a multiple of 8; nearest are h100x64 and h100x72",
    ),
    (
        ["simulate", "gpt2", "-c", "h100x64", "--dp", "8", "--tp", "8", "--pp", "2"],
        "dp 8 × tp 8 × pp 2 = 128 devices but h100x64 has 64: leave one out and it is worked out for you",
    ),
    (
        ["simulate", "gpt2", "-c", "h100x64", "--dp", "3"],
        "dp 3 = 3 devices, which does not divide the 64 of h100x64: nearest are 2 and 4",
    ),
    (
        ["simulate", "gpt2", "-c", "h100x8", "--dp", "2", "--tp", "2", "--pp", "1", "--cp", "4"],
        "dp 2 × tp 2 × pp 1 × cp 4 = 16 devices but h100x8 has 8: leave one out and it is worked out for you",
    ),
    (
        ["simulate", "gpt2", "-c", "h100x8", "--vpp", "2"],
        "--vpp 2 cuts pipeline stages in chunks, but pp is 1: give --pp",
    ),
    (["plan", "gpt2", "--precision", "bf15"], 'no precision "bf15": use one of bf16, fp16, fp32'),
    (["plan", "gpt2", "--objective", "speed"], 'no objective "speed": use one of step, cost, memory'),
    (["plan", "gpt2", "--fix", "tp"], '--fix tp: write a degree as tp=8, several as "tp=8,pp=1"'),
    (["plan", "gpt2", "--allow", "recompute"], "--allow recompute: write the choices as recompute=none,full"),
    (
        ["plan", "gpt2", "--planner", "gird"],
        'no planner "gird": did you mean grid? ("meshwright planners" lists {planners})',
    ),
    (
        ["plan", "gpt2", "--planner", "gpipe", "--fix", "tp=2"],
        "planner gpipe takes no --fix: leave it out, or use --planner grid",
    ),
    (
        ["compare", "gpt2", "--planners", "tag:magic"],
        'no planner has the tag "magic": "meshwright planners" lists their tags',
    ),
    (["compare", "gpt2", "--planners", ","], "--planners names none: write a,b or all or tag:WORD"),
    (["show", "."], "./ holds no plan.json: give the folder that meshwright plan wrote"),
    (["models", "gpt3"], 'no model "gpt3": did you mean gpt2? ("meshwright models" lists {models})'),
    (["clusters", "h101"], 'no cluster "h101": did you mean h100? ("meshwright clusters" lists {clusters})'),
    (["plan", "gpt2", "--batch", "0"], "--batch 0: must be a whole number of at least 1"),
    (["plan", "gpt2", "--seq", "1.5"], "--seq 1.5: must be a whole number of at least 1"),
    (["plan", "gpt2", "--top", "101"], "--top 101: must be a whole number from 1 to 100"),
    (["plan", "gpt2", "--budget", "0"], "--budget 0: must be a number of seconds, above 0"),
    (["compare", "gpt2", "--budget", "nan"], "--budget nan: must be a number of seconds, above 0"),
    (["simulate", "gpt2", "--zero", "4"], "--zero 4: must be a whole number from 0 to 3"),
    (["run", "gpt2-local", "--steps", "0"], "--steps 0: must be a whole number of at least 1"),
    (["verify", "gpt2-local", "--ranks", "x"], "--ranks x: must be a whole number from 1 to 64"),
    (["validate", "--max-error", "nan"], "--max-error nan: must be a number of percent, 0 or more"),
    (["validate", "--max-error", "inf"], "--max-error inf: must be a number of percent, 0 or more"),
    (["validate", "--max-error=-1"], "--max-error -1: must be a number of percent, 0 or more"),
    (["plan", "gpt2", "--nope"], 'no such option: --nope: see "meshwright plan --help"'),
]


@pytest.mark.parametrize(("args", "sentence"), SENTENCES, ids=[" ".join(a) for a, _ in SENTENCES])
def test_the_whole_sentence_is(meshwright: Command, tmp_path: Path, args: list[str], sentence: str) -> None:
    from meshwright.cluster import presets
    from meshwright.planners import registry

    counts = {"planners": len(registry.names()), "models": len(entries()), "clusters": len(presets())}
    for name, n in counts.items():
        sentence = sentence.replace("{" + name + "}", str(n))
    done = meshwright(*args)
    assert done.err.splitlines()[-1] == f"meshwright: {sentence}"
    assert (done.code, done.out) == (2, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"batch": 0}, "--batch 0: must be"),
        ({"seq": -1}, "--seq -1: must be"),
        ({"budget": 0.0}, "--budget 0: must be"),
    ],
)
def test_numbers_are_refused_where_no_option_was_parsed(wrong: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        state(replace(Request("gpt2", "a100x8"), **wrong))  # type: ignore[arg-type]


def test_with_json_an_error_is_an_object_too(meshwright: Command) -> None:
    done = meshwright("plan", "gpt2", "-c", "h100x65", "--json")
    error = json.loads(done.out)
    assert (error["schema"], error["status"], error["error"]["code"]) == ("meshwright.error/1", "error", "input")
    assert error["error"]["message"].startswith("h100x65: nodes of h100 hold 8")
    assert error["error"]["where"] == "--cluster"


def test_a_function_that_is_not_there_is_named(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build(): ...\ndef main(): ...\n")
    done = meshwright("plan", "model.py:biuld", "-c", "h100x8")
    assert done.err.splitlines()[-1] == 'meshwright: model.py has no function "biuld": it defines build and main'


def test_a_wrong_return_is_named_with_its_line(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(2, 2)\n")
    done = meshwright("plan", "model.py:build", "-c", "h100x8")
    assert (
        done.err.splitlines()[-1]
        == "meshwright: model.py:5: build() returned a Linear: it must return (module, example_inputs)"
    )


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        ("sys.exit(0)", "model.py:5: ends the program: it must build the model and return"),
        ("raise KeyError('dim')", "model.py:5: KeyError: 'dim'"),
    ],
)
def test_a_function_that_ends_the_program_is_named_with_its_line(
    meshwright: Command, tmp_path: Path, end: str, sentence: str
) -> None:
    (tmp_path / "model.py").write_text(f"import sys\n\n\ndef build():\n    {end}\n")
    done = meshwright("plan", "model.py:build", "-c", "h100x8")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"meshwright: {sentence}"
    (tmp_path / "planner.py").write_text(f"import sys\n\n\n\n{end}\n")
    done = meshwright("plan", "gpt2", "-c", "h100x8", "--planner", "./planner.py")
    assert done.code == 2 and "planner.py cannot be imported: " in done.err


def test_a_cluster_file_is_faulted_by_line(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(
        '[device.h100]\nmem = "80 GiB"\nbandwidth = "3350 GB/s"\n[device.h100.peak]\nbfloat16 = "989 TFLOP/s"\n'
    )
    done = meshwright("plan", "gpt2", "-c", "cluster.toml")
    assert done.code == 2
    assert 'cluster.toml:2: no field "mem" in [device.h100]: did you mean "memory"?' in done.err


def test_a_bug_of_ours_is_one_sentence_and_a_saved_traceback(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from meshwright.planners import Planner\nfrom meshwright.planners.types import Info\n\n\n"
        "class Broken(Planner):\n"
        "    info = Info('broken', 'x', 2026, 'x', frozenset(), frozenset({'dag'}), frozenset({'time'}))\n\n"
        "    def search(self, problem, run):\n        return 1 / 0\n\n"
        "    def objective(self, problem, plan):\n        return 0.0\n"
    )
    done = meshwright("plan", "gpt2", "-c", "a100x8", "--planner", "./broken.py")
    assert done.code == 70
    last = done.err.splitlines()[-1]
    assert last.startswith(
        "meshwright: a bug of ours (ZeroDivisionError at broken.py:9: division by zero): the traceback is in "
    )
    saved = Path(last.split(" is in ")[1].split(",")[0])
    assert "ZeroDivisionError: division by zero" in saved.read_text()
    saved.unlink()


def test_a_damaged_plan_is_named_with_its_line(meshwright: Command, tmp_path: Path) -> None:
    assert meshwright("plan", "gpt2", "-c", "a100x2", "--batch", "8", "--seq", "64", "-q").code == 0
    plan = tmp_path / "gpt2-a100x2" / "plan.json"
    text = plan.read_text()
    plan.write_text(text[: text.rindex('"stages"') + 40])
    done = meshwright("show", "gpt2-a100x2")
    line = plan.read_text().count("\n") + 1
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        f"meshwright: plan.json:{line}: cut off inside stage 0, so nothing was read: write it again with "
        '"meshwright plan gpt2-a100x2/problem.toml"'
    )


def test_a_plan_that_was_edited_is_no_legal_answer(meshwright: Command, tmp_path: Path) -> None:
    assert meshwright("plan", "gpt2", "-c", "a100x2", "--batch", "8", "--seq", "64", "--fix", "pp=2", "-q").code == 0
    plan = tmp_path / "gpt2-a100x2" / "plan.json"
    text = plan.read_text()
    for old, new, said in (
        (".h[", ".h[null:1]x[", "names 0 runs of equal blocks"),
        ('"devices": "0:', '"devices": "7:', ""),
    ):
        plan.write_text(text.replace(old, new, 1))
        done = meshwright("show", "gpt2-a100x2", "--text")
        assert (done.code, done.out) == (2, "")
        assert said in done.err.splitlines()[-1]
