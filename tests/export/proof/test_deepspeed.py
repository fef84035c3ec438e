"""DeepSpeed's own code takes what is written, deals stages and orders micro-batches as said, and refuses what is refused."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from export.drawn import drawn, of_row, other, written
from export.proof.target import run
from meshwright.export._deepspeed_conditions import CONDITIONS, expert_ranks
from meshwright.export._deepspeed_stages import balanced, uniform
from meshwright.export._sides import sides_of
from meshwright.export.deepspeed import CODE, CONFIG, DeepSpeed
from meshwright.export.outcome import Exported
from meshwright.export.rows import ROWS
from meshwright.export.setup import Setup
from meshwright.plan.model import Schedule
from meshwright.plan.schedules import rows_of

pytestmark = pytest.mark.slow
TARGET = DeepSpeed()


def ask(asked: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    found = run("deepspeed", "deepspeed_script.py", asked, {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"})
    assert isinstance(found, list)
    return found


def question(setup: Setup, config: dict[str, Any]) -> dict[str, Any]:
    weights = [t.name for t in setup.problem.graph.tensors if t.role == "param"]
    return {
        "config": config, "world": setup.world, "replicas": setup.replicas, "pp": setup.point.pp, "weights": weights,
        "sequence": setup.point.cp > 1,
    }  # fmt: skip


@cache
def exports() -> dict[str, Exported]:
    """Of every row, and of setups drawn by seed."""
    setups = {row.words: of_row(row.words) for row in ROWS}
    setups |= {f"drawn {n}": s for n, s in enumerate(drawn("ZeRO 1", 24, seed=5))}
    setups |= {f"drawn experts {n}": s for n, s in enumerate(drawn("experts", 24, seed=6))}
    found = {name: written(TARGET, setup) for name, setup in setups.items()}
    return {name: e for name, e in found.items() if e.files}


def test_its_configuration_takes_what_is_written() -> None:
    told = ask([("configuration", question(e.runs, json.loads(e.files[CONFIG]))) for e in exports().values()])
    for (name, exported), answer in zip(exports().items(), told, strict=True):
        setup, p = exported.runs, exported.runs.point
        assert "error" not in answer, (name, answer["error"])
        found = answer["answer"]
        assert (found["batch"], found["micro_batch"], found["steps"]) == (
            setup.layout.samples,
            p.micro_batch,
            setup.layout.micro_batches,
        )
        assert (found["stage"], found["tp"], found["ep"]) == (p.zero, p.tp, expert_ranks(setup)), name
        assert found["sums"] == "torch.float32"
        assert found["bf16"] == (p.zero > 0)
        assert found["autocast"] == ("" if p.zero else "torch.bfloat16")
        # without ZeRO the optimizer is taken as it is, which sums in float32; its other ways divide state or sum in bfloat16
        assert (found["wrapper"] == "None") == (p.zero == 0), name
        if p.zero:
            assert found["overlap"] is True
        if p.zero == 3:
            assert found["persistence"] == 0
            assert (found["reuse"] == 0) == p.reshard
        wanted = {s.module: "row" if s.row else "column" for s in sides_of(setup)} if p.tp > 1 else {}
        sides = {
            re.sub(r"\.\d+(?=\.)", ".*", n.removesuffix(".weight")): side for n, side in found["sides"].items() if side
        }
        assert sides == wanted, name
        if p.pp > 1:
            assert found["pipeline"]["activation_checkpoint_interval"] == int(p.recompute == "full")


def test_bfloat16_without_zero_could_not_sum_in_float32() -> None:
    setup = of_row("data parallelism")
    config = json.loads(written(TARGET, setup).files[CONFIG])
    config["bf16"]["enabled"] = True
    del config["torch_autocast"]
    (answer,) = ask([("configuration", question(setup, config))])
    assert answer["error"].startswith("NotImplementedError: unsupported mix of model_dtype=torch.bfloat16")


def test_stages_are_dealt_by_its_arithmetic() -> None:
    rng = random.Random(3)
    cases: list[tuple[tuple[int, ...], int, bool]] = []
    for _ in range(400):
        n, most = rng.randint(1, 40), rng.choice([1, 3, 1000])
        cases.append((tuple(rng.randint(0, most) for _ in range(n)), rng.randint(1, 12), rng.random() < 0.8))
    told = ask([("stages", {"weights": w, "stages": s, "balanced": b}) for w, s, b in cases])
    for (weights, stages, by_weight), answer in zip(cases, told, strict=True):
        mine = balanced(weights, stages) if by_weight else uniform(len(weights), stages)
        assert list(mine) == answer["answer"], (weights, stages)


def test_its_1f1b_is_ours() -> None:
    sizes = [(2, 2), (2, 7), (3, 3), (4, 4), (4, 9), (5, 2), (8, 16)]
    told = ask([("order", {"stages": s, "micro_batches": m}) for s, m in sizes])
    for (stages, m), answer in zip(sizes, told, strict=True):
        rows = rows_of(Schedule("1f1b", m), stages)
        mine = [[[a.kind, a.micro_batch] for a in row.actions if a.kind in ("F", "B")] for row in rows]
        assert mine == answer["answer"], (stages, m)


def test_heads_and_experts_are_refused_as_it_refuses_them() -> None:
    heads = next(c for c in CONDITIONS if c.name == "Ulysses heads")
    base = of_row("context, by heads")
    cases = [(h, kv, cp) for h in (4, 6, 8, 12, 32) for kv in (1, 2, 3, 4, 8) if h % kv == 0 for cp in (2, 3, 4, 8)]
    told = ask([("ulysses", {"heads": h, "kv_heads": kv, "ranks": cp}) for h, kv, cp in cases])
    for (h, kv, cp), answer in zip(cases, told, strict=True):
        mine = heads.broken(other(base, dp=1, cp=cp, facts={"heads": h, "kv_heads": kv}))
        assert bool(mine) == ("error" in answer), (h, kv, cp, mine, answer)
    split = next(c for c in CONDITIONS if c.name == "experts split")
    of_experts = of_row("experts")
    pairs = [(experts, ranks) for experts in (4, 6, 8, 60, 256) for ranks in (2, 3, 4, 8)]
    told = ask([("experts", {"experts": experts, "ranks": ranks}) for experts, ranks in pairs])
    for (experts, ranks), answer in zip(pairs, told, strict=True):
        mine = split.broken(other(of_experts, dp=1, ep=ranks, facts={"experts": experts}))
        assert bool(mine) == ("error" in answer), (experts, ranks, mine, answer)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"train_batch_size": 100}, "train_batch_size is not equal to micro_batch_per_gpu"),
    "removed": ({"amp": {"enabled": True}}, "has been removed"),
    "removed inside": ({"zero_optimization": {"stage": 3, "mics_shard_size": 8}}, "has been removed"),
    "unknown inside": ({"zero_optimization": {"stge": 3}}, "stge"),
    "stage": ({"zero_optimization": {"stage": 4}}, "stage"),
    "experts cut inside": (
        {"expert_parallel": {"enabled": True, "autoep_size": 4, "expert_tensor_parallel_size": 2}},
        "expert_tensor_parallel_size=2",
    ),
    "experts over a part": ({"expert_parallel": {"enabled": True, "autoep_size": 3}}, "must divide the stage size"),
}


def test_it_refuses_what_is_refused() -> None:
    setup = of_row("ZeRO 1")
    config = json.loads(written(TARGET, setup).files[CONFIG])
    told = ask([("configuration", question(setup, {**config, **change})) for change, _ in WRONG.values()])
    for (name, (_, words)), answer in zip(WRONG.items(), told, strict=True):
        assert words in " ".join(answer.get("error", "accepted").split()), (name, answer)


def test_the_code_that_is_written_finds_what_it_imports(tmp_path: Path) -> None:
    found = {
        "pipeline + ZeRO 1": "After,Before,CONFIG,pipeline",
        "context, by heads": "CONFIG,ulysses",
        "recompute all": "CONFIG,recompute",
    }
    asked = []
    for row in found:
        files = written(TARGET, of_row(row)).files
        folder = tmp_path / row.replace(" ", "_")
        folder.mkdir()
        (folder / CONFIG).write_text(files[CONFIG], encoding="utf-8")
        asked.append(("code", {"file": str(folder / CODE), "text": files[CODE]}))
    tied = other(of_row("pipeline"), facts={"tied": True})
    asked.append(("code", {"file": asked[0][1]["file"], "text": TARGET.files(tied)[CODE]}))
    told = ask(asked)
    assert [a.get("answer", a.get("error")) for a in told] == [*found.values(), found["pipeline + ZeRO 1"]]
