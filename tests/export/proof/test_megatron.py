"""Megatron-Core itself takes what is written, with the same groups, stages and order of work, and refuses what is refused."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest

from export.megatron_cases import CONDITIONS, DENSE, EXPERTS, drawn, problem, setup
from export.proof.target import run
from meshwright.errors import InputError
from meshwright.export._megatron_options import known
from meshwright.export._shell import script
from meshwright.export.megatron import SCRIPT, Megatron
from meshwright.export.model import model_of
from meshwright.export.outcome import answer
from meshwright.export.setup import Setup
from meshwright.plan.schedules import rows_of

pytestmark = pytest.mark.slow
MEGATRON = Megatron()
OWN = "--tokenizer-type NullTokenizer --vocab-size 256 --mock-data --train-iters 10 --lr 1e-4 --disable-bias-linear"
"""What a user adds: data, tokenizer, learning rate, and that the models have no biases."""


def request(text: str, world: int, more: str = "") -> dict[str, Any]:
    """A script as it is launched: its options, and the variable that it exports."""
    command = next(c for c in script(text)[0] if any(w.text.endswith(".py") for w in c))
    at = next(k for k, w in enumerate(command) if w.text.endswith(".py"))
    argv = [w.text for w in command[at + 1 :] if w.text != "$@"]
    env = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if re.search(r"^export CUDA_DEVICE", text, re.MULTILINE) else {}
    return {"argv": [*argv, *OWN.split(), *more.split()], "world": world, "env": env}


def given(options: str, world: int = 16) -> dict[str, Any]:
    """Options of a user for the dense model."""
    base = (
        "--num-layers 4 --hidden-size 64 --num-attention-heads 8 --seq-length 32 --max-position-embeddings 32 --bf16 "
    )
    return {"argv": f"{base}{OWN} {options}".split(), "world": world, "env": {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}}


@cache
def plans() -> list[Setup]:
    """Layouts as they run in Megatron, of which something is written."""
    found = [answer(MEGATRON, s, lossy=True) for model in (DENSE, EXPERTS) for s in drawn(model, 20, seed=11)]
    outside = tuple(tuple(4 * d + 2 * r + t for d in range(4) for t in range(2)) for r in range(2))
    more = [
        setup(dp=4, tp=2, pp=2).with_words(devices=outside), setup(dp=2, tp=2, pp=4, counts=(0, 2, 2, 0), sequence=True),
        setup(EXPERTS, dp=2, tp=2, ep=4, sequence=True, whole_experts=True), setup(zero=3, reshard=False),
        setup(dp=8, pp=2, chunks=2, schedule="interleaved", samples=16), setup(dp=8, pp=2, chunks=2, schedule="interleaved"), setup(dp=8, zero=2, cp=2, context="gather", replicate=4),
    ]  # fmt: skip
    return [e.runs for e in (*found, *(answer(MEGATRON, s, lossy=True) for s in more)) if e.files]


@cache
def answers() -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = run(
        "megatron", "megatron_script.py", [request(MEGATRON.files(s)[SCRIPT], s.world) for s in plans()]
    )
    return told


def test_it_takes_all_that_is_written() -> None:
    assert len(plans()) > 24
    for plan, told in zip(plans(), answers(), strict=True):
        assert "error" not in told, (told["error"], MEGATRON.files(plan)[SCRIPT])
        p = plan.point
        assert (told["dp"], told["chunks"], told["sequence"]) == (plan.replicas, p.chunks, p.sequence)
        if plan.stages > 1:
            assert told["layers"] == [[int(s.before), len(s.layers), int(s.after)] for s in plan.shares]
        if p.cp > 1:
            assert told["context"] == {"ulysses": "a2a", "gather": "all_gather"}[p.context]
        assert told["grads_in_fp32"]


def test_its_groups_are_the_axes_of_the_plan() -> None:
    for plan, told in zip(plans(), answers(), strict=True):
        p = plan.point
        grid = np.asarray(plan.layout.devices).reshape([plan.sizes[a] for a in ("pp", "dpr", "dp", "ep", "cp", "tp")])

        def along(*axes: int, grid: np.ndarray = grid) -> list[list[int]]:
            moved = np.moveaxis(grid, axes, range(-len(axes), 0))
            lines = moved.reshape(-1, int(np.prod([grid.shape[a] for a in axes])))
            return sorted(sorted(map(int, line)) for line in lines)

        wanted = {"tp": along(5), "cp": along(4), "dp": along(1, 2, 3), "pp": along(0), "dp-cp": along(1, 2, 3, 4)}
        if p.ep == 1 or p.cp == 1:  # with both it is said to be other devices
            wanted["ep"] = along(3, 5) if p.whole_experts else along(3)
        found = {axis: sorted(sorted(g) for g in told["groups"][axis]) for axis in wanted}
        assert found == wanted


def test_its_order_of_work_is_that_of_the_schedule() -> None:
    seen = set()
    for plan, told in zip(plans(), answers(), strict=True):
        p = plan.point
        if p.pp == 1:
            continue
        seen.add((p.schedule, plan.layout.micro_batches == p.pp))
        rows = rows_of(plan.layout.schedule, plan.stages)
        mine = [[[a.kind, int(a.on) // p.pp, a.micro_batch] for a in row.actions] for row in rows]
        assert mine == told["orders"], (plan.layout.schedule, p.words())
    assert {("1f1b", False), ("interleaved", True), ("interleaved", False)} <= seen


CHECKED = {
    "batch splits": "must be divisible by", "heads": "must be a multiple of tensor_model_parallel_size",
    "query groups": "must be a multiple", "positions over context": "should be a multiple of 2 * context-parallel-size",
    "experts": "Number of experts should be a multiple", "ranks of interleaved": "should be greater than 1",
}  # fmt: skip
"""Conditions that its argument check knows; the others are those of running layers and kernels, for which it wants GPUs."""


def test_it_refuses_what_is_refused() -> None:
    def forced(name: str) -> Setup:
        found = CONDITIONS[name][1]
        return found.with_words(zero=0) if name == "heads" else found

    cases = [request(MEGATRON.files(forced(name))[SCRIPT], forced(name).world) for name in CHECKED]
    for (name, words), told in zip(CHECKED.items(), run("megatron", "megatron_script.py", cases), strict=True):
        assert words in told.get("error", "accepted"), (name, told)


def test_replicas_outside_of_stages_take_no_context_and_no_experts() -> None:
    """Groups of replicas of dense layers and of experts must be the same ranks then."""
    texts = {
        "context": "--pipeline-model-parallel-size 2 --context-parallel-size 2",
        "experts": "--pipeline-model-parallel-size 2 --num-experts 8 --expert-model-parallel-size 2",
        "neither": "--pipeline-model-parallel-size 2 --tensor-model-parallel-size 2",
    }
    base = "--micro-batch-size 1 --global-batch-size 16 --use-tp-pp-dp-mapping "
    cases = [given(base + text) for text in texts.values()]
    told = dict(zip(texts, run("megatron", "megatron_script.py", cases), strict=True))
    for name in ("context", "experts"):
        assert "the data parallel size of the attention and moe layers must be the same" in told[name]["error"]
        model = EXPERTS if name == "experts" else DENSE
        with pytest.raises(InputError, match="takes neither context parallelism nor experts"):
            MEGATRON.read({"a.sh": base + texts[name]}, model_of(problem(model).graph), 16)
    assert "error" not in told["neither"]


DEALT = (
    "--pipeline-model-parallel-size 2", "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
    "--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 3",
    "--pipeline-model-parallel-size 2 --decoder-last-pipeline-num-layers 1",
    "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 1 --decoder-last-pipeline-num-layers 1",
    "--pipeline-model-parallel-size 3 --decoder-first-pipeline-num-layers 2",
    "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --decoder-first-pipeline-num-layers 2",
    "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --decoder-first-pipeline-num-layers 3",
    "--pipeline-model-parallel-size 3 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
    "--pipeline-model-parallel-size 2 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split "
    "--num-layers-per-virtual-pipeline-stage 1",
    "--pipeline-model-parallel-size 5 --account-for-embedding-in-pipeline-split",
    "--pipeline-model-parallel-size 4 --account-for-embedding-in-pipeline-split",
    "--pipeline-model-parallel-size 3", "--pipeline-model-parallel-size 8",
    "--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 4",
)  # fmt: skip


def test_layers_are_dealt_as_it_deals_them() -> None:
    """Where no layout says what a stage holds: the same counts, and refused where it refuses."""
    worlds = [60 if "size 3" in o or "size 5" in o else 16 for o in DEALT]
    base = "--micro-batch-size 1 --global-batch-size 240 "
    told = run("megatron", "megatron_script.py", [given(base + o, w) for o, w in zip(DEALT, worlds, strict=True)])
    for options, world, found in zip(DEALT, worlds, told, strict=True):
        try:
            read = MEGATRON.read({"a.sh": base + options}, model_of(problem(DENSE).graph), world)
        except InputError as error:
            assert "error" in found, (options, str(error), found)
            continue
        assert "error" not in found, (options, found)
        assert list(read.words["counts"]) == found["counts"], options


def test_the_list_of_options_is_its_own() -> None:
    (told,) = run("megatron", "megatron_script.py", [{"options": True}])
    kinds = {"_StoreTrueAction": "true", "_StoreFalseAction": "false"}
    theirs = {}
    for name, nargs, field, kind in told:
        takes = kinds.get(kind) or {None: "1", "+": "+", "*": "+", 3: "3"}.get(nargs, "")
        if kind == "BooleanOptionalAction":
            takes = "false" if name.startswith("--no-") else "true"
        if name.startswith("--") and name != "--help":
            theirs[name] = (takes, field)
    mine = {name: (o.takes, o.field) for name, o in known()[0].items() if not o.gone}
    assert mine == theirs


LAYOUTS = ("Et*2|tt|L", "E||t*4|L", "(t|)*2ttL", "Ett|tt", "Ett|tL", "Ett|ttxL", "E(t|)*3tL", "tEtt|tL", "Ett|ttLL")


@pytest.mark.parametrize("environment", ["megatron", "megatron-0.16"])
def test_layout_strings_are_parsed_as_it_parses_them(environment: str) -> None:
    from meshwright.export._megatron_layout import counts, parts

    told = run(
        environment,
        "megatron_script.py",
        [{"layout": t, "pp": len(t.split("|")) if "(" not in t else 1, "layers": 4} for t in LAYOUTS],
    )
    for text, found in zip(LAYOUTS, told, strict=True):
        try:
            mine = counts(text, 4)
        except ValueError:
            assert "error" in found, (text, found)
            continue
        assert found["layers"] == [[p.count(c) for c in "EtL"] for p in parts(text)]
        assert list(mine) == [n for _, n, _ in found["layers"]]
    written = [s for s in plans() if s.stages > 1]
    cases = [{"layout": string_of(s), "pp": s.point.pp, "layers": 4} for s in written]
    for plan, found in zip(written, run(environment, "megatron_script.py", cases), strict=True):
        assert found["layers"] == [[int(s.before), len(s.layers), int(s.after)] for s in plan.shares]


def string_of(plan: Setup) -> str:
    return next(s.options["--pipeline-model-parallel-layout"] for s in MEGATRON.said(plan) if s.word == "stages")  # type: ignore[no-any-return]
