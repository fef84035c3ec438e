"""Training under a plan is training on one process; checkpoints go on under any other plan; a dead rank ends the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.optim.lr_scheduler import CosineAnnealingLR

from execute.layouts import Layout, plan_of
from execute.tiny import CONFIG, MICRO_BATCHES, RULE, SAMPLES, SEQ, losses_here, tiny_graph, tiny_source
from meshwright.errors import InputError
from meshwright.execute import StepReport, train
from meshwright.graph.ir import Graph
from meshwright.graph.source import ModelSource, resolve


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    yield tiny_source(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def graph(source: ModelSource) -> Graph:
    return tiny_graph(source)


def _losses(graph: Graph, source: ModelSource, layout: Layout, steps: int, **options: object) -> list[StepReport]:
    plan = plan_of(graph, layout, MICRO_BATCHES)
    return list(train(plan, source, steps=steps, seq=SEQ, optimizer=RULE, **options).steps)  # type: ignore[arg-type]


def test_the_loss_falls_as_it_does_on_one_process(graph: Graph, source: ModelSource) -> None:
    """With a scheduler and clipped gradients; and every rank says where its time went."""
    plan, rates = plan_of(graph, Layout(tp=2, pp=2), MICRO_BATCHES), partial(CosineAnnealingLR, T_max=20)
    result = train(plan, source, steps=12, seq=SEQ, optimizer=RULE, scheduler=rates, clip=0.5, reference=True)
    for r in result.steps:
        assert r.reference is not None
        assert abs(r.loss - r.reference) <= 1e-4 * r.reference
        assert len(r.seconds) == 4
    assert result.steps[-1].loss < result.steps[0].loss - 0.3
    for rank, spent in enumerate(result.spent):
        own = sum(r.seconds[rank] for r in result.steps[1:])
        assert spent["step"] == pytest.approx(own)
        assert {"forward", "backward", "update", "send"} <= spent.keys()
        assert 0.5 * own < sum(s for name, s in spent.items() if name != "step") <= own
    assert len(result.spent) == 4


def test_a_checkpoint_goes_on_under_another_plan_with_the_same_next_losses(
    graph: Graph, source: ModelSource, tmp_path: Path
) -> None:
    whole = losses_here(source, 4)
    _losses(graph, source, Layout(dp=2, zero=1), 2, folder=tmp_path / "a")
    last = _losses(graph, source, Layout(pp=2), 2, folder=tmp_path / "c", resume=tmp_path / "a" / "step-2")
    assert {r.step: r.loss for r in last} == {k: pytest.approx(whole[k], rel=2e-6) for k in (3, 4)}
    # the names are those of the user's module, the values whole: torch alone reads it
    real, _ = source.build(SAMPLES, SEQ, "float32", device="cpu", attention="eager")
    state = {name: torch.full_like(p, float("nan")) for name, p in real.named_parameters()}
    load_state(state, checkpoint_id=str(tmp_path / "c" / "step-4"), no_dist=True)
    assert all(bool(torch.isfinite(x).all()) for x in state.values())


def test_a_checkpoint_of_another_model_is_refused_in_one_sentence(
    graph: Graph, source: ModelSource, tmp_path: Path
) -> None:
    _losses(graph, source, Layout(), 1, folder=tmp_path)
    other = tmp_path / "config.json"
    other.write_text(json.dumps({**CONFIG, "intermediate_size": 64}))
    wider = resolve(str(other))
    plan = plan_of(wider.graph(SAMPLES, SEQ, "float32", cache=False), Layout(), MICRO_BATCHES)
    held = r"step-1: written for another model: model\.layers\.0\.mlp\.gate_proj\.weight has shape \(48, 32\) there, not \(64, 32\)$"
    with pytest.raises(InputError, match=held):
        train(plan, wider, steps=1, seq=SEQ, resume=tmp_path / "step-1")
    with pytest.raises(
        InputError, match=r"none: no whole checkpoint: a folder that a run wrote holds meshwright\.json$"
    ):
        _losses(graph, source, Layout(), 1, resume=tmp_path / "none")


SCRIPT = """
import sys
from execute.layouts import Layout, plan_of
from execute.tiny import CONFIG, MICRO_BATCHES, RULE, SAMPLES, SEQ, losses_here, tiny_graph, tiny_source
from meshwright.execute import AdamW, train
from meshwright.graph.source import resolve
source = resolve(sys.argv[1])
plan = plan_of(source.graph(4, 32, "float32", cache=False), Layout(tp=2), 2)
train(plan, source, steps=2, seq=32, optimizer=AdamW(lr=5e-3), on_step=lambda r: print("LOSS", r.step, r.loss, flush=True))
"""


@pytest.mark.slow
def test_the_same_run_works_under_torchrun(graph: Graph, source: ModelSource, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1",
        "MESHWRIGHT_DEVICE": "cpu",
    }  # fmt: skip
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(script),
            source.spec,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line.split() for line in done.stdout.splitlines() if line.startswith("LOSS")]
    alone = _losses(graph, source, Layout(), 2)
    assert [int(words[1]) for words in said] == [1, 2]
    assert [float(words[2]) for words in said] == pytest.approx([r.loss for r in alone], rel=1e-5)
