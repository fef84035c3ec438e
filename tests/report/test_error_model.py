"""The figures beside every prediction: made from a validation, and what is said where there are none."""

from __future__ import annotations

import pytest

from meshwright.report.error_model import from_toml, to_toml

VALIDATED = {
    "rows": 1341, "mape": 10.1, "sources": [{}, {}], "share": 80.0,
    "pairs": {"error": 8.21, "ordered": 86.2, "pairs": 3234, "near": 25.0},
    "intervals": [
        {"family": "h100", "kind": "dense", "rows": 128, "sources": 8, "low": 0.9012, "high": 1.2, "covered": 80.1},
        {"family": "v100", "kind": "dense", "rows": 21, "sources": 2, "low": None, "high": None, "covered": None},
    ],
    "memory_intervals": [
        {"family": "", "kind": "dense", "rows": 52, "sources": 4, "low": 0.8, "high": 1.25, "covered": 80.8},
    ],
}  # fmt: skip
MODEL = from_toml(to_toml(VALIDATED))


def test_the_file_is_made_from_a_validation() -> None:
    assert MODEL.pairs_within == 0.082
    assert MODEL.share == 80
    assert MODEL.provenance.startswith("1,341 published steps of 2 sources")
    found = MODEL.ranges["h100", "dense"]
    assert (found.steps, found.sources, found.low, found.high) == (128, 8, 0.901, 1.2)


def test_three_sources_give_an_interval() -> None:
    assert MODEL.interval("h100", "dense", 10.0) == pytest.approx((9.01, 12.0))
    assert MODEL.sentence("h100", "dense", "H100-80GB", 10.0) == (
        "80 % of held-out steps of dense transformers on H100-80GB took 0.90 to 1.20 times the prediction: here 9.01 to 12.0 s "
        "(8 independent sources, 128 steps)."
    )
    assert ": here" not in MODEL.sentence("h100", "dense", "H100-80GB", float("nan"))


def test_fewer_give_none_and_say_so() -> None:
    assert MODEL.interval("v100", "dense", 10.0) is None
    assert MODEL.sentence("v100", "dense", "V100", 10.0) == (
        "No interval: 21 measured steps of dense transformers on V100 from 2 independent sources, and three are needed, so take "
        "the order of plans before the seconds."
    )


@pytest.mark.parametrize(("kind", "what"), [("MoE", "mixtures of experts"), ("", "models of this kind")])
def test_what_was_never_measured_says_so(kind: str, what: str) -> None:
    assert MODEL.interval("h100", kind, 10.0) is None
    assert MODEL.sentence("h100", kind, "X1", 10.0).startswith(
        f"No measured steps of {what} on X1 stand behind these figures"
    )


def test_peaks_of_memory_have_an_interval_of_their_own() -> None:
    assert MODEL.memory_interval("dense", 8 * 2**30) == pytest.approx((6.4 * 2**30, 10 * 2**30))
    assert MODEL.memory_sentence("dense", 8 * 2**30) == (
        "80 % of measured peaks were 0.80 to 1.25 times the prediction: here 6.4 to 10.0 GiB (4 independent sources, 52 runs)."
    )
    assert MODEL.memory_sentence("MoE", 1.0) == "No interval for memory: too few measured peaks of mixtures of experts."


def test_no_figure_speaks_of_constants_that_no_measured_step_was_compared_with() -> None:
    whose = 'the profile "ours"'
    other = MODEL.by_others({"step": whose})
    assert other.interval("h100", "dense", 10.0) is None
    assert other.sentence("h100", "dense", "H100-80GB", 10.0) == (
        'No interval: seconds are predicted by the constants of the profile "ours", and the table of measured steps says '
        "nothing of those, only of the constants that ship, so take the order of plans before the seconds."
    )
    assert other.memory_sentence("dense", 1.0) == MODEL.memory_sentence("dense", 1.0)
    assert "by the constants that ship" in other.provenance and MODEL.by_others({}) is MODEL
    both = MODEL.by_others({"step": whose, "memory": whose})
    assert both.memory_interval("dense", 1.0) is None
    assert both.memory_sentence("dense", 1.0).startswith("No interval for memory: bytes are counted by the profile")
