"""torch's own tables are ours where a name is written for them, refusals are refusals, and a table without a name goes by CSV."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch.distributed.pipelining.schedules as theirs

from meshwright.errors import InputError
from meshwright.export._torchtitan_schedules import NAMES, TURNED, named, recognised, schedule_of, table, why_not
from meshwright.plan.model import Schedule
from meshwright.plan.schedules import GENERATORS, conditions, from_csv, rows_of, to_csv


class _Stage(theirs._PipelineStageBase):
    """What a schedule asks of a stage before it runs: numbers."""

    def __init__(self, index: int, stages: int, ranks: int) -> None:
        self.stage_index, self.num_stages, self.group_size, self.group_rank = index, stages, ranks, 0
        self.has_backward, self.submod = True, None  # type: ignore[assignment]
        self.stage_index_to_group_rank = {}

    def _create_grad_recv_info(self, *args: Any) -> Any: ...

    def _prepare_backward_infra(self, *args: Any) -> Any: ...

    def _prepare_forward_infra(self, *args: Any) -> Any: ...


def text(action: Any) -> str:
    if action.sub_actions:
        return f"({';'.join(map(text, action.sub_actions))})OVERLAP_F_B"
    return f"{action.stage_index}{action.computation_type.value}{action.microbatch_index}"


def torchs(name: str, p: int, v: int, m: int) -> str:
    """The table of torch's schedule as CSV; what it says where it refuses."""
    mine = [0, 2 * p - 1] if name in TURNED else [c * p for c in range(v)]
    stages: list[Any] = [_Stage(i, p * v, p) for i in mine]
    kind: Any = theirs.get_schedule_class(name)
    try:
        made = kind(stages if name not in ("1F1B", "GPipe") else stages[0], m, loss_fn=None)
    except ValueError:
        return "refused"
    rows = (made.pipeline_order[r] for r in range(p))
    return "".join(
        ",".join(text(a) for a in row if a is not None and (a.sub_actions or a.microbatch_index is not None)) + "\n"
        for row in rows
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("1F1B", "GPipe")])
def test_a_name_is_the_table_that_torch_makes(name: str) -> None:
    refused = 0
    for p, v, m in product((2, 3, 4), (1, 2, 3), range(1, 14)):
        if name in TURNED and v != 2:
            continue
        wanted = torchs(name, p, v, m)
        try:
            found = table(schedule_of(name, p, m, v), p * v)
        except InputError:
            found = "refused"
        assert found == wanted, (p, v, m)
        refused += found == "refused"
    assert (refused > 0) == (name in ("Interleaved1F1B", "InterleavedZeroBubble", "DualPipeV"))


def test_one_forward_one_backward_warms_up_as_torch_does() -> None:
    """Its 1F1B has no table of what it runs: first as many forwards as stages are left, then backward and forward in turn."""
    for p, m in product((2, 3, 4), range(1, 9)):
        if m < p:
            with pytest.raises(InputError, match="at least as many micro-batches as stages"):
                schedule_of("1F1B", p, m, 1)
            continue
        for r, row in enumerate(rows_of(schedule_of("1F1B", p, m, 1), p)):
            kinds = "".join(a.kind for a in row.actions if not isinstance(a, tuple))
            warm = min(m, p - r)
            assert kinds == "F" * warm + "BF" * (m - warm) + "B" * warm


def test_what_is_written_by_name_is_what_torch_makes_of_the_name() -> None:
    named_once = set()
    for name, kind in GENERATORS.items():
        for p, v, m in product((2, 4), (1, 2, 3), (2, 4, 6, 8)):
            v = kind.chunks or v
            schedule = Schedule(name, m, {"v": v} if not kind.chunks else {})
            if conditions(name, p, m, v) or why_not(schedule, p, p * v):
                continue
            as_named = named(schedule, p, p * v)
            if as_named and as_named != "1F1B":
                named_once.add(as_named)
                assert torchs(as_named, p, v, m) == table(schedule, p * v), (name, p, v, m)
    assert named_once == {"Interleaved1F1B", "LoopedBFS", "ZBVZeroBubble", "DualPipeV"}


@pytest.mark.parametrize("name", ["zb-h1", "zb-h2", "v-half", "v-min", "dapple", "1f1b"])
def test_a_table_is_recognised_by_what_it_says(name: str) -> None:
    v = GENERATORS[name].chunks or 1
    schedule = Schedule(name, 8)
    rows = from_csv(table(schedule, 4 * v))
    again = recognised(rows, 4, 8, v == 2)
    assert table(again, 4 * v) == to_csv(rows)
    assert again.name == name or table(Schedule(again.name, 8, again.args), 4) == table(schedule, 4)


def test_a_hint_is_believed_only_if_it_makes_the_table() -> None:
    timed = Schedule("zb-auto", 8, {"F": 1.0, "I": 2.0, "W": 0.5})
    rows = from_csv(table(timed, 4))
    assert recognised(rows, 4, 8, False, timed) == timed
    assert recognised(rows, 4, 8, False, Schedule("zb-h1", 8)).name != "zb-h1"
    assert recognised(rows, 4, 8, False, Schedule("custom", 8)).rows == rows


def test_tables_that_are_none() -> None:
    rows = from_csv(table(Schedule("v-half", 8), 8))
    odd = (*rows[:-1], type(rows[0])((3,), rows[3].actions[::-1]))
    with pytest.raises(InputError, match="there and back over the ranks and is none of"):
        recognised(odd, 4, 8, True)
    with pytest.raises(InputError, match="3 rows for 8 stages, but there are 4 pipeline ranks"):
        recognised(rows[:3], 4, 8, False)


REFUSED = (
    (Schedule("hanayo", 8, {"v": 4}), 16, "places 4 stages a rank otherwise than in a loop"),
    (Schedule("pipedream", 8), 4, "schedule pipedream has no table with an end"),
    (Schedule("1f1b", 8, {"v": 2}), 4, "schedule 1f1b has one stage a rank"),
    (Schedule("interleaved", 8, {"v": 3}), 8, "says v = 3, but there are 2 stages a rank"),
    (Schedule("custom", 1, {}, from_csv("0F0,0B0,0REDUCE\n1F0,1B0\n2F0,2B0\n3F0,3B0\n")), 4, "its table says REDUCE"),
    (Schedule("custom", 2, {}, from_csv("0F0-1,0B0-1\n1F0-1,1B0-1\n2F0-1,2B0-1\n3F0-1,3B0-1\n")), 4, "F of 2 micro-batches"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "stages", "words"), REFUSED, ids=[s.name + str(k) for k, (s, _, _) in enumerate(REFUSED)]
)
def test_what_it_cannot_say(schedule: Schedule, stages: int, words: str) -> None:
    assert words in why_not(schedule, 4, stages)
    assert why_not(Schedule("hanayo", 8, {"v": 2}), 4, 8) == ""
