"""What each target makes of each row, as its documentation and its code say; levels are computed from small plans.

Letters: E exact, C close, - refused. A row whose plan says more than its name (tensor parallelism beside copies of all
weights, say) stands under what a target does to the whole of it; `APART` says why.
"""

from __future__ import annotations

from functools import cache

import pytest

from meshwright.export.registry import load, names
from meshwright.export.rows import ROWS, levels

TARGETS = (
    "torchtitan",
    "torchtitan@main",
    "megatron",
    "megatron-bridge",
    "accelerate",
    "transformers",
    "deepspeed",
    "maxtext",
)
TABLE = {
    #                                 tt  main meg brg acc hf  ds  max
    "data parallelism":              ("C", "E", "E", "E", "E", "C", "E", "E"),
    "ZeRO 1":                        ("-", "E", "E", "E", "-", "-", "E", "E"),
    "ZeRO 2, one micro-batch":       ("E", "E", "E", "E", "C", "C", "E", "-"),
    "ZeRO 2, several micro-batches": ("C", "C", "E", "E", "C", "C", "E", "-"),
    "ZeRO 3":                        ("E", "E", "E", "E", "E", "E", "E", "E"),
    "ZeRO 3 in groups (hybrid)":     ("C", "C", "E", "E", "E", "E", "C", "E"),
    "ZeRO 3, gathered once":         ("E", "E", "C", "C", "E", "E", "E", "C"),
    "tensor":                        ("C", "E", "E", "E", "-", "C", "C", "E"),
    "tensor + sequence":             ("C", "E", "E", "E", "-", "-", "-", "E"),
    "tensor + sequence + ZeRO 1":    ("-", "E", "E", "E", "-", "-", "-", "E"),
    "tensor + ZeRO 3":               ("E", "E", "E", "E", "E", "E", "C", "E"),
    "context, gathered":             ("C", "C", "E", "E", "-", "-", "-", "E"),
    "context, by heads":             ("-", "C", "E", "E", "E", "-", "E", "-"),
    "experts":                       ("C", "C", "E", "E", "-", "-", "E", "E"),
    "experts + ZeRO 3":              ("E", "E", "E", "E", "-", "E", "E", "E"),
    "pipeline":                      ("E", "E", "E", "E", "-", "-", "E", "C"),
    "pipeline + ZeRO 1":             ("E", "E", "E", "E", "-", "-", "E", "C"),
    "chunks":                        ("E", "E", "E", "E", "-", "-", "-", "C"),
    "uneven stages":                 ("E", "E", "E", "E", "-", "-", "-", "-"),
    "schedule gpipe":                ("E", "E", "-", "-", "-", "-", "-", "C"),
    "schedule bfs":                  ("E", "E", "-", "-", "-", "-", "-", "C"),
    "schedule zb-h1":                ("E", "E", "-", "-", "-", "-", "-", "-"),
    "schedule zb-v":                 ("E", "E", "-", "-", "-", "-", "-", "-"),
    "schedule dualpipev":            ("E", "E", "-", "-", "-", "-", "-", "-"),
    "a table of one's own":          ("E", "E", "-", "-", "-", "-", "-", "-"),
    "recompute all":                 ("C", "E", "E", "E", "E", "C", "E", "E"),
    "recompute attention":           ("C", "C", "E", "E", "-", "-", "-", "C"),
    "recompute first layers":        ("-", "-", "E", "E", "-", "-", "-", "-"),
    "recompute light ops":           ("C", "C", "-", "-", "-", "-", "-", "C"),
}  # fmt: skip
APART = {
    ("torchtitan", "data parallelism"): "sums copies of parameters at every one of 8 micro-batches",
    ("torchtitan", "recompute all"): "sums copies of parameters at every one of 8 micro-batches",
    ("torchtitan", "tensor"): "sums copies of parameters at every one of 32 micro-batches",
    ("torchtitan", "context, gathered"): "cuts all parameters over the ranks of context parallelism",
    ("torchtitan", "experts"): "cuts all parameters over the replicas that share experts",
    ("accelerate", "tensor"): "has no whole copies of weights (z0) with tp 4 and dp 4",
    ("accelerate", "context, gathered"): "has no whole copies of weights (z0) with cp 4",
    ("transformers", "data parallelism"): "FSDP2 with groups of one takes the place of DDP",
    ("transformers", "experts"): "ep 4 inside of fsdp_size, which cuts all weights",
    ("deepspeed", "tensor"): "keeps the embedding whole",
}
"""What a plain table of features would call exact, and the part of the plan that is not."""
WORDS = {"E": "exact", "C": "close", "-": "refused"}


@cache
def found(target: str) -> dict[str, tuple[str, str]]:
    return dict(levels(load(target)))


def test_every_target_and_every_row_is_in_the_table() -> None:
    assert {t.partition("@")[0] for t in TARGETS} == set(names())
    assert list(TABLE) == [row.words for row in ROWS]


@pytest.mark.parametrize("target", TARGETS)
def test_levels_are_those_of_the_target(target: str) -> None:
    wanted = {row: WORDS[letters[TARGETS.index(target)]] for row, letters in TABLE.items()}
    assert {row: level for row, (level, _) in found(target).items()} == wanted


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_not_exact_has_a_sentence_and_what_is_has_none(target: str) -> None:
    for row, (level, why) in found(target).items():
        assert bool(why) == (level != "exact"), row


@pytest.mark.parametrize(("target", "row"), APART)
def test_the_part_that_is_not_exact_is_named(target: str, row: str) -> None:
    level, why = found(target)[row]
    assert level != "exact" and APART[target, row] in why
