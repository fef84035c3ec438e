"""The text form of actions and the CSV table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.plan.model import Action, Row
from meshwright.plan.schedules import action_text, from_csv, generate, parse_action, to_csv

compute = st.builds(Action, st.sampled_from("FBIW"), st.integers(0, 99), st.integers(0, 999), st.integers(1, 4))
whole = st.builds(Action, st.sampled_from(["UPDATE", "REDUCE", "GATHER", "FREE"]), st.integers(0, 99))
actions = st.one_of(compute, whole, st.tuples(compute, compute))


@given(actions)
def test_text_of_an_action_reads_back(action: Action | tuple[Action, Action]) -> None:
    assert parse_action(action_text(action)) == action


@given(st.lists(st.lists(actions, max_size=5), min_size=1, max_size=4))
def test_csv_reads_back(lists: list[list[Action]]) -> None:
    table = tuple(Row((r,), tuple(own)) for r, own in enumerate(lists))
    assert from_csv(to_csv(table)) == table


def test_csv_is_a_line_per_rank_with_cells_as_torch_reads_them() -> None:
    assert to_csv(generate("1f1b", 2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"
    assert action_text((Action("F", 0, 7), Action("B", 7, 3))) == "(0F7;7B3)OVERLAP_F_B"
    assert action_text(Action("F", 2, 6, 2)) == "2F6-7"
    assert from_csv("0F0,,0B0\n") == (Row((0,), (Action("F", 0, 0), Action("B", 0, 0))),)


@pytest.mark.parametrize("text", ["", "F3", "2X3", "2F", "2F3-1", "(0F7)OVERLAP_F_B"])
def test_what_is_no_action_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="action"):
        parse_action(text)


def test_an_action_on_a_tensor_has_no_text() -> None:
    with pytest.raises(InputError) as error:
        action_text(Action("SEND", "x", peer=1))
    assert str(error.value) == 'action SEND of "x" has no text form: only actions on whole stages have'


@pytest.mark.parametrize(("name", "p", "m", "v"), [("1f1b", 4, 8, 1), ("interleaved", 4, 8, 2), ("zb-h1", 4, 8, 1)])
def test_torch_reads_the_same_table_from_the_csv(name: str, p: int, m: int, v: int) -> None:
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    table = generate(name, p, m, v)
    for line, row in zip(to_csv(table).splitlines(), table):
        read = [schedules._Action.from_str(cell) for cell in line.split(",")]
        kinds = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
        got = [(kinds[a.computation_type.name], a.stage_index, a.microbatch_index) for a in read]
        assert got == [(a.kind, a.on, a.micro_batch) for a in row.actions]
