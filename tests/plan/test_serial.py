"""Plans as files: equal after a round trip, small, fast, and damage is said with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
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
    Weights,
)
from meshwright.plan.serial import dumps, from_json, load, save, to_json
from meshwright.testing.tiny import mlp

names = st.text('abc/.ü"\\[]{}:,', min_size=1, max_size=6)
cuts = st.builds(Cut, names, st.lists(st.integers(0, 9), max_size=3).map(tuple))
sub_dims = st.tuples(st.integers(0, 9), st.lists(cuts, max_size=2).map(tuple))
layouts = st.builds(
    Layout,
    st.lists(st.lists(sub_dims, max_size=2).map(tuple), max_size=3).map(tuple),
    st.lists(names, max_size=2).map(tuple),
)
by_factor = st.dictionaries(names, st.lists(cuts, max_size=2).map(tuple), max_size=2)
shardings = st.builds(
    OpSharding,
    by_factor,
    names,
    st.lists(names).map(tuple),
    st.dictionaries(st.integers(0, 3), by_factor, max_size=2),
)
storages = st.builds(
    Storage,
    st.none() | layouts,
    st.none() | layouts,
    st.none() | layouts,
    st.lists(st.integers(0, 9), max_size=2).map(tuple),
    st.floats(0, 1),
)
programs = st.builds(
    SumProgram,
    st.lists(names, max_size=2).map(tuple),
    st.lists(
        st.builds(
            SumStep,
            st.sampled_from(["all_reduce", "broadcast"]),
            st.lists(names).map(tuple),
            st.lists(names).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
)
meshes = st.one_of(
    st.builds(
        lambda a, n, s: Mesh(range(a, a + n * s, s), ("x",), (n,)),
        st.integers(0, 9),
        st.integers(1, 9),
        st.integers(1, 3),
    ),
    st.lists(st.integers(0, 30), min_size=1, max_size=12).map(lambda d: Mesh(tuple(d), ("x", "y"), (1, len(d)))),
    st.just(Mesh((3,))),
)
stages = st.builds(
    Stage,
    st.lists(names, max_size=3).map(tuple),
    meshes,
    st.dictionaries(names, shardings, max_size=2),
    st.dictionaries(names, layouts, max_size=2),
    st.dictionaries(names, storages, max_size=2),
    st.frozensets(names, max_size=2),
    st.integers(0, 2),
    st.frozensets(names, max_size=2),
    st.sampled_from(["", "x"]),
    st.integers(0, 2),
    st.lists(programs, max_size=1).map(tuple),
    gradients=st.dictionaries(names, layouts, max_size=2),
)
single = st.one_of(
    st.builds(Action, st.sampled_from("FBIW"), st.integers(0, 9), st.integers(0, 9), st.integers(1, 3)),
    st.builds(Action, st.sampled_from(["UPDATE", "GATHER"]), st.integers(0, 9), st.integers(0, 2)),
    st.builds(
        Action, st.sampled_from(["RUN", "SEND", "LOAD"]), names, st.integers(0, 9), st.just(1), st.integers(-1, 9)
    ),
)
table_rows = st.builds(
    Row, st.lists(st.integers(0, 30), min_size=1, max_size=6).map(tuple),
    st.lists(single | st.tuples(single, single), max_size=3).map(tuple),
)  # fmt: skip
schedules = st.builds(
    Schedule,
    names,
    st.integers(1, 9),
    st.dictionaries(names, st.integers(0, 9) | names | st.floats(0, 1), max_size=2),
    st.lists(table_rows, max_size=2).map(tuple),
    st.builds(Weights, st.booleans(), st.integers(0, 3), st.sampled_from(["newest", "entry"]), st.booleans()),
)
plans = st.builds(
    Plan,
    names,
    st.integers(1, 99),
    st.lists(stages, max_size=3).map(tuple),
    schedules,
    st.frozensets(names, max_size=2),
)


@settings(max_examples=80, deadline=None)
@given(plans)
def test_a_plan_is_equal_after_a_round_trip(plan: Plan) -> None:
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
    assert from_json(json.loads(dumps(plan))) == plan


def large() -> Plan:
    """126 layers on 16 stages, dp × tp of 1,024 devices each, 40 ops a layer written once."""
    tp, dp = Cut("tp"), Cut("dp")
    ops = {
        f"model.layers.0.part{i}/linear": OpSharding({"b": (dp,), ("n" if i % 2 else "k"): (tp,)}) for i in range(40)
    }
    rest = {f"model.layers.0.part{i}.out": Layout((((0, (dp,)),), ((0, (tp,)),), ((0, ()),))) for i in range(12)}
    state = {f"model.layers.0.part{i}.weight": Storage(state=Layout((((0, (tp, dp)),), ((0, ()),)))) for i in range(9)}
    ends = [round(126 * s / 16) for s in range(17)]
    return Plan(
        "d" * 64,
        2048,
        tuple(
            Stage(
                (f"model.layers[{a}:{b}]",),
                Mesh(range(1024 * s, 1024 * s + 1024), ("dp", "tp"), (128, 8)),
                dict(ops),
                dict(rest),
                dict(state),
                frozenset(list(ops)[::3]),
            )
            for s, (a, b) in enumerate(pairwise(ends))
        ),
        Schedule("interleaved", 256, {"v": 1}),
    )


def test_a_large_plan_is_a_few_kilobytes() -> None:
    plan = large()
    text = dumps(plan)
    assert len(text) < 20_000
    assert from_json(json.loads(text)) == plan


def test_save_and_load_and_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = large()
    save(plan, tmp_path / "plan.json")
    assert load(tmp_path / "plan.json") == plan
    before = (tmp_path / "plan.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError):
        save(Plan("x", 1, ()), tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_bytes() == before


def test_a_file_that_was_cut_off_says_line_and_stage(tmp_path: Path) -> None:
    text = dumps(large())
    third = text.index("model.layers[24:32]")
    (tmp_path / "plan.json").write_text(text[: third + 60])
    line = text[:third].count("\n") + 1
    with pytest.raises(InputError) as error:
        load(tmp_path / "plan.json")
    assert str(error.value) == (
        f'plan.json:{line}: cut off inside stage 3, so nothing was read: write it again with "meshwright plan {tmp_path}/problem.toml"'
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10_000))
def test_every_shortened_file_is_refused_with_its_line(at: int) -> None:
    import tempfile

    text = dumps(large()).rstrip()
    at = at % len(text)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        file.write_text(text[:at])
        with pytest.raises(InputError, match=rf"plan\.json:{text[:at].rstrip().count(chr(10)) + 1}: cut off "):
            load(file)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    text = dumps(large())
    at = text.index('"ops"')
    (tmp_path / "plan.json").write_text(text[:at] + "?" + text[at:])
    with pytest.raises(
        InputError, match=rf"^plan\.json:{text[:at].count(chr(10)) + 1}: damaged inside stage 0, so nothing"
    ):
        load(tmp_path / "plan.json")


def changed(edit: Callable[[Any], None]) -> object:
    data = json.loads(dumps(large()))
    edit(data)
    return data


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["stages"][3].update(recompte=[]), 'no field "recompte" in stages[3]: did you mean "recompute"?'),
        (lambda d: d.update(sample=4), 'no field "sample" in a plan: did you mean "samples"?'),
        (
            lambda d: d["schedule"].update(zzz=4),
            'no field "zzz" in schedule: it has name, micro_batches, args, rows, weights',
        ),
        (
            lambda d: d.update(schema="meshwright.plan/9"),
            'schema is "meshwright.plan/9": this version reads "meshwright.plan/1"',
        ),
        (lambda d: d["stages"][1].update(mesh=99), "stages[1].mesh = 99: there are 16 meshes, counted from 0"),
        (lambda d: d.pop("samples"), 'the plan has no "samples": it must be there'),
        (lambda d: d["stages"][0].update(ops="all"), 'stages[0].ops must be a list, not "all"'),
        (lambda d: d["stages"][0].update(keep_last=True), "stages[0].keep_last must be a whole number, not true"),
        (
            lambda d: d["meshes"][0].update(devices="0-7"),
            'meshes[0].devices = "0-7" is no range: write "0:64" or "0:64:8"',
        ),
        (
            lambda d: d["meshes"][0].update(shape=[64, 8]),
            "meshes[0]: axes ['dp', 'tp'] of shape [64, 8] must be distinct and hold 1024 devices",
        ),
        (
            lambda d: d["schedule"].update(rows=[{"devices": [0], "actions": ["2G3"]}]),
            'schedule.rows[0].actions[0]: "2G3" is no action: write stage, kind, micro-batch, such as 2F3',
        ),
        (
            lambda d: d["schedule"].update(weights={"reads": "entri"}),
            'schedule.weights.reads = "entri": did you mean "entry"?',
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(edit: Callable[[Any], None], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(changed(edit))
    assert str(error.value) == message


def test_a_plan_carries_its_own_graph() -> None:
    graph = mlp(3)
    plan = Plan(graph.digest, 8, (), rewritten=graph)
    assert from_json(json.loads(dumps(plan))) == plan


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_finite_are_refused_with_their_line(tmp_path: Path, number: str) -> None:
    text = dumps(large()).replace('"samples": 2048', f'"samples": {number}')
    (tmp_path / "plan.json").write_text(text)
    line = text[: text.index(f'"samples": {number}')].count("\n") + 1
    assert line > 1
    with pytest.raises(InputError) as error:
        load(tmp_path / "plan.json")
    assert str(error.value) == f"plan.json:{line}: {number} is no number a plan may hold: numbers must be finite"


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path / "no.json")
    assert str(error.value) == f"{tmp_path / 'no.json'}: no such file or directory: give a plan.json or its folder"
