"""The other schedules of the literature against published figures, closed forms and invariants."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction as Q
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwright.cluster.model import Mesh
from meshwright.errors import InputError
from meshwright.plan._validate_schedule import check_schedule
from meshwright.plan.model import Plan, Row, Schedule, Stage
from meshwright.plan.schedules import chunks_of, exchanges, generate, home, links, pipes, rows_of, stuck, timed
from meshwright.plan.schedules.asynchronous import version
from meshwright.simulate.pipeline import orders

from .play import Played, members, play


def played(name: str, p: int, m: int, v: int = 1, times: dict[str, int] | None = None, **args: int | str) -> Played:
    """v here only divides the time of a rank; DualPipe's and Chimera's figures count whole stages."""
    stages = len(
        {a.on for row in generate(name, p, m, **chunked(name, v), **args) for e in row.actions for a in members(e)}
    )
    return play(generate(name, p, m, **chunked(name, v), **args), links(name, p, stages // p, **args), v, times)


def chunked(name: str, v: int) -> dict[str, int]:
    return {"v": v} if name in ("hanayo", "interleaved", "bfs") else {}


# name, p, m, v, arguments, makespan, idle fraction, memory by rank.
REFERENCE = [
    ("dapple", 4, 8, 1, {"policy": "B"}, 33, Q(3, 11), [7, 5, 3, 1]),
    ("dapple", 4, 8, 1, {"policy": "A"}, 33, Q(3, 11), [4, 3, 2, 1]),
    ("zb-auto", 4, 8, 1, {"limit": 4}, 27, Q(1, 9), [4] * 4),
    ("zb-auto", 4, 8, 1, {"limit": 8}, 27, Q(1, 9), [8] * 4),
    ("zb-h2", 4, 8, 1, {}, 27, Q(1, 9), [8] * 4),
    ("zb-v", 4, 8, 2, {}, Q("25.5"), Q(3, 51), [4] * 4),
    ("v-half", 4, 8, 2, {}, Q("26.5"), Q(5, 53), [3] * 4),
    ("v-min", 4, 8, 2, {}, Q("29.5"), Q(11, 59), [2] * 4),
    ("hanayo", 4, 4, 2, {}, 18, Q(1, 3), [Q("2.5"), 3, 4, 4]),
    ("hanayo", 2, 2, 4, {}, 7, Q(1, 7), [Q("1.75"), 2]),
    ("dualpipe", 4, 8, 1, {}, 26, Q(1, 13), [5] * 4),
    ("dualpipe", 4, 20, 1, {}, 62, Q(1, 31), [5] * 4),
    ("dualpipe", 8, 20, 1, {}, 66, Q(1, 11), [9] * 8),
    ("dualpipev", 4, 10, 1, {}, 66, Q(1, 11), [9] * 4),
    ("chimera", 4, 4, 1, {}, 16, Q(1, 4), [3, 4, 4, 3]),
    ("chimera", 8, 8, 1, {}, 36, Q(1, 3), [5, 6, 7, 8, 8, 7, 6, 5]),
    ("chimera", 8, 8, 1, {"f": 2}, 28, Q(1, 7), [7, 8, 8, 7, 7, 8, 8, 7]),
    ("chimera", 8, 8, 1, {"f": 4}, 24, 0, [8] * 8),
    ("chimera", 4, 8, 1, {}, 30, Q(1, 5), [3, 4, 4, 3]),
    ("chimera", 4, 8, 1, {"form": "doubling"}, 27, Q(1, 9), [7, 8, 8, 7]),
    ("chimera", 8, 16, 1, {}, 66, Q(3, 11), [5, 6, 7, 8, 8, 7, 6, 5]),
    ("chimera", 8, 16, 1, {"form": "doubling"}, 57, Q(3, 19), [13, 14, 15, 16, 16, 15, 14, 13]),
    ("chimera", 4, 16, 1, {"form": "doubling"}, 51, Q(1, 17), [7, 8, 8, 7]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "p", "m", "v", "args", "makespan", "fraction", "memory"), REFERENCE)
def test_reference_row(
    name: str, p: int, m: int, v: int, args: dict[str, int | str], makespan: Q, fraction: Q, memory: list[Q]
) -> None:
    got = played(name, p, m, v, **args)
    assert (got.makespan, got.fraction, list(got.memory)) == (makespan, fraction, memory)


@pytest.mark.parametrize(
    ("name", "args", "f", "i", "w", "makespan", "span"),
    [
        ("zb-auto", {"limit": 4}, 1, 1, 1, 27, 27),
        ("zb-auto", {"limit": 4}, 2, 2, 1, 49, 49),
        ("zb-auto", {"limit": 4}, 10, 12, 7, 277, 277),
        ("zb-auto", {"limit": 8}, 1, 1, 1, 27, 24),
        ("zb-auto", {"limit": 8}, 2, 2, 1, 46, 45),
        ("zb-auto", {"limit": 8}, 10, 12, 7, 262, 249),
        ("zb-v", {}, 1, 1, 1, Q("25.5"), 24),
        ("zb-v", {}, 2, 2, 1, 43, 43),
        ("zb-v", {}, 10, 12, 7, 250, 247),
    ],
)
def test_zero_bubble_of_unequal_times(
    name: str, args: dict[str, int], f: int, i: int, w: int, makespan: Q, span: Q
) -> None:
    times = {"F": f, "I": i, "W": w}
    given = {**args, "F": f, "I": i, "W": w} if name == "zb-auto" else args
    got = played(name, 4, 8, 2 if name == "zb-v" else 1, times, **given)  # type: ignore[arg-type]
    assert (got.makespan, got.span) == (makespan, span)


@pytest.mark.parametrize(
    ("p", "m", "args", "b", "makespan"),
    [
        (4, 4, {}, 1, 10), (4, 4, {}, 3, 22), (8, 8, {}, 1, 22), (8, 8, {}, 3, 50), (8, 8, {"f": 2}, 1, 18),
        (8, 8, {"f": 4}, 1, 16), (4, 8, {}, 1, 18), (4, 8, {}, 3, 42), (8, 16, {}, 1, 38), (8, 16, {}, 3, 94),
        (4, 8, {"form": "doubling"}, 1, 18), (4, 8, {"form": "doubling"}, 3, 36), (8, 16, {"form": "doubling"}, 3, 76),
        (4, 16, {"form": "doubling"}, 3, 70), (4, 16, {"form": "doubling"}, 1, 34), (2, 2, {}, 1, 4),
    ],
)  # fmt: skip
def test_chimera_makespan(p: int, m: int, args: dict[str, int | str], b: int, makespan: int) -> None:
    assert played("chimera", p, m, 1, {"F": 1, "B": b}, **args).makespan == makespan


def test_chimera_of_four_is_the_published_table() -> None:
    """d down, u up; the order of each worker without its idle slots."""
    table = [
        [("d" if a.on < 4 else "u") + a.kind.lower() for a in map(only, row.actions) if a.kind != "REDUCE"]
        for row in generate("chimera", 4, 4)
    ]
    assert [" ".join(row) for row in table] == [
        "df df uf ub uf ub db db",
        "df uf df uf ub db ub db",
        "uf df uf df db ub db ub",
        "uf uf df db df db ub ub",
    ]


def only(entry: object) -> object:
    (action,) = members(entry)  # type: ignore[arg-type]
    return action


def test_chimera_sums_early_where_a_worker_waits_and_last_where_it_does_not() -> None:
    """Worker 0 waits one slot before its last backward, so its up stage is summed before; worker 1 does not wait any more."""
    texts = [[f"{a.kind}{a.on}" for a in map(only, row.actions)] for row in generate("chimera", 4, 4)]
    assert texts[0][-4:] == ["REDUCE7", "B0", "B0", "REDUCE0"]
    assert texts[3][-4:] == ["REDUCE3", "B4", "B4", "REDUCE4"]
    assert texts[1][-4:] == ["B6", "B1", "REDUCE1", "REDUCE6"]
    assert texts[2][-4:] == ["B2", "B5", "REDUCE2", "REDUCE5"]


@pytest.mark.parametrize(
    ("p", "m", "args", "b"),
    [(4, 4, {}, 1), (8, 8, {"f": 2}, 1), (4, 8, {}, 1), (6, 12, {}, 1), (4, 8, {"form": "doubling"}, 2), (4, 8, {"form": "halving"}, 2)],
)  # fmt: skip
def test_chimera_sums_begin_when_their_stage_is_done_if_the_worker_still_waits_and_else_when_it_is_done(
    p: int, m: int, args: dict[str, int | str], b: int
) -> None:
    """A sum that work follows is begun right after the stage's last backward, and idle time is still to come."""
    rows = generate("chimera", p, m, **args)
    pairs = links("chimera", p, 2 * int(args.get("f", 1)), **args)
    bars = timed(rows, pairs, lengths={"F": 1, "B": b})
    early = 0
    for row in bars:
        sums = [k for k, bar in enumerate(row) if only((bar.entry,)[0]).kind == "REDUCE"]  # type: ignore[union-attr]
        assert len(sums) == 2 * int(args.get("f", 1))
        for k in sums:
            stage = row[k].entry.on  # type: ignore[union-attr]
            assert not any(x.entry.on == stage for x in row[k + 1 :])  # type: ignore[union-attr]
            work = [x for x in row if x.end > x.start]
            after = [x for x in work if x in row[k + 1 :]]
            idle = sum(b.start - a.end for a, b in pairwise([x for x in work if x.end <= row[k].start][-1:] + after))
            last = max((x for x in work if x.entry.on == stage and x.entry.kind == "B"), key=lambda x: x.end)  # type: ignore[union-attr]
            waits = any(b.start > a.end for a, b in pairwise([last, *(x for x in work if x.start >= last.end)]))
            assert bool(after) == waits
            if after:
                early += 1
                assert row[k].start == last.end and idle > 0
    assert early > 0


@pytest.mark.parametrize(("m", "slots"), [(1, 8), (2, 8), (3, 10)])
def test_chimera_splits_fewer_micro_batches_evenly(m: int, slots: int) -> None:
    """D = 4: one a pipe takes the 2 D slots of one micro-batch; the public generator puts both on one pipe and takes 10."""
    assert played("chimera", 4, m, 1, {"F": 1, "B": 1}).makespan == slots


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4))
def test_chimera_closed_forms(half: int, k: int) -> None:
    d = 2 * half
    n = k * d
    assert played("chimera", d, n).makespan == 3 * n + (d - 2) * (k + 1)
    n = 2 * k * d
    doubled = {"form": "doubling"}
    assert played("chimera", d, n, 1, None, **doubled).makespan == 3 * n + Q(3 * (d - 2), 2)
    assert played("chimera", d, n, 1, {"F": 1, "B": 3}, **doubled).makespan == 4 * n + (d - 2) * (k + 1)


def test_backward_halving_runs_two_micro_batches_forward_at_once() -> None:
    table = generate("chimera", 4, 8, form="halving")
    spans = {
        a.kind: {b.span for row in table for b in map(only, row.actions) if b.kind == a.kind}
        for a in map(only, table[0].actions)
    }
    assert spans == {"F": {2}, "B": {1}, "REDUCE": {1}}
    whole = played("chimera", 4, 8, 1, None, form="halving")
    # F of two halves takes two, so the step has the work of eight micro-batches.
    assert whole.makespan * (1 - whole.fraction) == 24


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 6), st.integers(1, 5), st.integers(1, 5))
def test_bubble_of_dualpipe(half: int, more: int, f: int, w: int) -> None:
    """(p/2 − 1)(F&B + B − 3W) with F&B = F + B, exactly where F = I >= W."""
    p, w = 2 * half, min(f, w)
    m = 2 * p + 2 * more
    got = played("dualpipe", p, m, 1, {"F": f, "B": f + w, "I": f, "W": w})
    assert got.makespan - m * (2 * f + w) == (half - 1) * (f + 2 * (f + w) - 3 * w)
    assert set(got.memory) == {p + 1}


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 5), st.integers(1, 5), st.integers(1, 5))
def test_bubble_of_dualpipev(p: int, more: int, f: int, w: int) -> None:
    """(p − 1)(F&B + B − 3W), times of one of a rank's two stages."""
    m, w = 2 * p + more, min(f, w)
    got = played("dualpipev", p, m, 1, {"F": f, "B": f + w, "I": f, "W": w})
    assert got.makespan - 2 * m * (2 * f + w) == (p - 1) * (f + 2 * (f + w) - 3 * w)


@pytest.mark.parametrize("waves", [1, 2, 3, 4])
@pytest.mark.parametrize("p", [2, 3, 4, 6, 7])
def test_hanayo_is_near_the_bubble_of_its_waves(p: int, waves: int) -> None:
    """Makespan 3p + 2 (p − 1) / W for m = p: at most 9 % above it, never below."""
    least = 3 * p + Q(2 * (p - 1), waves)
    assert least <= played("hanayo", p, p, 2 * waves).makespan <= Q("1.09") * least


@pytest.mark.parametrize("p", [2, 3, 5, 8])
def test_hanayo_of_one_wave(p: int) -> None:
    # Bubble 2 (p − 1) F / W with F of a whole rank 1: makespan 3 m + 2 (p − 1) / W … in chunk times of 1/2.
    assert played("hanayo", p, p, 2).makespan == 3 * p + 2 * (p - 1)


@pytest.mark.parametrize("waves", [1, 2, 3])
def test_hanayo_on_two_ranks(waves: int) -> None:
    assert played("hanayo", 2, 2, 2 * waves).makespan == 6 + Q(2, waves)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(1, 14), st.integers(0, 9), st.sampled_from("AB"))
def test_dapple_admits_what_its_policy_and_the_memory_allow(p: int, m: int, fitting: int, policy: str) -> None:
    got = played("dapple", p, m, 1, None, policy=policy, D=fitting)
    want = [min(p - r if policy == "A" else 2 * (p - r) - 1, m, fitting or m) for r in range(p)]
    assert list(got.memory) == want
    if fitting == 0:
        assert got.makespan == 3 * (m + p - 1)
        if policy == "A":
            assert [row.actions for row in generate("1f1b", p, m)] == [
                row.actions for row in generate("dapple", p, m, policy="A")
            ]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 8))
def test_zb_v_has_no_bubble_inside_a_rank(p: int, more: int) -> None:
    m = 2 * p - 1 + more
    got = played("zb-v", p, m, 2)
    assert got.span == 3 * m
    assert max(got.memory) <= p


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 10), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)
)
def test_zb_auto_keeps_its_limit_and_runs_everything(p: int, m: int, limit: int, f: int, i: int, w: int) -> None:
    got = played("zb-auto", p, m, 1, {"F": f, "I": i, "W": w}, F=f, I=i, W=w, limit=limit)
    assert max(got.memory) <= limit
    assert got.makespan >= m * (f + i + w)


@pytest.mark.parametrize("p", [2, 4, 6, 8])
def test_v_min_holds_a_third_and_v_half_a_half(p: int) -> None:
    assert max(played("v-min", p, 4 * p, 2).memory) <= Q(p, 3) + Q(3, 2)
    assert max(played("v-half", p, 4 * p, 2).memory) <= Q(p, 2) + 1


def test_pipedream_warms_up_by_workers_and_deals_in_turn() -> None:
    """VGG-16's 15-1 plan on 16 workers keeps one mini-batch a replica of the first stage in flight."""
    table = generate("pipedream", 2, 40, replicas="15,1")
    assert len(table) == 16
    for replica, row in enumerate(table[:15]):
        own = [a for a in map(only, row.actions) if a.kind == "F"]
        assert [a.micro_batch % 15 for a in own] == [replica] * len(own)
        assert row.actions[0].kind == "F" and row.actions[2].kind == "B"  # type: ignore[union-attr]  # ⌊15 / 15⌋ = 1
    straight = generate("pipedream", 4, 9)
    for s, row in enumerate(straight):
        kinds = "".join(a.kind[0] for a in map(only, row.actions))
        assert kinds.startswith("F" * (4 - s) + "BU") and kinds.count("U") == 9
        # An update follows every backward, and the stage then goes on in alternation.
        assert "FBUFBU" in kinds


def test_pipedream_has_no_bubble_in_its_steady_state() -> None:
    short, long = played("pipedream", 4, 20), played("pipedream", 4, 50)
    assert long.makespan - short.makespan == 3 * 30
    assert list(long.memory) == [4, 3, 2, 1]


def test_versions_of_2bw_as_published() -> None:
    assert [version(k, 4) for k in range(16)] == [0] * 8 + [1] * 4 + [2] * 4
    assert [version(k, 3) for k in range(12)] == [0] * 6 + [1] * 3 + [2] * 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 4))
def test_2bw_updates_every_m_backwards_and_two_versions_suffice(d: int, more: int, batches: int) -> None:
    m = d + more
    for s, row in enumerate(generate("2bw", d, m, batches=batches)):
        updates = backwards = forwards = 0
        held: set[int] = set()
        for a in map(only, row.actions):
            if a.kind == "F":
                held.add(a.micro_batch)
                forwards += 1
                # What this forward reads must exist: the older or the newer buffer.
                assert updates - 1 <= version(a.micro_batch, m) <= updates
            elif a.kind == "B":
                assert updates - 1 <= version(a.micro_batch, m) <= updates
                held.remove(a.micro_batch)
                backwards += 1
            else:
                updates += 1
                assert backwards == updates * m
            assert len(held) <= d - s
        assert (forwards, backwards, updates) == (m * batches, m * batches, batches)


CASES = [
    *((row[0], row[1], row[2], row[3], row[4]) for row in REFERENCE),
    ("v-half", 4, 8, 2, {}),
    ("v-half", 5, 7, 2, {}),
    ("chimera", 6, 6, 1, {"f": 3}),
    ("chimera", 6, 4, 1, {}),
    ("chimera", 4, 16, 1, {"form": "halving"}),
    ("pipedream", 3, 17, 1, {"replicas": "3,2,1"}),
    ("pipedream", 3, 17, 1, {"replicas": "1,3,2"}),
    ("2bw", 4, 5, 1, {"batches": 3}),
]


@pytest.mark.parametrize(("name", "p", "m", "v", "args"), CASES)
def test_tables_are_free_of_deadlock_with_zero_buffers(
    name: str, p: int, m: int, v: int, args: dict[str, int | str]
) -> None:
    table = generate(name, p, m, **chunked(name, v), **args)
    schedule = Schedule(name, m, {**args, **chunked(name, v)})
    pairs = links(name, p, chunks_of(schedule), **args)
    assert stuck(table, exchanges(table, pairs), pairs) == ""


@pytest.mark.parametrize(("name", "p", "m", "v", "args"), CASES)
def test_each_stage_runs_its_micro_batches_once_where_it_is_held(
    name: str, p: int, m: int, v: int, args: dict[str, int | str]
) -> None:
    schedule = Schedule(name, m, {**args, **chunked(name, v)})
    table = rows_of(schedule, p * chunks_of(schedule))
    ran: Counter[tuple[str, int, int]] = Counter()
    for r, row in enumerate(table):
        for a in (a for e in row.actions for a in members(e) if a.kind in "FBIW"):
            if name != "pipedream":
                assert home(schedule, p, int(a.on)) == r
            for j in range(a.micro_batch, a.micro_batch + a.span):
                ran[{"I": "B"}.get(a.kind, a.kind), int(a.on), j] += 1
    assert set(ran.values()) == {1}
    total = m * int(args.get("batches", 1))
    copies = pipes(schedule)
    for pipe in range(copies):
        own = [{j for k, s, j in ran if k == "F" and s == stage} for stage in range(pipe * p, pipe * p + p)]
        assert all(x == own[0] for x in own)
    assert {j for k, s, j in ran if k == "F"} == set(range(total))
    assert {(s, j) for k, s, j in ran if k == "F"} == {(s, j) for k, s, j in ran if k == "B"}


@pytest.mark.parametrize(("name", "p", "m", "v", "args"), [c for c in CASES if c[0] not in ("pipedream", "2bw")])
def test_a_plan_with_such_a_schedule_is_legal_and_its_arrays_hold_every_action(
    name: str, p: int, m: int, v: int, args: dict[str, int | str]
) -> None:
    schedule = Schedule(name, m, {**args, **chunked(name, v)})
    n = p * chunks_of(schedule)
    stages = tuple(
        Stage((), Mesh((home(schedule, p, s),)), pipe=s // p if pipes(schedule) > 1 else 0) for s in range(n)
    )
    check_schedule(Plan("", m, stages, schedule))
    order = orders(schedule, n)
    assert order.ranks == p
    actions = [a for row in generate(name, p, m, **chunked(name, v), **args) for e in row.actions for a in members(e)]
    assert len(order.kind) == sum(a.span for a in actions if a.kind in "FBIW")


@pytest.mark.parametrize(
    ("name", "p", "m", "args", "message"),
    [
        ("chimera", 3, 3, {}, "schedule chimera needs an even number of ranks: 3 is odd"),
        ("chimera", 4, 6, {}, "schedule chimera needs micro-batches in a multiple of 4 for form direct: 6 are not"),
        ("chimera", 8, 8, {"f": 3}, "schedule chimera needs f pairs of pipes that divide 4, half its ranks: f = 3 does not"),
        ("chimera", 8, 16, {"f": 2}, "schedule chimera needs at most 8 micro-batches with f = 2: got 16"),
        ("chimera", 4, 8, {"form": "x"}, 'schedule chimera needs form direct, doubling or halving: "x" is none of them'),
        ("dualpipe", 4, 6, {}, "schedule dualpipe needs an even number of at least 8 micro-batches: got 6"),
        ("dualpipev", 4, 6, {}, "schedule dualpipev needs at least 8 micro-batches on 4 ranks: got 6"),
        ("dapple", 4, 8, {"policy": "C"}, 'schedule dapple needs policy A or B: "C" is neither'),
        ("dapple", 4, 8, {"policy": 1}, "schedule dapple: argument \"policy\" is 1, it must be like 'A'"),
        ("zb-auto", 4, 8, {"F": 0}, "schedule zb-auto needs F, I and W above 0: F is 0"),
        ("2bw", 4, 3, {}, "schedule 2bw needs at least 4 micro-batches an update on 4 ranks, else two weight versions do "
         "not suffice: got 3"),
        ("pipedream", 2, 3, {"replicas": "2"}, 'schedule pipedream needs replicas of its 2 stages, such as "1,1": got "2"'),
        ("zb-v", 2, 3, {"limit": 2}, 'schedule zb-v has no argument "limit": it takes v'),
        ("zb-v", 2, 3, {"v": 4}, "schedule zb-v has 2 stages a rank: got v = 4"),
        ("hanayo", 2, 3, {"v": 3}, "schedule hanayo needs an even number of chunks, two a wave: v = 3 is odd"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_exist_says_why(
    name: str, p: int, m: int, args: dict[str, int | str], message: str
) -> None:
    with pytest.raises(InputError) as error:
        generate(name, p, m, **args)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_pipes_of_a_plan_must_be_those_of_its_schedule() -> None:
    schedule = Schedule("chimera", 2)
    one = tuple(Stage((), Mesh((r,))) for r in (0, 1, 1, 0))
    with pytest.raises(InputError, match="schedule chimera runs 2 pipes: the plan has 1"):
        check_schedule(Plan("", 2, one, schedule))
    wrong = tuple(Stage((), Mesh((r,)), pipe=s // 2) for s, r in enumerate((0, 1, 0, 1)))
    with pytest.raises(InputError, match="stages 1 and 2 are chunks of rank 1: they must be on the same devices"):
        check_schedule(Plan("", 2, wrong, schedule))
    assert generate("chimera", 2, 2) == rows_of(schedule, 4)
    assert all(isinstance(row, Row) for row in rows_of(schedule, 4))
