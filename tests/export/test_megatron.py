"""Megatron-LM: every word has an answer, every condition refuses, what is written is read back as the layout that it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.megatron_cases import CONDITIONS, DENSE, EXPERTS, drawn, setup
from meshwright.errors import InputError
from meshwright.export.megatron import SCRIPT, Megatron
from meshwright.export.outcome import answer, broken_conditions
from meshwright.export.reading import setup_from
from meshwright.export.rows import levels
from meshwright.export.said import WORDS
from meshwright.export.setup import Setup
from meshwright.plan.model import Schedule
from meshwright.plan.schedules import rows_of
from meshwright.simulate.simulator import simulate

GOLDEN = Path(__file__).with_name("golden") / "megatron"
MEGATRON = Megatron()


def options(found: Setup, version: str = "") -> dict[str, Any]:
    return {k: v for s in Megatron(version).said(found) for k, v in s.options.items()}


GOLDENS = {
    "stages": setup(dp=2, tp=2, sequence=True, pp=4, counts=(0, 2, 1, 1), zero=1, recompute="first:1"),
    "interleaved": setup(dp=8, pp=2, chunks=2, schedule="interleaved", recompute="full"),
    "fsdp": setup(dp=8, cp=2, context="gather", zero=3, replicate=2, recompute="core_attn+layernorm+"),
    "fsdp2": setup(zero=3, reshard=False),
    "experts": setup(EXPERTS, dp=2, tp=2, ep=4, sequence=True, whole_experts=True, zero=2, micro_batch=2),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_files(name: str) -> None:
    found = answer(MEGATRON, GOLDENS[name])
    assert found.files[SCRIPT] == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("model", [DENSE, "gpt2", EXPERTS])
@pytest.mark.parametrize("version", Megatron.versions)
def test_what_is_written_is_read_back(model: str, version: str) -> None:
    exporter, written, priced = Megatron(version), 0, 0
    for found in drawn(model, 30, seed=len(model)):
        out = answer(exporter, found, lossy=True)
        assert {s.word for s in out.said} == set(WORDS)
        if not out.files:
            assert out.broken
            continue
        written += 1
        read = exporter.read(out.files, found.model, found.world)
        again = setup_from(found.problem, exporter, read, found.name)
        assert again == out.runs, out.files[SCRIPT]
        if priced < 4 and version == Megatron.versions[0]:
            priced += 1
            own, theirs = (simulate(found.problem, s.plan(), detail=False) for s in (out.runs, again))
            assert own.step_seconds == theirs.step_seconds
    assert written > 8


def test_every_condition_has_a_case_on_each_side() -> None:
    assert {c.name for c in MEGATRON.conditions()} == set(CONDITIONS)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_refuses_with_a_sentence(name: str) -> None:
    condition = next(c for c in MEGATRON.conditions() if c.name == name)
    holds, broken, words = CONDITIONS[name]
    assert condition.broken(holds) == ""
    assert words in condition.broken(broken)
    sentence = next(s for s in broken_conditions(MEGATRON, broken) if words in s)
    assert sentence.startswith("Megatron-LM 0.19.2 needs ")


def test_levels_of_the_table() -> None:
    found = {row: level for row, (level, _) in levels(MEGATRON).items()}
    refused = {
        "schedule gpipe", "schedule bfs", "schedule zb-h1", "schedule zb-v", "schedule dualpipev", "a table of one's own",
        "recompute light ops",
    }  # fmt: skip
    close = {"ZeRO 3, gathered once"}  # torch FSDP2 sums gradients in the type of the weights
    assert {row for row, level in found.items() if level == "refused"} == refused
    assert {row for row, level in found.items() if level == "close"} == close


def test_orders_of_devices() -> None:
    own = setup(dp=4, tp=2, pp=2)
    replicas_outside = tuple(tuple(4 * d + 2 * r + t for d in range(4) for t in range(2)) for r in range(2))
    turned = own.with_words(devices=replicas_outside)
    assert "--use-tp-pp-dp-mapping" not in options(own)
    assert options(turned)["--use-tp-pp-dp-mapping"] is True
    read = MEGATRON.read(answer(MEGATRON, turned).files, own.model, 16)
    assert setup_from(own.problem, MEGATRON, read).layout.devices == replicas_outside
    kept = answer(MEGATRON, turned.with_words(recompute="light"), lossy=True)  # another word changes, devices stay
    assert kept.runs.layout.devices == replicas_outside
    other = own.with_words(devices=tuple(tuple(15 - d for d in rank) for rank in own.layout.devices))
    found = answer(MEGATRON, other, lossy=True)
    assert found.level == "refused" and "another order" in found.sentences[0]
    assert found.runs.layout.devices == own.layout.devices
    context = setup(dp=4, cp=2, pp=2, context="gather")  # its expert groups have other replicas: refused by it
    outside = tuple(tuple(4 * d + 2 * r + c for d in range(4) for c in range(2)) for r in range(2))
    assert answer(MEGATRON, context.with_words(devices=outside)).level == "refused"


def test_schedules_with_the_same_rows_are_the_same() -> None:
    own = setup(dp=8, pp=2, counts=(2, 2))
    rows = rows_of(Schedule("1f1b", 8), 2)
    table = own.with_words(schedule="custom", plan_schedule=Schedule("custom", 8, {}, rows))
    assert answer(MEGATRON, table).level == "exact"
    dapple = own.with_words(schedule="dapple", plan_schedule=Schedule("dapple", 8))
    same = [r.actions for r in rows_of(Schedule("dapple", 8), 2)] == [r.actions for r in rows]
    assert (answer(MEGATRON, dapple).level == "exact") == same


def test_interleaved_with_as_many_micro_batches_as_ranks_warms_up_no_longer() -> None:
    long = setup(dp=8, pp=2, chunks=2, schedule="interleaved", samples=16)
    found = answer(MEGATRON, long)
    assert found.level == "close" and "before all 2 micro-batches" in found.sentences[0]
    assert found.runs.layout.schedule.args == {"v": 2, "short": 1}
    assert answer(MEGATRON, found.runs).level == "exact"


def test_kept_weights_are_gathered_again_where_torch_fsdp2_does_not_go() -> None:
    for words, why in (
        ({"dp": 8, "pp": 2}, "with stages"), ({"replicate": 2}, "in groups of replicas"),
        ({"dp": 4, "ep": 4, "model": EXPERTS}, "with experts over devices"), ({"model": "gpt2"}, "with tied embeddings"),
    ):  # fmt: skip
        found = answer(MEGATRON, setup(zero=3, reshard=False, **words))  # type: ignore[arg-type]
        assert found.level == "close" and why in found.sentences[0]
        assert found.runs.point.reshard and "--use-megatron-fsdp" in found.files[SCRIPT]


def test_types_and_optimizers() -> None:
    def recipe(**words: Any) -> Setup:
        own = setup(zero=1)
        return replace(own, problem=replace(own.problem, recipe=replace(own.problem.recipe, **words)))

    assert options(recipe(compute_dtype="float16"))["--fp16"] is True
    assert {"--bf16", "--fp16"}.isdisjoint(options(recipe(compute_dtype="float32")))
    assert options(recipe(grad_dtype="bfloat16"))["--grad-reduce-in-bf16"] is True
    assert options(recipe(state_bytes=4.0))["--exp-avg-dtype"] == "bf16"
    assert options(recipe(optimizer="sgd", state_bytes=0.0))["--sgd-momentum"] == 0.0
    assert options(recipe(matmul_dtype="float8_e4m3fn"))["--fp8-format"] == "e4m3"
    assert answer(MEGATRON, recipe(matmul_dtype="float8_e4m3fn")).level == "close"
    for words in (
        {"optimizer": "muon"},
        {"state_bytes": 2.0},
        {"param_dtype": "bfloat16"},
        {"compute_dtype": "float64"},
    ):
        assert answer(MEGATRON, recipe(**words)).level == "refused", words


def test_options_of_megatron_fsdp_that_the_older_version_does_not_have() -> None:
    own = setup(zero=3)
    assert options(own)["--megatron-fsdp-main-grads-dtype"] == "fp32"
    assert "--megatron-fsdp-main-grads-dtype" not in options(own, "0.16.1")


def test_other_versions_are_named() -> None:
    with pytest.raises(
        InputError, match=r"megatron@0\.18\.0: Megatron-LM is known here as 0\.19\.2, 0\.16\.1; use megatron@0\.16\.1"
    ):
        Megatron("0.18.0")
