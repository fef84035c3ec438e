"""What `schema` says is what commands take, say and read."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from in_process import Command
from json_schema import faults

from meshwright.cli.answers import ANSWERS
from meshwright.cli.app import COMMANDS
from meshwright.cli.completion import DESCRIBED
from meshwright.cli.described import answers, error, files

SMALL = ("gpt2", "-c", "a100x2", "--batch", "8", "--seq", "64")
CLUSTER = """
schema = 1
[device.mine]
memory = "80 GiB"
bandwidth = "2 TB/s"
peak = { bf16 = "300 TFLOP/s" }
price_per_hour = 2.0
[link.wire]
bandwidth = "100 GB/s"
latency = "5 us"
[[node]]
device = "mine"
devices = 2
link = "wire"
"""


def said(meshwright: Command, *args: str, code: int = 0) -> Any:
    done = meshwright(*args, "--json")
    assert done.code == code, done.err
    return json.loads(done.out)


def check(answer: Any, command: str, kind: str) -> None:
    assert faults(answer, answers(command)[kind]) == []


def test_the_checker_finds_faults() -> None:
    schema = answers("check")["CheckAnswer"]
    right: dict[str, Any] = {
        "schema": "meshwright.check/1", "status": "ok", "planner": "x",
        "checks": [{"name": "a", "passed": True, "note": "", "fault": ""}],
    }  # fmt: skip
    assert faults(right, schema) == []
    assert faults(right | {"status": "fine"}, schema) == ["$.status is 'fine', not one of ['ok', 'error']"]
    assert faults(right | {"schema": "meshwright.check/2"}, schema)
    assert faults(right | {"more": 1}, schema) == ["$ has more, which is not described"]
    assert faults({k: v for k, v in right.items() if k != "planner"}, schema) == ["$ has no planner"]
    wrong = right | {"checks": [{"name": "a", "passed": 1, "note": "", "fault": ""}]}
    assert faults(wrong, schema) == ["$.checks[0].passed is int, not boolean"]


def test_plans_and_what_is_shown_of_them(meshwright: Command, tmp_path: Path) -> None:
    check(said(meshwright, "plan", *SMALL, "--tokens", "1B", "--price", "2"), "plan", "PlanAnswer")
    plan = json.loads((tmp_path / "gpt2-a100x2" / "plan.json").read_text())
    assert faults(plan, files()["plan.json"]()) == []
    problem = tomllib.loads((tmp_path / "gpt2-a100x2" / "problem.toml").read_text())
    assert faults(problem, files()["problem.toml"]()) == []
    check(said(meshwright, "simulate", *SMALL, "--dp", "2"), "simulate", "PlanAnswer")
    check(said(meshwright, "show", "gpt2-a100x2"), "show", "PlanAnswer")
    check(said(meshwright, "show", "gpt2-a100x2", "--diff", "gpt2-a100x2"), "show", "DiffAnswer")
    check(said(meshwright, "show", "gpt2-a100x2", "--shardings"), "show", "ShardingsAnswer")
    check(said(meshwright, "run", "gpt2-a100x2", "--slurm", "job.sh"), "run", "SlurmAnswer")
    cost = said(meshwright, "plan", *SMALL, "--objective", "cost", "--price", "3", "-o", "cost")
    check(cost, "plan", "PlanAnswer")
    none = said(meshwright, "plan", "gpt3-2.7b", "-c", "p100x1", "--batch", "1", "--seq", "512", code=3)
    check(none, "plan", "PlanAnswer")


@pytest.mark.parametrize("planner", ["tensoropt", "gspmd", "piper", "pipedream_2bw", "chimera", "accpar"])
def test_plans_of_all_kinds_are_of_the_file(meshwright: Command, planner: str, tmp_path: Path) -> None:
    found = said(meshwright, "plan", "gpt2", "-c", "a100x4", "--batch", "16", "--seq", "64", "--planner", planner)
    check(found, "plan", "PlanAnswer")
    assert faults(found["plan"], files()["plan.json"]()) == []


def test_every_field_that_a_plan_may_have_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the reader asks for, against the names in the schema, object by object."""
    from meshwright.cluster import Mesh
    from meshwright.plan import _fields, serial
    from meshwright.plan.model import (
        Action,
        Cut,
        Layout,
        OpSharding,
        Plan,
        Row,
        Schedule,
        Stage,
        Storage,
        SumProgram,
        SumStep,
    )

    layout = Layout((((0, (Cut("x", (1, 3)),)),),), ("y",))
    stage = Stage(
        ("a",), Mesh((0, 1, 5, 7), ("x", "y"), (2, 2)), {"a": OpSharding({"b": (Cut("x"),)}, "v", ("k",))}, {"t": layout},
        {"w": Storage(layout, layout, layout, (0,), 0.5)}, frozenset({"a"}), 1, frozenset({"t"}), "x", 1,
        (SumProgram(("x",), (SumStep("reduce", ("x",), ("y",)),)),), "stage", gradients={"t": layout},
    )  # fmt: skip
    rows = (Row((0,), (Action("F", 0), Action("SEND", "t", 0, 1, 1), (Action("SEND", "t"), Action("RECV", "t")))),)
    plan = Plan("g", 4, (stage,), Schedule("custom", 2, {"k": 1}, rows), frozenset({"w"}), frozenset({"t"}))
    written = json.loads(serial.dumps(plan))
    described = files()["plan.json"]()
    assert faults(written, described) == []
    asked: list[set[str]] = []
    close = _fields.Fields.close

    def told(self: Any) -> None:
        asked.append(set(self.known))
        close(self)

    monkeypatch.setattr(_fields.Fields, "close", told)
    assert serial.from_json(written) == plan
    objects = [described, *described["$defs"].values()]
    shapes = [set(o["properties"]) for o in objects if "properties" in o]
    assert len(shapes) >= 11
    for names in asked:
        assert names in shapes, sorted(names)


def test_comparisons_listings_and_new_planners(meshwright: Command) -> None:
    check(
        said(meshwright, "compare", *SMALL, "--planners", "grid,gpipe,alpa", "--budget", "5"),
        "compare",
        "CompareAnswer",
    )
    for command, kind in (("models", "ModelsAnswer"), ("clusters", "ClustersAnswer"), ("planners", "PlannersAnswer"),
                          ("exporters", "ExportersAnswer")):  # fmt: skip
        check(said(meshwright, command), command, kind)
    check(said(meshwright, "models", "gpt2"), "models", "ModelsAnswer")
    check(said(meshwright, "new", "planner", "mine"), "new", "NewAnswer")
    check(said(meshwright, "schema"), "schema", "SchemaAnswer")


def test_recorded_profiles(meshwright: Command, data_folder: Path) -> None:
    file = str(data_folder / "mindspore-planners" / "recursive_programming_mlp.json")
    check(said(meshwright, "plan", file), "plan", "RecordedAnswer")
    found = said(meshwright, "compare", file, "--planners", "double_recursive,tofu,alpa")
    check(found, "compare", "RecordedCompareAnswer")


def test_proofs_and_conformance(meshwright: Command) -> None:
    assert meshwright("plan", "gpt2", "-c", "localx2", "--batch", "4", "--seq", "32", "--precision", "fp32").code == 0
    check(said(meshwright, "verify", "gpt2-localx2", "--ranks", "2"), "verify", "VerifyAnswer")
    check(said(meshwright, "check", "gpipe"), "check", "CheckAnswer")


@pytest.mark.parametrize(
    ("args", "code"), [(("plan", "lama"), 2), (("plan", "gpt2", "--nope"), 2), (("schema", "plon"), 2)]
)
def test_errors(meshwright: Command, args: tuple[str, ...], code: int) -> None:
    assert faults(said(meshwright, *args, code=code), error()) == []


def test_files_that_people_write(meshwright: Command, tmp_path: Path) -> None:
    assert faults(tomllib.loads(CLUSTER), files()["cluster.toml"]()) == []
    (tmp_path / "c.toml").write_text(CLUSTER)
    assert said(meshwright, "simulate", "gpt2", "-c", "c.toml", "--batch", "8", "--seq", "64", "--dp", "2")["plan"]
    annotations = {"schema": 1, "mesh": {"x": 2}, "annotate": [{"tensor": "*", "dims": ["x", "_"], "never": ["y"]}]}
    assert faults(annotations, files()["annotations.toml"]()) == []
    assert faults(annotations | {"annotate": []}, files()["annotations.toml"]()) == ["$.annotate has 0 items"]
    with_tokens = {"schema": 1, "model": {"name": "gpt2", "tokens": "15T"}, "cluster": {"name": "h100x8", "price": 2}}
    assert faults(with_tokens, files()["problem.toml"]()) == []
    assert tuple(files()) == DESCRIBED


def test_all_commands_and_options_are_described(meshwright: Command) -> None:
    found = json.loads(meshwright("schema").out)
    assert list(found["commands"]) == list(COMMANDS) and set(ANSWERS) == set(COMMANDS)
    for name, command in found["commands"].items():
        helped = meshwright(name, "--help").out
        flags = [flag for option in command["options"] for flag in option["flags"]]
        assert flags and all(flag in helped for flag in flags), name
        assert set(flags) | {"--help", "-h"} >= {w.strip(",.") for w in helped.split("Examples:")[0].split() if w[:2] == "--" and w[2:3].isalpha() and "=" not in w and w.strip(",.") not in helped.split("Options:")[0]}  # fmt: skip
        assert all(option["help"] for option in command["options"])
    plan = found["commands"]["plan"]
    objective = next(o for o in plan["options"] if o["flags"] == ["--objective"])
    assert (objective["choices"], objective["default"]) == (["step", "cost", "memory"], "step")
    cluster = next(o for o in plan["options"] if "-c" in o["flags"])
    assert cluster["flags"] == ["--cluster", "-c"] and cluster["environment"] == "MESHWRIGHT_CLUSTER"
    assert next(o for o in plan["options"] if o["flags"] == ["--allow"])["repeated"] is True
    one = json.loads(meshwright("schema", "problem.toml").out)
    assert (one["commands"], list(one["files"])) == ({}, ["problem.toml"])
    assert meshwright("schema", "plon").err == 'meshwright: no command and no file "plon": did you mean plan?\n'


def test_exports_and_imports(meshwright: Command) -> None:
    assert meshwright("plan", *SMALL, "--fix", "dp=2", "-q").code == 0
    check(
        said(meshwright, "export", "gpt2-a100x2", "--to", "megatron", "--allow-lossy", "--check"),
        "export",
        "ExportAnswer",
    )
    check(said(meshwright, "export", "gpt2-a100x2", "--to", "meshwright"), "export", "ExportAnswer")
    script = next(Path("gpt2-a100x2/megatron").glob("*.sh"))
    found = said(meshwright, "simulate", *SMALL, "--from", str(script), "--format", "megatron")
    check(found, "simulate", "ImportedAnswer")


def test_validations(meshwright: Command) -> None:
    check(said(meshwright, "validate", "--source", "amp"), "validate", "ValidateAnswer")
