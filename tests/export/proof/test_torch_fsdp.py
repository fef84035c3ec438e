"""What decides the levels of torchtitan: how often FSDP2 gathers and sums in a step, without a pipeline and in one."""

from __future__ import annotations

import pytest

from execute.conftest import Pools, pools
from export.proof.fsdp_jobs import Case

__all__ = ["pools"]
M = 4
CASES = (
    # case, all-gathers of a block, reduce-scatters, all-reduces of a step
    (Case(1, 1, 4, M, keep=False), 2 * M, M, 0, "ZeRO-3: gathered twice, cut once, every micro-batch"),
    (Case(1, 1, 4, M, keep=True), M, M, 0, "never: gathered once every micro-batch, not once a step as ZeRO-2"),
    (Case(1, 4, 1, M, keep=True), 0, 0, M, "copies are summed every micro-batch, not once a step"),
    (Case(1, 2, 2, M, keep=False), 2 * M, M, M, "groups too: copies are summed every micro-batch"),
    (Case(1, 1, 4, 1, keep=True), 1, 1, 0, "one micro-batch, never: as ZeRO-2"),
    (Case(1, 4, 1, 1, keep=True), 0, 0, 1, "one micro-batch: as replicas"),
    (Case(2, 1, 2, M, keep=True), 1, 1, 0, "a pipeline: gathered once and cut once a step, ZeRO-1"),
    (Case(2, 2, 1, M, keep=True), 0, 0, 1, "a pipeline: copies are summed once a step"),
    (Case(2, 1, 2, M, keep=True, chunks=2), 1, 1, 0, "a pipeline with chunks: the same"),
)


@pytest.mark.parametrize(("case", "gathers", "cuts", "sums", "words"), CASES, ids=[c[-1] for c in CASES])
def test_collectives_of_a_step(case: Case, gathers: int, cuts: int, sums: int, words: str, pools: Pools) -> None:
    for counts, cut in pools(4).run("export.proof.fsdp_jobs:counted", case):
        blocks = case.chunks
        assert counts == {"gather": gathers * blocks, "cut": cuts * blocks, "sum": sums * blocks}, words
        assert cut, "weights rest cut over the members that share them"


def test_a_pipeline_gathers_again_for_each_backward_where_weights_are_given_up(pools: Pools) -> None:
    """ "always" in a pipeline: more gathers, and gradients are cut once a step all the same, so whole until then."""
    for counts, _ in pools(4).run("export.proof.fsdp_jobs:counted", Case(2, 1, 2, M, keep=False)):
        assert counts["cut"] == 1
        assert counts["gather"] > 1
