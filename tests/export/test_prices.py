"""What a target runs otherwise is priced as it runs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshwright.export.outcome import priced
from meshwright.export.rows import ROWS, setup_of_row


def test_sums_at_every_micro_batch_cost_their_number() -> None:
    setup = setup_of_row(next(r for r in ROWS if r.words == "data parallelism"))
    once, each = priced(setup), priced(replace(setup, sums_each=True))
    one = setup.with_words(micro_batch=setup.point.micro_batch * setup.layout.micro_batches)
    assert one.layout.micro_batches == 1
    assert priced(replace(one, sums_each=True)).step_seconds == priced(one).step_seconds
    m = setup.layout.micro_batches
    samples = setup.layout.samples // m
    recipe = replace(setup.problem.recipe, samples=samples)
    alone = priced(replace(setup, problem=replace(setup.problem, recipe=recipe)).with_words(samples=samples))
    assert once.step_seconds < each.step_seconds < m * alone.step_seconds
    factor, fixed = setup.problem.cost.step_overhead(setup.world)
    saved = (m - 1) * (fixed + factor * alone.seconds_by["optimizer"])
    assert each.step_seconds == pytest.approx(m * alone.step_seconds - saved)
