"""Memory of Megatron-LM's tests, which repeats within 0.2 %: what rests between steps, and the peak."""

from __future__ import annotations

import numpy as np
import pytest

from meshwright.validation import shipped
from meshwright.validation.baseline import Efficiency
from meshwright.validation.memory import memory_error
from meshwright.validation.prediction import Prediction, predictions
from meshwright.validation.score import constants_without


@pytest.fixture(scope="module")
def found() -> dict[str, Prediction]:
    table = shipped()
    rows = [r for r in table.rows if r.source == "megatron-ci" and r.allocated]
    return {p.row.id: p for p in predictions(rows, constants_without, Efficiency(table.rows))}


@pytest.mark.parametrize(
    "row",
    [
        "megatron-ci-0035",  # replicas, products deterministic: weights, gradients, optimizer, work space
        "megatron-ci-0037",  # the same on A100
        "megatron-ci-0028",  # eight chunks: each keeps its last input and the gradient of it
        "megatron-ci-0104",  # three chunks
        "megatron-ci-0250",  # attention's own buffer of scores
        "megatron-ci-0251",  # gradients in 16 bits, the optimizer's copy in 32
    ],
)
def test_what_rests_is_accounted_for_to_a_thousandth(found: dict[str, Prediction], row: str) -> None:
    error = memory_error(found[row], "resting")
    assert error is not None and abs(error) < 0.001


def test_rests_and_peaks_within_their_targets(found: dict[str, Prediction]) -> None:
    for kind, most in (("resting", 0.02), ("allocated", 0.04)):
        errors = [e for p in found.values() if (e := memory_error(p, kind)) is not None]
        assert len(errors) == 217
        assert np.abs(errors).mean() <= most
