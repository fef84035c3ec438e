"""What holds of every schedule, for any ranks, micro-batches and stages a rank."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction as Q

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meshwright.errors import InputError
from meshwright.plan.model import Action, Row, Schedule
from meshwright.plan.schedules import (
    GENERATORS,
    chunks_of,
    conditions,
    deadlock_free,
    exchanges,
    generate,
    home,
    links,
    pipes,
    stuck,
)  # fmt: skip

from .play import members, play

Case = tuple[str, int, int, int, dict[str, int | float | str]]


@st.composite
def asked(draw: st.DrawFn) -> Case:
    """Name, p, m, v and arguments; not all of them have a table."""
    name = draw(st.sampled_from(sorted(GENERATORS)))
    p, m = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    args: dict[str, int | float | str] = {}
    if name == "chimera":
        args = {"f": draw(st.integers(1, 3)), "form": draw(st.sampled_from(["direct", "doubling", "halving"]))}
    elif name == "dapple":
        args = {"policy": draw(st.sampled_from("AB")), "D": draw(st.integers(0, 5))}
    elif name == "zb-auto":
        args = {
            "limit": draw(st.integers(0, 8)),
            "F": draw(st.sampled_from([1.0, 2.0])),
            "send": draw(st.sampled_from([0.0, 0.5])),
        }
    elif name == "pipedream":
        args = {"replicas": ",".join(str(draw(st.integers(1, 3))) for _ in range(p))}
    elif name == "2bw":
        args = {"batches": draw(st.integers(1, 3))}
    v = draw(st.integers(1, 6)) if name in ("interleaved", "bfs", "hanayo") else chunks_of(Schedule(name, m, args))
    return name, p, m, v, args


def table_of(case: Case) -> tuple[tuple[Row, ...], list[tuple[int, int]]]:
    name, p, m, v, args = case
    assume(not conditions(name, p, m, v, args))
    return generate(name, p, m, v, **args), links(name, p, v, **args)


@settings(max_examples=400, deadline=None)
@given(asked())
def test_with_zero_buffers_no_table_gets_stuck(case: Case) -> None:
    rows, pairs = table_of(case)
    assert stuck(rows, exchanges(rows, pairs), pairs) == ""
    assert deadlock_free(rows, pairs)


@settings(max_examples=400, deadline=None)
@given(asked())
def test_every_stage_runs_every_micro_batch_of_its_pipe_once_and_in_order(case: Case) -> None:
    name, p, m, v, args = case
    rows, _ = table_of(case)
    schedule = Schedule(name, m, {**args, **({"v": v} if name in ("interleaved", "bfs", "hanayo") else {})})
    total = m * int(args.get("batches", 1))
    ran: dict[tuple[int, int], list[str]] = defaultdict(list)
    for r, row in enumerate(rows):
        for a in (a for entry in row.actions for a in members(entry) if a.kind in "FBIW"):
            if name != "pipedream":
                assert home(schedule, p, int(a.on)) == r
            for j in range(a.micro_batch, a.micro_batch + a.span):
                ran[int(a.on), j].append(a.kind)
    assert all(kinds in (["F", "B"], ["F", "I", "W"]) for kinds in ran.values())
    copies = pipes(schedule)
    per = p * v // copies
    pipes_of: dict[int, set[int]] = defaultdict(set)
    for stage, j in ran:
        pipes_of[stage].add(j)
    for pipe in range(copies):
        alike = [pipes_of[s] for s in range(pipe * per, pipe * per + per)]
        assert all(x == alike[0] for x in alike)
    assert Counter(j for pipe in range(copies) for j in pipes_of[pipe * per]) == Counter(range(total))


@settings(max_examples=250, deadline=None)
@given(asked(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_no_table_is_faster_than_its_work(case: Case, f: int, i: int, w: int) -> None:
    name, _, m, v, args = case
    rows, pairs = table_of(case)
    assume(name != "pipedream" or set(str(args["replicas"])) <= {"1", ","})
    copies = pipes(Schedule(name, m, args))
    got = play(rows, pairs, v // copies, {"F": f, "B": i + w, "I": i, "W": w})
    work = m * int(args.get("batches", 1)) * (f + i + w)
    assert got.makespan >= work
    assert 0 <= got.fraction < 1
    assert got.makespan * (1 - got.fraction) == work


ODD: dict[str, list[tuple[int, dict[str, int | float | str]]]] = {
    "interleaved": [(2, {}), (3, {})],
    "hanayo": [(2, {}), (3, {})],
    "zb-auto": [(1, {"limit": -1}), (1, {"W": 0.0}), (1, {"send": -1.0})],
    "dapple": [(1, {"policy": "C"}), (1, {"D": -1})],
    "chimera": [(2 * f, {"f": f, "form": form}) for f in (1, 2) for form in ("direct", "doubling", "halving")],
    "pipedream": [(1, {"replicas": "1,0"}), (1, {"replicas": "x"})],
    "2bw": [(1, {"batches": 0}), (1, {})],
    "gpipe": [(1, {}), (2, {}), (1, {"depth": 3})],
    "zb-v": [(2, {}), (1, {})],
    "dualpipe": [(2, {}), (1, {})],
    "dualpipev": [(2, {}), (3, {})],
}
"""Stages a rank and arguments, some of them senseless."""


@pytest.mark.parametrize("name", sorted(ODD))
def test_what_has_no_table_is_refused_with_one_sentence(name: str) -> None:
    refused = 0
    for p in range(6):
        for m in range(12):
            for v, args in ODD[name]:
                why = conditions(name, p, m, v, args)
                if not why:
                    assert generate(name, p, m, v, **args)
                    continue
                refused += 1
                assert why.startswith(f"schedule {name}") and "\n" not in why
                with pytest.raises(InputError) as error:
                    generate(name, p, m, v, **args)
                assert str(error.value) == why
    assert refused > 12


@given(st.integers(1, 6), st.integers(1, 14))
def test_zb_h1_with_its_halves_glued_is_1f1b(p: int, m: int) -> None:
    for glued, row in zip(generate("zb-h1", p, m), generate("1f1b", p, m), strict=True):
        actions = [a for a in glued.actions if isinstance(a, Action) and a.kind != "W"]
        assert [("B" if a.kind == "I" else a.kind, a.micro_batch) for a in actions] == [
            (a.kind, a.micro_batch) for a in row.actions if isinstance(a, Action)
        ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 8), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_zb_auto_with_room_for_p_is_as_fast_as_zb_h1_and_more_room_is_no_slower(
    p: int, more: int, f: int, i: int, w: int
) -> None:
    m, w = 2 * p + more, min(f, i, w)
    times = {"F": f, "I": i, "W": w, "B": i + w}
    hand = play(generate("zb-h1", p, m), links("zb-h1", p), 1, times)
    tight, roomy = (
        play(generate("zb-auto", p, m, limit=limit, F=f, I=i, W=w), links("zb-auto", p), 1, times)
        for limit in (p, 2 * p)
    )
    assert tight.makespan <= hand.makespan
    assert roomy.span <= tight.span


@pytest.mark.parametrize("c", [Q(1, 4), Q(1, 2), Q(1)])
@pytest.mark.parametrize(("p", "m"), [(4, 16), (8, 24)])
def test_early_backward_hides_sends_that_1f1b_waits_for(p: int, m: int, c: Q) -> None:
    """Sends of up to a forward: policy B pays for them on the way in and out only, 1f1b in every steady pair."""
    late = play(generate("1f1b", p, m), links("1f1b", p), 1, None, c)
    early = play(generate("dapple", p, m, policy="B"), links("dapple", p), 1, None, c)
    assert early.makespan == 3 * (m + p - 1) + 2 * (p - 1) * c
    assert late.makespan > early.makespan + (m - p) * c
