"""torchtitan 0.3.0 itself loads what is written, has its degrees, places its stages, and refuses what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import pytest

from export.proof.target import run
from export.test_torchtitan import other, own
from meshwright.export._torchtitan_fields import BASES, FIELDS, RELEASE
from meshwright.export._torchtitan_words import dealt
from meshwright.export.outcome import answer
from meshwright.export.registry import load
from meshwright.export.setup import Setup
from meshwright.plan.schedules import home

pytestmark = pytest.mark.slow
ROWS = (
    "ZeRO 3",
    "tensor + ZeRO 3",
    "pipeline",
    "chunks",
    "schedule zb-h1",
    "schedule zb-v",
    "schedule gpipe",
    "recompute all",
)
DEALT = [list(x) for x in product((1, 5, 8, 32), (1, 2, 3, 4, 8), (0, 1, 2), (0, 1, 2))]


@cache
def setups() -> Mapping[str, Setup]:
    return {words: own("llama-3.1-8b", words) for words in ROWS}


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def refusals() -> list[tuple[str, dict[str, Any], str]]:
    """Name of what we refuse, the same as torchtitan gets it, and its words."""
    exporter = load("torchtitan")
    tensor, pipe = (dict(answer(exporter, setups()[w]).files) for w in ("tensor + ZeRO 3", "pipeline"))
    text, piped = tensor["recipe.py"], pipe["recipe.py"]
    wide = changed(
        text, ("tensor_parallel_degree=4", "tensor_parallel_degree=16"), ("shard_degree=4", "shard_degree=1")
    )
    return [
        ("key-value heads over tp", {"files": {"recipe.py": wide}, "world": 16}, "must divide n_kv_heads"),
        ("degrees and devices", {"files": tensor, "world": 12}, "Invalid parallel dims"),
        (
            "tied embeddings",
            {"files": {"recipe.py": changed(piped, ('"8B"', '"1B"'))}, "world": 16},
            "Weight tying is not supported",
        ),
        (
            "graphs in a pipeline",
            {
                "files": {"recipe.py": changed(piped, ("disable_cuda_graphs = True", "disable_cuda_graphs = False"))},
                "world": 16,
            },
            "CUDA graphs do not support pipeline parallelism",
        ),
        (
            "micro-batches of the local batch",
            {"files": {"recipe.py": changed(piped, ("microbatch_size=1", "microbatch_size=3"))}, "world": 16},
            "must be evenly divisible",
        ),
        (
            "positions beyond the model",
            {"files": {"recipe.py": changed(text, ("seq_len = 64", "seq_len = 1048576"))}, "world": 16},
            "exceeds attention RoPE maximum",
        ),
        (
            "an unknown option",
            {"files": tensor, "world": 16, "options": ["--parallelism.tensor_paralel_degree", "2"]},
            "Unrecognized options",
        ),
    ]


@cache
def answers() -> list[dict[str, Any]]:
    exporter = load("torchtitan")
    taken = [{"files": dict(answer(exporter, s).files), "world": 16} for s in setups().values()]
    taken[0]["dealt"] = DEALT
    found: list[dict[str, Any]] = run(
        "torchtitan", "torchtitan_script.py", {"cases": [*taken, *(case for _, case, _ in refusals())]}
    )
    return found


@pytest.mark.parametrize("words", ROWS)
def test_it_takes_what_is_written(words: str) -> None:
    setup, told = setups()[words], answers()[ROWS.index(words)]
    assert "error" not in told, told["error"]
    p, m = setup.point, setup.layout.micro_batches
    groups = p.dp if p.zero == 0 else p.replicate
    assert told["dims"] == [p.pp, groups, setup.replicas // groups, p.cp, p.tp, p.ep]
    assert told["batch"] == [p.micro_batch * (m if p.pp > 1 else 1), setup.layout.samples, 1, setup.model.seq]
    assert told["policy"] == {"none": None, "full": "FullAC.Config"}[p.recompute]
    if p.pp > 1:
        names = [name for part in told["parts"] for name in part]
        assert names == ["tok_embeddings", *(f"layers.{n}" for n in range(told["layers"])), "norm", "lm_head"]
        assert {name.partition(".")[0] for name in names} == set(told["children"])
        schedule = setup.layout.schedule
        for rank, stages in enumerate(told["stages"]):
            assert sorted(stages) == [s for s in range(setup.stages) if home(schedule, p.pp, s) == rank]


def test_it_refuses_what_is_refused() -> None:
    for (name, _, words), told in zip(refusals(), answers()[len(ROWS) :], strict=True):
        assert words in told.get("error", "nothing"), (name, told)
    exporter = load("torchtitan")
    broken = other(setups()["tensor + ZeRO 3"], tp=16, dp=1)
    assert any("heads that tp 16 divides" in c.broken(broken) for c in exporter.conditions())


def test_layers_are_dealt_as_it_deals_them() -> None:
    for (layers, stages, first, last), theirs in zip(DEALT, answers()[0]["dealt"], strict=True):
        try:
            ours: list[int] | None = list(dealt(layers, stages, first, last))
        except ValueError:
            ours = None
        assert ours == theirs, (layers, stages, first, last)


def test_its_own_recipes_and_defaults_are_what_is_written_down() -> None:
    told = run("torchtitan", "torchtitan_script.py", {"bases": {name: base.module for name, base in BASES.items()}})
    for key, value in told["defaults"].items():
        assert FIELDS[key].default == value, key
        assert RELEASE in FIELDS[key].versions
    missing = set(BASES) - set(told["bases"])
    assert missing <= {"llama3_405b"}, "needs torchao"
    for name, values in told["bases"].items():
        said = {k: f.default for k, f in FIELDS.items() if RELEASE in f.versions} | dict(BASES[name].settings)
        for key, value in values.items():
            if key != "training.steps":
                assert said[key] == value, (name, key)
