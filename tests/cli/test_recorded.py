"""`plan` and `compare` of recorded profiles: the published values by exactly the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from in_process import Command

from meshwright._words import number
from meshwright.formats.detect import FORMATS

GIB = 2.0**30
SAME = 1e-6


def answer(meshwright: Command, *args: str, code: int = 0) -> dict[str, Any]:
    done = meshwright("plan", *args, "--json", "-q")
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def profile(data: Path, name: str) -> str:
    path = data / name
    return str(path if path.exists() else path.with_name(path.name + ".xz"))


# ---- values: the same for any format


def piper_rows(data: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((data / "piper" / "expected.json").read_text())["rows"]
    return rows


def check_piper(meshwright: Command, data: Path, row: dict[str, Any]) -> None:
    given = [
        profile(data, f"piper/{row['graph']}.json"), "--planner", "piper", "--set", f"devices={row['K']}",
        "--set", f"memory={row['M_GiB']}GiB", "--set", "bandwidth=25GiB", "--set", f"micro_batches={row['N']}",
    ]  # fmt: skip
    found = answer(meshwright, *given, code=3 if row["tps"] is None else 0)
    if row["tps"] is None:
        assert (found["status"], found["objective"], found["plan"]) == ("infeasible", None, None)
        return
    assert found["objective"] <= row["tps"] * (1 + SAME) and found["objective"] >= row["tps"] * (1 - SAME)
    assert found["status"] == "optimal" and found["bound"] == pytest.approx(found["objective"])
    assert max(s["load"] for s in found["stages"]) == pytest.approx(found["objective"], rel=1e-12)
    assert len({d for s in found["stages"] for d in s["devices"]}) <= row["K"]


def test_piper_on_bert_has_the_published_values(meshwright: Command, data_folder: Path) -> None:
    rows = [r for r in piper_rows(data_folder) if r["graph"] == "bert32a100"]
    for row in rows[::4]:
        check_piper(meshwright, data_folder, row)


@pytest.mark.slow
def test_piper_has_every_published_value(meshwright: Command, data_folder: Path) -> None:
    for row in piper_rows(data_folder):
        check_piper(meshwright, data_folder, row)


def dnn_rows(data: Path, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((data / "dnn-partitioning" / "expected.json").read_text())[kind]
    return rows


def check_dnn(meshwright: Command, data: Path, row: dict[str, Any]) -> None:
    file = profile(data, f"dnn-partitioning/throughput/{row['input']}.json")
    found = answer(meshwright, file)
    assert found["planner"]["name"] == "dnn_partitioning"
    assert found["objective"] == pytest.approx(row["dp"], rel=SAME) and found["status"] == "optimal"
    assert max(s["load"] for s in found["stages"]) == pytest.approx(found["objective"])
    assert sorted(v for s in found["stages"] for v in s["nodes"]) == sorted(
        {v for s in found["stages"] for v in s["nodes"]}
    )
    assert found["problem"]["nodes"] == row["nodes"] == sum(len(s["nodes"]) for s in found["stages"])
    linear = answer(meshwright, file, "--set", "method=linear")
    assert linear["objective"] == pytest.approx(row["dpl"], rel=0.02)  # by the order that the original happened to take
    assert linear["bound"] is None or linear["bound"] <= row["dp"] * (1 + SAME)


def test_max_load_of_layer_graphs_has_the_published_value(meshwright: Command, data_folder: Path) -> None:
    for row in dnn_rows(data_folder, "throughput")[:3]:
        check_dnn(meshwright, data_folder, row)


@pytest.mark.slow
def test_max_load_has_every_published_value(meshwright: Command, data_folder: Path) -> None:
    for row in dnn_rows(data_folder, "throughput"):
        check_dnn(meshwright, data_folder, row)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "published"),
    [("bert24_inference", "contiguous", 17.7899), ("bert24_inference", "noncontiguous", 17.7147), ("bert24_training", "noncontiguous", 39.7895)],
)  # fmt: skip
def test_programmes_enclose_the_published_values(
    meshwright: Command, data_folder: Path, name: str, method: str, published: float
) -> None:
    file = profile(data_folder, f"dnn-partitioning/throughput/layer/{name}.json")
    found = answer(meshwright, file, "--set", f"method={method}", "--budget", "60")
    assert 0 < found["bound"] <= published * (1 + 1e-5)
    assert found["objective"] <= published * 1.01
    assert found["gap"] <= 0.01 + 1e-9 or found["search_s"] >= 60


def test_latency_baselines_have_the_published_values(meshwright: Command, data_folder: Path) -> None:
    for row in dnn_rows(data_folder, "latency")[:1]:
        file = profile(data_folder, f"dnn-partitioning/latency/{row['input']}.json")
        for method, want in (("greedy", row["greedy"]), ("max_load", row["dp_split_latency"])):
            found = answer(meshwright, file, "--set", "objective=latency", "--set", f"method={method}")
            assert found["objective"] == pytest.approx(want, rel=1e-5) and found["unit"] == "ms"


PIPEDREAM = [
    ("alexnet", ("devices=4", "bandwidth=1e9", "compression_ratio=1"), 0.034217141),
    ("alexnet", ("devices=4", "bandwidth=1e9"), 0.023165752),
    ("alexnet", ("workers=4", "bandwidth=1e9", "compression_ratio=1", "straight=true"), 0.066453504),
    ("vgg16", ("workers=4x4", "bandwidth=1e10,1.25e9", "compression_ratio=1"), 0.067133997),
    ("vgg16", ("workers=16", "bandwidth=1.25GB/s", "compression_ratio=1.0"), 0.054794891),
    ("vgg16", ("workers=16", "bandwidth=3.125e9", "compression_ratio=1"), 0.045525),
    ("gnmt", ("workers=4x4", "bandwidth=1e10,1.25e9", "compression_ratio=1"), 0.011081),
]


@pytest.mark.parametrize(("name", "settings", "want"), PIPEDREAM)
def test_pipedream_has_the_published_objective(
    meshwright: Command, data_folder: Path, name: str, settings: tuple[str, ...], want: float
) -> None:
    file = profile(data_folder, f"pipedream/{name}.graph.txt")
    found = answer(meshwright, file, "--planner", "pipedream", "--set", *settings)
    assert found["objective"] == pytest.approx(want, abs=6e-7) and found["unit"] == "s"
    assert found["asynchronous"] and max(s["load"] for s in found["stages"]) == found["objective"]
    assert found["details"]["replicas"] == [s["replicas"] for s in found["stages"]]


DAPPLE = [
    ("xlnet-36", 128, 1, "8x2", 14.816194281, (8, 8)),
    ("vgg-19", 2048, 32, "8x2", 12.062334069, (15, 1)),
    ("amoeba-36", 128, 1, "8x2", 11.875863950, (8, 8)),
    pytest.param("amoeba-36", 128, 1, "1x16", 8.108117854, (11, 5), marks=pytest.mark.slow),
    pytest.param("bert-48", 64, 2, "1x16", 9.734807991, (1,) * 16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "batch", "micro_batch", "workers", "speedup", "replicas"), DAPPLE)
def test_dapple_has_the_published_speed_up(
    meshwright: Command, data_folder: Path, name: str, batch: int, micro_batch: int, workers: str, speedup: float,
    replicas: tuple[int, ...],
) -> None:  # fmt: skip
    given = [profile(data_folder, "dapple/states.json"), "--set", f"profile={name}", f"workers={workers}"]
    found = answer(meshwright, *given, f"micro_batch={micro_batch}", "--batch", str(batch))
    assert found["details"]["speedup"] == pytest.approx(speedup, rel=1e-9)
    assert tuple(s["replicas"] for s in found["stages"]) == replicas
    other = answer(meshwright, *given, f"micro_batch={micro_batch}", f"micro_batches={batch // micro_batch}")
    assert other["objective"] == found["objective"]  # as many micro-batches of the profiled size


EQUI = [
    ("bert32a100", 512, 8, 8, "equi_no_tp", 0.230978, (7, 1, 1)),
    ("bert32a100", 512, 8, 32, "equi_no_tp", 0.057942875, (7, 4, 1)),
    ("bert32a100", 1920, 8, 32, "equi_no_tp", 0.051351089, (5, 6, 1)),
    ("bert32a100", 512, 80, 8, "equi_no_tp", 0.12310526, (1, 8, 1)),
    ("bert32a100", 512, 2, 64, "equi", 0.12333875, (14, 1, 4)),
    ("bert32a100", 512, 1, 8, "equi", None, ()),
    pytest.param("bert32a100", 1920, 8, 512, "equi_no_tp", 0.003301324364, (5, 96, 1), marks=pytest.mark.slow),
    pytest.param("bert32a100", 1920, 80, 512, "equi_no_tp", 0.002414787, (3, 160, 1), marks=pytest.mark.slow),
    ("gnmt", 256, 2.5, 2, "equi_no_tp", 325.025929688, (2, 1, 1)),
    ("gnmt", 256, 3.5, 2, "equi_no_tp", 260.226823306, (1, 2, 1)),
    ("gnmt", 256, 1.2, 8, "equi_no_tp", 137.518109375, (6, 1, 1)),
    ("resnet", 7680, 8, 8, "equi_no_tp", 164.15928125, (8, 1, 1)),
    ("resnet", 7680, 4, 8, "equi_no_tp", None, ()),
]
"""The planner of PipeDream-2BW as Piper's study runs it: (input, micro-batches, GiB, devices, method, value, (stages, d, t))."""


@pytest.mark.parametrize(("graph", "batch", "memory", "devices", "method", "want", "shape"), EQUI)
def test_equal_partitions_have_the_published_values(
    meshwright: Command, data_folder: Path, graph: str, batch: int, memory: float, devices: int, method: str,
    want: float | None, shape: tuple[int, ...],
) -> None:  # fmt: skip
    given = [
        "--set",
        f"method={method}",
        "bandwidth=25GiB",
        f"devices={devices}",
        f"memory={memory}GiB",
        f"micro_batches={batch}",
    ]
    found = answer(meshwright, profile(data_folder, f"piper/{graph}.json"), *given, code=3 if want is None else 0)
    if want is None:
        assert found["objective"] is None
        return
    assert found["objective"] == pytest.approx(want, rel=1e-6)
    stages = found["stages"]
    assert (len(stages), stages[0]["replicas"], stages[0]["parts"]) == shape


# ---- settings


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """R1 of the placement study: five nodes, two accelerators, no CPU."""
    times, costs = (2, 3, 4, 3, 2), (1, 0.5, 2, 0.25, 0)
    document = {
        "maxSizePerFPGA": 100.0, "maxFPGAs": 2, "maxCPUs": 0,
        "nodes": [
            {"id": v, "supportedOnFpga": True, "fpgaLatency": t, "cpuLatency": 10 * t, "size": 1.0, "isBackwardNode": False}
            for v, t in enumerate(times)
        ],
        "edges": [
            {"sourceId": a, "destId": b, "cost": costs[a], "size": 1.0} for a, b in ((0, 1), (0, 2), (1, 3), (2, 3), (3, 4))
        ],
    }  # fmt: skip
    path = tmp_path / "small.json"
    path.write_text(json.dumps(document))
    return path


def test_the_table_has_stages_loads_gap_and_time(meshwright: Command, small: Path) -> None:
    done = meshwright("plan", small.name, "-q")
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0] == (
        "small.json (dnn_partitioning), 5 nodes, on 2 accelerators of 100 B     dnn_partitioning, the planner of "
        "this format"
    ) or lines[:2] == [
        "small.json (dnn_partitioning), 5 nodes, on 2 accelerators of 100 B",
        "    dnn_partitioning, the planner of this format",
    ]
    text = done.out
    assert "stage  nodes" in text and "load ms" in text and number(10.5, 6) in text
    assert "Objective 10.5000000 ms     bound 10.5000000, gap 0.00 %     optimal after" in text
    assert "Simulated step" in text
    assert not any(p.name != "small.json" for p in small.parent.iterdir())


def test_cases_by_hand(meshwright: Command, small: Path) -> None:
    def value(*settings: str) -> float:
        found: float = answer(meshwright, str(small), *(x for s in settings for x in ("--set", s)))["objective"]
        return found

    assert value() == 10.5
    assert value("method=noncontiguous", "gap=0") == pytest.approx(8.75)
    assert value("devices=3") == value("devices=3", "method=noncontiguous", "gap=0.0") == pytest.approx(7.5)
    assert value("devices=1") == 14


def test_settings_are_typed_by_the_signature_and_unknown_ones_are_listed(meshwright: Command, small: Path) -> None:
    def error(*settings: str, planner: str = "dnn_partitioning") -> str:
        done = meshwright("plan", str(small), "-q", "--planner", planner, *(x for s in settings for x in ("--set", s)))
        assert done.code == 2 and not done.out
        assert len(done.err.splitlines()) == 1
        return done.err.strip().removeprefix("meshwright: ")

    assert error("devces=8") == (
        'no setting "devces": did you mean "devices"? format dnn_partitioning takes devices, memory, bandwidth, '
        "micro_batches; planner dnn_partitioning takes objective, method, blocks, separate, gap, seconds"
    )
    assert error("devices=x") == "--set devices=x: wanted a whole number, such as 16, 16e9 or 16GiB or none"
    assert error("devices=0") == f"{small}: devices is 0, wanted a whole number of 1 or more"
    assert error("devices=1.5") == "--set devices=1.5: wanted a whole number or none"
    assert error("memory=-1") == f"{small}: memory is -1, wanted bytes above 0"
    assert error("memory=16XB") == "--set memory=16XB: wanted a number, such as 16, 16e9 or 16GiB or none"
    assert error("objective=speed") == "--set objective=speed: wanted one of throughput, latency"
    assert error("separate=maybe") == "--set separate=maybe: wanted true or false"
    assert error("devices") == "--set devices: write a setting as KEY=VALUE, such as devices=8"
    assert error("devices=1", "devices=2") == "--set devices stands twice, as 1 and as 2: give it once"
    assert error("method=x").startswith(
        "--set method=x: wanted one of chain, order, contiguous, noncontiguous, linear, "
    )
    assert error("method=greedy") == (
        'dnn_partitioning has no method "greedy" for throughput: there are chain, order, contiguous, noncontiguous, linear, '
        "pipedream, local_search, partition, one_device, given"
    )
    assert "does not handle mixed device types" not in error("cost=x", planner="pipedream")


def test_options_of_models_are_refused(meshwright: Command, small: Path) -> None:
    for option, value in (("--seq", "8"), ("--cluster", "h100x8"), ("--fix", "tp=2")):
        done = meshwright("plan", str(small), option, value, "-q")
        assert done.code == 2
        assert done.err == (
            f"meshwright: {small} is a recorded profile, which {option} says nothing about: its devices, memory, bandwidth and "
            "micro_batches are set with --set KEY=VALUE\n"
        )


def test_parameters_of_planners_are_set_for_captured_models_too(meshwright: Command) -> None:
    given = ("gpt2", "-c", "a100x4", "--batch", "16", "--seq", "128", "-q", "--planner", "gpipe")
    done = meshwright("plan", *given, "--set", "rule=lingvo", "micro_batches=4", "--json")
    found = json.loads(done.out)
    assert found["candidates"][0]["micro_batches"] == 4
    assert (found["objective"], found["unit"]) == (found["result"]["objective"], "flop²")
    refused = meshwright("plan", *given, "--set", "devices=4")
    assert refused.code == 2
    assert refused.err == ('meshwright: no setting "devices": planner gpipe takes rule, micro_batches, recompute\n')


def test_a_written_folder_asks_the_same_again(meshwright: Command, small: Path, tmp_path: Path) -> None:
    assert meshwright("plan", str(small), "--set", "devices=3", "-o", "out", "-q").code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "plan.json",
        "problem.toml",
        "report.html",
        "result.json",
    ]
    again = answer(meshwright, "out/problem.toml")
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert again["objective"] == stored["objective"] == 7.5 and again["plan"] == stored["plan"]
    other = meshwright("plan", str(small), "-o", "out", "-q")
    assert other.code == 2
    assert other.err == "meshwright: out/ holds another problem (settings devices=3, not none): use -o out-2\n"
    shown = meshwright("simulate", "out")
    assert shown.code == 2 and "is a recorded profile" in shown.err


def test_a_captured_model_is_saved_as_a_profile_and_planned_from_it(meshwright: Command, tmp_path: Path) -> None:
    given = ("gpt2", "-c", "a100x4", "--batch", "16", "--seq", "128", "-q", "--planner", "dnn_partitioning")
    done = meshwright("plan", *given, "--save-profile", "dnn_partitioning=gpt2.json", "--json")
    assert done.code == 0, done.err
    through = answer(meshwright, "gpt2.json")
    assert through["objective"] == pytest.approx(json.loads(done.out)["objective"], rel=1e-9)
    turned = meshwright("plan", "gpt2.json", "--save-profile", "pipedream=gpt2.txt", "-q")
    assert turned.code == 0 and answer(meshwright, "gpt2.txt", "--set", "devices=2")["problem"]["format"] == "pipedream"


# ---- bad input


def test_bad_profiles_are_one_sentence_with_file_and_field(meshwright: Command, small: Path) -> None:
    good = json.loads(small.read_text())

    def error(change: str, code: int = 2) -> str:
        document = json.loads(json.dumps(good))
        exec(change, {"d": document})
        small.write_text(json.dumps(document))
        done = meshwright("plan", str(small), "-q")
        assert done.code == code and not done.out.strip().startswith("{"), done.err
        assert len(done.err.splitlines()) == 1
        return done.err.strip().removeprefix(f"meshwright: {'infeasible: ' if code == 3 else ''}{small}: ")

    edge = "d['edges'].append({'sourceId': %s, 'destId': %s, 'cost': %s, 'size': 1})"
    assert error(edge % (4, 1, 0)) == "edges form a cycle, 1 → 3 → 4 → 1: a graph of data has none"
    assert error("d['edges'] = d['edges'][:-1]") == (
        "edges leave the graph in 2 pieces, node 4 is joined with none of the largest: a model is in one"
    )
    assert (
        error("d['nodes'][2]['fpgaLatency'] = -1") == "nodes[2].fpgaLatency is -1, wanted a finite number of 0 or more"
    )
    assert error("d['nodes'][2]['fpgaLatency'] = float('nan')") == (
        "nodes[2].fpgaLatency is NaN, wanted a finite number of 0 or more"
    )
    assert error("del d['nodes'][2]['fpgaLatency']") == "nodes[2].fpgaLatency is missing"
    assert (
        error("d['edges'][1]['cost'] = float('inf')")
        == "edges[1].cost is Infinity, wanted a finite number of 0 or more"
    )
    assert error("del d['edges'][1]['cost']") == "edges[1].cost is missing"
    assert error("del d['maxFPGAs']") == "maxFPGAs is missing"
    assert error("d['nodes'] = []") == "nodes is empty: a graph has at least one"
    assert error("d['maxSizePerFPGA'] = 2.0", 3).startswith("all nodes take")
    assert error("d['nodes'][1]['size'] = 1000.0", 3).startswith("all nodes take")


def test_memory_that_no_plan_fits_names_the_tightest_constraint(meshwright: Command, data_folder: Path) -> None:
    file = profile(data_folder, "piper/bert32a100.json")
    done = meshwright("plan", file, "--set", "devices=512", "memory=0.1GiB", "-q")
    assert done.code == 3
    assert done.err.strip().startswith(f"meshwright: infeasible: {file}: layer ")
    assert "in its smallest configuration, over the 102 MiB of a device" in done.err
    graph = profile(data_folder, "pipedream/vgg16.graph.txt")
    tight = meshwright("plan", graph, "--set", "devices=4", "bandwidth=1e9", "memory=1e6", "-q")
    assert tight.code == 3 and "no stages fit in 977 KiB a worker: " in tight.err


def test_more_stages_than_layers_and_more_devices_than_useful(
    meshwright: Command, small: Path, data_folder: Path
) -> None:
    graph = profile(data_folder, "pipedream/alexnet.graph.txt")
    many = meshwright("plan", graph, "--planner", "torchgpipe", "--set", "devices=64", "bandwidth=1e9", "-q")
    assert many.code == 3
    assert many.err == (
        f"meshwright: infeasible: {graph}: 22 layers cannot fill 64 stages: torchgpipe gives each stage at least one layer, so "
        "it takes at most 22 here\n"
    )
    spare = meshwright("plan", str(small), "--set", "devices=100", "-q")
    assert spare.code == 0
    assert spare.out.splitlines()[-1].endswith("of 100 are used: more do not help this objective")


def test_a_file_of_no_format_is_refused(meshwright: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    done = meshwright("plan", "notes.txt", "-q")
    assert done.code == 2
    assert done.err == (f"meshwright: notes.txt is in none of the formats {', '.join(FORMATS)}, by its content\n")
    (tmp_path / "cut.json").write_text('{"maxFPGAs": 2, "nodes": [{"id": 1')
    cut = meshwright("plan", "cut.json", "-q")
    assert cut.code == 2 and cut.err.startswith("meshwright: cut.json: not a JSON file: ")


# ---- the budget


@pytest.mark.parametrize(
    ("name", "settings", "planner"),
    [
        ("dnn-partitioning/throughput/layer/gnmt_inference.json", (), "dnn_partitioning"),
        ("dnn-partitioning/throughput/layer/bert24_training.json", ("method=noncontiguous",), "dnn_partitioning"),
        ("dnn-partitioning/latency/layer/bert24_inference.json", ("objective=latency",), "dnn_partitioning"),
        ("piper/bert32a100.json", ("devices=512", "memory=8GiB"), "piper"),
        ("pipedream/resnet50.graph.txt", ("devices=16", "bandwidth=1.25e9", "compression_ratio=1"), "pipedream"),
        ("dapple/states.json", ("profile=bert-48", "micro_batch=2", "batch=64"), "dapple"),
    ],
)
def test_a_budget_returns_the_best_plan_so_far_with_its_bound(
    meshwright: Command, data_folder: Path, name: str, settings: tuple[str, ...], planner: str
) -> None:
    sets = ("--set", *settings) if settings else ()
    found = answer(meshwright, profile(data_folder, name), "--planner", planner, "--budget", "0.001", *sets)
    # What was proven by the first plan is the optimum, stopped or not.
    assert found["status"] in (("budget",) if found["gap"] > 1e-9 else ("optimal",))
    assert found["plan"] is not None and found["stages"]
    assert 0 < found["bound"] <= found["objective"] * (1 + 1e-12)
    if found["status"] == "budget":
        assert found["reason"] == "stopped after 0.001 s, the budget"


def test_ctrl_c_keeps_the_best_plan_so_far(small: Path, tmp_path: Path) -> None:
    planner = """
import time
from meshwright.planners.dnn_partitioning import DnnPartitioning


class Endless(DnnPartitioning):
    def search(self, problem, run):
        super().search(problem, run)
        open("searching", "w").close()
        while True:
            run.tick(1, "search")
            time.sleep(0.01)
"""
    (tmp_path / "endless.py").write_text(planner)
    process = subprocess.Popen(
        [sys.executable, "-m", "meshwright", "plan", small.name, "--planner", "./endless.py", "--set", "method=linear", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "searching").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert (found["status"], found["objective"], found["reason"]) == ("budget", 10.5, "stopped by Ctrl-C")
    assert found["bound"] == 7.0


# ---- compare


def test_compare_prints_a_row_a_planner_with_its_own_objective(meshwright: Command, data_folder: Path) -> None:
    file = profile(data_folder, "pipedream/alexnet.graph.txt")
    given = ("compare", file, "--set", "devices=4", "bandwidth=1e9", "compression_ratio=1", "-q")
    done = meshwright(*given, "--json")
    assert done.code == 0
    rows = {row["planner"]: row for row in json.loads(done.out)["planners"]}
    assert rows["pipedream"]["objective"] == pytest.approx(0.034217141, abs=1e-9)
    assert rows["pipedream"]["asynchronous"] and rows["pipedream"]["staleness"] > 0
    assert rows["torchgpipe"]["step_s"] > 0 and rows["torchgpipe"]["staleness"] == 0
    assert all(row["objective"] is not None or row["reason"] for row in rows.values())
    table = meshwright(*given)
    assert "pipedream †" in table.out and "†k: asynchronous" in table.out
    assert [
        word for word in ("objective", "gap", "step s", "samples/s", "memory", "search s") if word not in table.out
    ] == []


def test_a_setting_reaches_the_planners_that_take_it(meshwright: Command, data_folder: Path) -> None:
    file = profile(data_folder, "piper/bert32a100.json")
    sets = ("--set", "devices=8", "memory=80GiB", "bandwidth=25GiB")
    given = ("compare", file, "--planners", "piper,torchgpipe", "-q", *sets)
    done = meshwright(*given, "recompute=never", "balance=size", "--json")
    assert done.code == 0, done.err
    rows = {row["planner"]: row for row in json.loads(done.out)["planners"]}
    assert not any(s["recompute"] for s in rows["piper"]["stages"]) and rows["torchgpipe"]["unit"] == "B"
    refused = meshwright(*given, "recompute=maybe")
    assert refused.code == 2
    assert refused.err == ("meshwright: --set recompute=maybe: wanted one of choose, never, always, all_or_nothing\n")


def test_compare_takes_many_profiles_and_names_what_a_planner_refuses(
    meshwright: Command, small: Path, data_folder: Path
) -> None:
    files = [str(small), profile(data_folder, "pipedream/alexnet.graph.txt")]
    done = meshwright(
        "compare", *files, "--planners", "dnn_partitioning,torchgpipe", "--set", "devices=2", "--json", "-q"
    )
    found = json.loads(done.out)
    assert [p["file"] for p in found["problems"]] == files
    assert [(r["file"], r["planner"]) for r in found["planners"]] == [
        (f, p) for f in files for p in sorted(("dnn_partitioning", "torchgpipe"), key=lambda p: 0)
    ] or len(found["planners"]) == 4
    both = meshwright("compare", files[0], "gpt2")
    assert both.code == 2
    assert both.err == ("meshwright: compare takes one model at a time, or several recorded profiles: gpt2 is none\n")


@pytest.mark.parametrize("times", [(5.0,), (5.0, 1.0, 2.0), (0.0,)])
def test_a_node_that_reads_nothing_takes_its_time_on_one_device(
    meshwright: Command, tmp_path: Path, times: tuple[float, ...]
) -> None:
    nodes = [{"id": v, "supportedOnFpga": 1, "fpgaLatency": t, "cpuLatency": t, "size": 1} for v, t in enumerate(times)]
    edges = [{"sourceId": v, "destId": v + 1, "cost": 0.5} for v in range(len(times) - 1)]
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"maxSizePerFPGA": 9, "maxFPGAs": 1, "maxCPUs": 0, "nodes": nodes, "edges": edges}))
    found = answer(meshwright, str(path))
    assert found["objective"] == sum(times)
    if sum(times):
        assert found["simulation"]["step_s"] == pytest.approx(sum(times) * 1e-3)
    else:
        assert found["not_simulated"] == "the step takes no time: every cost that this plan pays is zero"


PIPEDREAM = "n -- {} -- forward_compute_time=1, backward_compute_time=1, activation_size=1, parameter_size=1\n"


@pytest.mark.parametrize(
    ("layer", "settings", "words"),
    [
        ("Input0", ["devices=2"], "every node is an input"),
        ("Linear()", ["devices=2", "workers=2x2"], "devices and workers say the same twice"),
    ],
)
def test_a_profile_without_layers_and_workers_said_twice_are_refused(
    meshwright: Command, tmp_path: Path, layer: str, settings: list[str], words: str
) -> None:
    path = tmp_path / "one.txt"
    path.write_text(PIPEDREAM.format(layer))
    done = meshwright("plan", str(path), *(x for s in settings for x in ("--set", s)), "-q")
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1


def test_a_path_that_leads_nowhere_is_said_before_its_settings(meshwright: Command, tmp_path: Path) -> None:
    missing = str(tmp_path / "vgg16.graph.txt")
    done = meshwright("plan", missing, "--planner", "pipedream", "--set", "workers=16")
    assert (done.code, done.err.strip()) == (2, f"meshwright: {missing}: no such file")
