"""Scores: the arithmetic by hand, on predictions made up for it."""

from __future__ import annotations

from dataclasses import replace
from math import exp, isnan, log

import numpy as np
import pytest
from hand_made_rows import MODEL, prediction, row

from meshwright.calibration.stack import EVERYTHING, TERMS, priors
from meshwright.validation.baseline import Efficiency
from meshwright.validation.intervals import intervals
from meshwright.validation.memory import fits_of, memory_scores
from meshwright.validation.models import Dense
from meshwright.validation.order import order_of, pair_error, quantile
from meshwright.validation.payload import validate_object
from meshwright.validation.score import report, strata
from meshwright.validation.three_rows import DRAWS, after_three_rows, by_own_rows


def test_errors_of_sources_and_their_means() -> None:
    rows = [row("1", "s", 1.0), row("2", "s", 1.2, tp=2), row("3", "t", 2.0)]
    found = report([prediction(r, p, b) for r, p, b in zip(rows, [1.1, 1.08, 1.6], [2.0, 1.2, 2.0])], (), {"why": 3})
    s, t = found.sources
    assert (s.name, s.rows, s.mape, s.median) == ("s", 2, pytest.approx(0.1), pytest.approx(0.0))
    assert s.p90 == pytest.approx(0.1)
    assert s.baseline == pytest.approx(0.5)
    assert (t.mape, t.median) == (pytest.approx(0.2), pytest.approx(-0.2))
    assert (found.mape, found.median, found.baseline) == (pytest.approx(0.15), pytest.approx(0.15), pytest.approx(0.25))
    assert found.refused == {"why": 3}


def test_flagged_rows_stand_apart() -> None:
    plain, small = row("1", "s", 1.0), row("2", "s", 1.0, flags=("small",))
    alone = row("3", "t", 1.0, flags=("noisy",))
    found = report([prediction(plain, 1.1), prediction(small, 3.0), prediction(alone, 5.0)])
    assert [(s.name, s.rows, s.flagged) for s in found.sources] == [("s", 1, False), ("t", 1, True)]
    assert found.mape == pytest.approx(0.1)
    assert {s.name: s.rows for s in found.strata} == {"dense": 1, "small or noisy": 2}


@pytest.mark.parametrize(("flag", "stratum"), [("learned", "learned routing"), ("unstated", "precision not stated")])
def test_what_was_read_from_rows_themselves_is_not_scored_on_them(flag: str, stratum: str) -> None:
    plain, aside = row("1", "s", 1.0), row("2", "s", 1.0, flags=(flag,))
    found = report([prediction(plain, 1.1), prediction(aside, 3.0)])
    assert found.mape == found.sources[0].mape == pytest.approx(0.1)
    assert {s.name: s.mape for s in found.strata} == {"dense": pytest.approx(0.1), stratum: pytest.approx(2.0)}


def test_strata_tell_kinds_apart_and_large_runs_stand_in_two() -> None:
    rows = [row("1", "s", 1.0, devices=1024), row("2", "s", 1.0, precision="float8_e4m3fn"), row("3", "s", 1.0, ep=2)]
    found = strata([prediction(r, 1.0) for r in rows])
    assert {name: [p.row.id for p in ps] for name, ps in found.items()} == {
        "dense": ["1"], "MoE": ["3"], "low precision": ["2"], "over 512 devices": ["1"],
    }  # fmt: skip


def test_order_inside_groups_of_one_problem() -> None:
    # Three plans of one problem (1 : 1.05 : 1.5), the first two in the wrong order and nearer than 8 %; one plan of another.
    rows = [row("1", "s", 1.0), row("2", "s", 1.05, tp=2), row("3", "s", 1.5, tp=4), row("4", "s", 9.0, batch=128)]
    found = order_of([prediction(r, p) for r, p in zip(rows, [1.2, 1.1, 1.6, 1.0])])
    assert (found.groups, found.pairs, found.ordered) == (1, 2, 1.0)
    assert found.tau == pytest.approx(1 / 3)  # two right, one wrong
    assert found.regret == found.worst_regret == pytest.approx(0.05)
    # Within the model whatever the batch: the fourth is predicted fastest and measured slowest.
    assert found.tau_model == pytest.approx((2 - 4) / 6)


def test_a_vocabulary_padded_for_the_tensor_degree_is_the_same_problem() -> None:
    padded = Dense(*[getattr(MODEL, f) for f in ("style", "layers", "hidden", "heads", "kv_heads", "ffn")], 51200, 512)
    found = [prediction(row("1", "s", 1.0), 1.0), prediction(row("2", "s", 2.0, tp=8, model=padded), 2.0)]
    assert order_of(found).groups == 1


def test_the_error_of_pairs() -> None:
    rows = [row("1", "s", 1.0), row("2", "s", 1.2, tp=2), row("3", "s", 2.0, tp=4)]
    found = pair_error([prediction(r, p) for r, p in zip(rows, [1.1, 1.08, 1.6])])
    assert found.pairs == 1  # the third needs no model to tell it apart
    assert found.error == pytest.approx((1.1 / 1.08) / (1.0 / 1.2) - 1)
    assert isnan(found.ordered)  # predicted nearer than the error: a tie, not a wrong order


def test_a_weighted_quantile() -> None:
    assert quantile(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 8.0]), 0.5) == 2.0
    assert quantile(np.array([3.0, 1.0, 2.0]), np.array([8.0, 1.0, 1.0]), 0.5) == 3.0


def test_the_baseline_of_others_never_sees_its_own_source() -> None:
    rows = [row("1", "s", 1.0), row("2", "t", 4.0), row("3", "t", 4.0), row("4", "u", 4.0, device="h100")]
    found = Efficiency(rows)
    assert [found.of_others(r) for r in rows[:3]] == pytest.approx([4.0, 1.0, 1.0])
    assert isnan(found.of_others(rows[3]))
    assert [found.of_own(r) for r in rows] == pytest.approx([1.0, 4.0, 4.0, 4.0])


def test_a_width_that_no_other_source_has_is_taken_in_proportion() -> None:
    rows = [row("1", "s", 1.0, precision="float8_e4m3fn"), row("2", "t", 4.0)]
    assert Efficiency(rows).of_others(rows[0]) == pytest.approx(2.0)


def test_three_rows_remove_most_of_a_bias_and_leave_the_rest() -> None:
    biased = [prediction(row(str(k), "s", 1.0), 1.2) for k in range(6)]
    # Of a bias that all share its posterior mean is taken off: 3 / noise² against 1 / spread².
    prior = priors()["all"]
    told = 3 / prior.noise**2
    left = log(1.2) * (1 - told / (told + prior.spreads[EVERYTHING] ** -2))
    assert after_three_rows(biased).mape == pytest.approx(exp(left) - 1, rel=0.05)
    assert isnan(after_three_rows(biased[:3]).mape)
    mixed = [prediction(row(str(k), "s", 1.0), 1.2 * (1.1 if k % 2 else 1 / 1.1)) for k in range(8)]
    assert after_three_rows(biased).mape + 0.03 < after_three_rows(mixed).mape < 0.2


def test_three_rows_tell_which_kind_of_work_is_slower() -> None:
    """Rows of which the host is a tenth to nine tenths, on a host that takes half as long again."""
    host = [t.name for t in TERMS].index("host")
    rows = []
    for k, share in enumerate(np.linspace(0.1, 0.9, 9)):
        worth = tuple(share if i == host else 0.0 for i in range(len(TERMS)))
        rows.append(prediction(row(str(k), "s", 1.0 + 0.5 * share), 1.0, worth=worth))
    before = np.mean([abs(p.error) for p in rows])
    alike = [replace(p, worth=()) for p in rows]
    assert after_three_rows(rows).mape < 0.5 * after_three_rows(alike).mape
    assert after_three_rows(rows).mape < 0.3 * before


def test_rows_are_taught_by_rows_of_their_own_stack_alone() -> None:
    """Five steps of one machine take a third longer than predicted; the other five, of another machine, are as predicted."""
    slow = [prediction(row(f"a{k}", "s", 1.0), 0.75) for k in range(5)]
    right = [prediction(replace(row(f"b{k}", "s", 1.0), machine="another"), 1.0) for k in range(5)]
    taught = after_three_rows([*slow, *right])
    assert len(taught.after) == len(taught.own) == 7 * DRAWS
    assert set(taught.after[taught.before == 0.0]) == {0.0}
    of_slow = taught.before > 0.0
    left = [taught.after[of_slow & (taught.own == own)].mean() for own in range(4)]
    assert left[0] == pytest.approx(0.25) and left == sorted(left, reverse=True) and left[3] < 0.1

    table = by_own_rows([taught, after_three_rows(slow), after_three_rows(slow[:3])])
    assert [t.own for t in table] == [0, 1, 2, 3]
    assert [t.sources for t in table] == [1, 1, 1, 2]
    assert sum(t.share for t in table) == pytest.approx(1.0) and table[3].share > 0.5
    assert table[0].before == table[0].after > 0.0


def test_memory_by_kind() -> None:
    def used(kind: str, measured: float, predicted: float, **more: float) -> object:
        return prediction(
            row(kind, "s", 1.0, memory=measured, memory_kind=kind, **more), 1.0, memory=predicted, allocated=30.0
        )

    found = memory_scores(
        [used("allocated", 100.0, 110.0), used("reserved", 100.0, 60.0), used("reserved", 100.0, 120.0, allocated=40.0)]  # type: ignore[list-item]
    )
    by_kind = {m.kind: m for m in found}
    assert (by_kind["allocated"].rows, by_kind["allocated"].mape) == (1, pytest.approx(0.1))
    # Below what was reserved is right; above it is wrong.
    assert by_kind["reserved"].mape == pytest.approx(0.1)
    assert by_kind["resting"].median == pytest.approx(-0.25)


def test_fits_and_false_alarms() -> None:
    ran = [prediction(row(str(k), "s", 1.0), 1.0, peak=p, usable=80.0) for k, p in enumerate([70.0, 79.0, 81.0, 10.0])]
    failed = [
        prediction(row(str(k), "s", 0.0, status="oom"), 1.0, peak=p, usable=80.0) for k, p in enumerate([90.0, 60.0])
    ]
    found = fits_of(ran, failed)
    assert (found.ran, found.false_oom, found.recognised) == (4, 0.25, 1)
    assert found.false_fit == 0.25  # one of the four that were predicted to fit did not


def test_intervals_cover_what_they_say_of_sources_that_they_have_not_seen() -> None:
    generator = np.random.default_rng(3)
    found = [
        prediction(row(f"{s}-{k}", f"s{s}", exp(bias + error)), 1.0)
        for s, bias in enumerate(generator.normal(0.02, 0.1, 40))
        for k, error in enumerate(generator.normal(0.0, 0.05, 5))
    ]
    (only,) = intervals(found)
    assert (only.family, only.kind, only.rows, only.sources) == ("a100", "dense", 200, 40)
    assert 0.80 <= only.covered <= 0.81
    assert 0.7 < only.covered_unseen < 0.9
    # About 1.28 standard deviations of both together on either side.
    assert log(only.low) == pytest.approx(0.02 - 1.28 * 0.11, abs=0.05)
    assert log(only.high) == pytest.approx(0.02 + 1.28 * 0.11, abs=0.05)


def test_two_sources_or_one_campaign_give_no_interval() -> None:
    two = [prediction(row(f"{s}{k}", s, 1.0 + 0.1 * k), 1.0) for s in ("s", "t") for k in range(4)]
    (found,) = intervals(two)
    assert (found.sources, found.rows) == (2, 8)
    assert isnan(found.low) and isnan(found.high) and isnan(found.covered)
    same = [prediction(row(s, s, 1.0 + 0.1 * k), 1.0) for k, s in enumerate(("vtrain-single", "vtrain-multi", "t"))]
    assert intervals(same)[0].sources == 2


def test_the_object_is_in_per_cent_and_has_no_nan() -> None:
    found = validate_object(report([prediction(row("1", "s", 1.0), 1.1, float("nan"))]))
    (source,) = found["sources"]
    assert (source["source"], source["rows"], source["mape"], source["median"]) == ("s", 1, 10.0, 10.0)
    assert source["baseline"] is None
    assert found["predictions"][0]["error"] == 10.0
    assert found["predictions"][0]["layout"] == "dp8 µ2 full"
