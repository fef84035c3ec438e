"""What one plan saves, every other plan goes on from: the next losses are those of the run that was never interrupted."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from execute.checkpoint_jobs import Course, Outcome
from execute.conftest import Pools
from execute.layouts import Layout, plan_of
from execute.unlike import ALL, DEALT, DP1_DP2, DP2_DP1, TP2_DP2, WEIGHTED, Unlike
from meshwright.errors import ExecutionError, InputError, Unsupported
from meshwright.execute.ops.params import Values
from meshwright.execute.proof.verification import constants_of
from meshwright.execute.ranks.mesh_groups import Groups
from meshwright.execute.saved import checkpoint, folders
from meshwright.execute.saved.export import export_safetensors
from meshwright.execute.saved.pretrained import Given
from meshwright.execute.saved.weights import Weights
from meshwright.execute.step.optimizer import SGD, AdamW, MakeOptimizer
from meshwright.execute.step.runtime import MicroBatch
from meshwright.execute.training.one_process import OneProcess
from meshwright.execute.training.trainer import MakeScheduler, Setup, Trainer
from meshwright.graph.ir import Graph
from meshwright.graph.source import resolve
from meshwright.graph.zoo import Shrink
from meshwright.lower import lower, unrolled
from meshwright.plan import serial
from meshwright.plan.problem import Recipe

SAMPLES, MICRO_BATCHES, SEED = 4, 2, 11
AT, AFTER = 2, 3
"""Steps before the save, and after it."""
ADAMW: MakeOptimizer = AdamW(lr=1e-2, weight_decay=0.1)
COSINE: MakeScheduler = partial(CosineAnnealingLR, T_max=6)
LAYOUTS = (
    Layout(),
    Layout(dp=2),
    Layout(tp=2),
    Layout(pp=2),
    Layout(dp=2, zero=1),
    Layout(tp=2, sequence=True),
    Layout(dp=2, zero=3),
    Layout(pp=2, chunks=2, schedule="interleaved"),
    Layout(dp=2, tp=2, zero=1),
    Layout(dp=2, zero=2),
    Layout(dp=2, pp=2, zero=1),
    Layout(tp=2, pp=2),
    Layout(dp=4, zero=3),
)
UNEVEN = (Layout(dp=3, zero=3), Layout(tp=3), Layout(dp=3, zero=1))
"""4 samples and 2 heads do not cut into 3."""


@cache
def _model(dropout: float, dtype: str) -> tuple[Graph, nn.Module, tuple[tuple[MicroBatch, ...], ...]]:
    """GPT-2: weights tied over stages, and fused ones that tp cuts inside; with the batches of all steps."""
    shrink = Shrink(blocks=4, width=16, heads=2, kv_heads=2, ffn=40, vocab=33, seq=6, dropout=dropout)
    source = resolve("gpt2")
    graph = source.graph(SAMPLES, 6, dtype, cache=False, shrink=shrink)
    real, _ = source.build(SAMPLES, 6, dtype, device="cpu", shrink=shrink, attention="eager")
    generator = torch.Generator().manual_seed(3)
    batches = tuple(
        tuple(source.random_inputs(SAMPLES, 6, generator, shrink=shrink) for _ in range(MICRO_BATCHES))
        for _ in range(AT + AFTER)
    )
    return graph, real, batches


def _setup(
    layout: Layout | Unlike,
    dropout: float = 0.1,
    dtype: str = "float32",
    optimizer: MakeOptimizer = ADAMW,
    scheduler: MakeScheduler | None = COSINE,
    seed: int = SEED,
) -> Setup:
    graph, real, _ = _model(dropout, dtype)
    unlike = isinstance(layout, Unlike)
    plan = layout.plan(graph, MICRO_BATCHES) if unlike else plan_of(graph, layout, MICRO_BATCHES)
    program = unrolled(lower(graph, plan, Recipe(plan.samples, compute_dtype=dtype)), graph)
    return Setup(program, graph, plan, Values(seed, "uneven"), constants_of(graph, real), optimizer, seed, scheduler)


def _batches(
    setup: Setup, first: int, dropout: float = 0.1, dtype: str = "float32"
) -> dict[int, tuple[MicroBatch, ...]]:
    return {k: b for k, b in enumerate(_model(dropout, dtype)[2]) if k >= first}


class Saved:
    """Runs that save and go on, one a layout and kind, each made once."""

    def __init__(self, pools: Pools, folder: Path) -> None:
        self.pools, self.folder = pools, folder
        self._made: dict[str, tuple[Path, dict[int, float], list[Outcome]]] = {}

    def __call__(self, layout: Layout | Unlike, **kind: object) -> tuple[Path, dict[int, float], list[Outcome]]:
        """(checkpoint, losses of the whole run, what the ranks said)."""
        name = " ".join([str(layout), *map(str, kind.values())])
        if name not in self._made:
            setup = _setup(layout, **kind)  # type: ignore[arg-type]
            folder = self.folder / str(len(self._made))
            batches = _batches(setup, 0, **_samples(kind))  # type: ignore[arg-type]
            outcomes = self.run(layout, Course(setup, batches, save={AT: folder}))
            self._made[name] = folder, _losses(outcomes), outcomes
        return self._made[name]

    def resumed(self, layout: Layout | Unlike, folder: Path, **kind: object) -> list[Outcome]:
        setup = _setup(layout, **kind)  # type: ignore[arg-type]
        batches = _batches(setup, AT, **_samples(kind))  # type: ignore[arg-type]
        return self.run(layout, Course(setup, batches, resume=folder))

    def run(self, layout: Layout | Unlike, course: Course) -> list[Outcome]:
        return self.pools(layout.ranks).run("execute.checkpoint_jobs:followed", course)


def _samples(kind: dict[str, object]) -> dict[str, object]:
    return {k: v for k, v in kind.items() if k in ("dropout", "dtype")}


def _losses(outcomes: list[Outcome]) -> dict[int, float]:
    return next(o.losses for o in outcomes if o.losses)


@pytest.fixture(scope="module")
def saved(pools: Pools, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(pools, tmp_path_factory.mktemp("saved"))


def _goes_on(
    saved: Saved, before: Layout | Unlike, after: Layout | Unlike, tolerance: float = 1e-5, **kind: object
) -> None:
    folder, whole, _ = saved(before, **kind)
    losses = _losses(saved.resumed(after, folder, **kind))
    assert sorted(losses) == list(range(AT, AT + AFTER))
    for step, loss in losses.items():
        assert loss == pytest.approx(whole[step], rel=tolerance, abs=0), f"{before} -> {after}, step {step}"


RING = list(zip(LAYOUTS, (*LAYOUTS[1:], LAYOUTS[0]), strict=True))
QUICK = RING[::3]
PAIRS = [(a, b) for a in (*LAYOUTS, *UNEVEN) for b in (*LAYOUTS, *UNEVEN) if (a, b) not in QUICK]


@pytest.mark.parametrize(("before", "after"), QUICK, ids=str)
def test_the_next_three_losses_are_those_of_the_run_without_a_break(
    saved: Saved, before: Layout, after: Layout
) -> None:
    _goes_on(saved, before, after)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), PAIRS, ids=str)
def test_any_plan_goes_on_from_any_other(saved: Saved, before: Layout, after: Layout) -> None:
    _goes_on(saved, before, after)


UNLIKE = [
    (DP2_DP1, Layout()), (Layout(dp=2, zero=3), DP2_DP1), (DP1_DP2, TP2_DP2), (DEALT, DP1_DP2), (Layout(pp=2), DEALT),
    (WEIGHTED, Layout(tp=2)), (TP2_DP2, DP2_DP1), (Layout(), WEIGHTED),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), UNLIKE, ids=str)
def test_stages_of_unequal_replicas_go_on_from_each_other(
    saved: Saved, before: Layout | Unlike, after: Layout | Unlike
) -> None:
    _goes_on(saved, before, after)


@pytest.mark.slow
@pytest.mark.parametrize("before", [*ALL, Layout(), Layout(dp=2, tp=2, zero=1)], ids=str)
@pytest.mark.parametrize("after", ALL, ids=str)
def test_any_plan_of_unequal_replicas_goes_on_from_any_other(
    saved: Saved, before: Layout | Unlike, after: Unlike
) -> None:
    _goes_on(saved, before, after)


SLOW_FOUR = pytest.param(Layout(tp=2, pp=2), marks=pytest.mark.slow)
MOMENTUM: MakeOptimizer = SGD(0.05, momentum=0.9, nesterov=True)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [MOMENTUM, SGD(0.1), torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam])
@pytest.mark.parametrize(("before", "after"), [RING[1], RING[8]], ids=str)
def test_any_optimizer_of_torch_goes_on(saved: Saved, before: Layout, after: Layout, optimizer: MakeOptimizer) -> None:
    _goes_on(saved, before, after, optimizer=optimizer, scheduler=None)


@pytest.mark.parametrize("left_out", ["moments", "scheduler", "seed", "step"])
def test_each_thing_that_is_saved_is_needed(saved: Saved, tmp_path: Path, left_out: str) -> None:
    """The comparison above would notice."""
    folder, whole, _ = saved(Layout(dp=2))
    shutil.copytree(folder, tmp_path / "c")
    setup, layout = _setup(Layout(), seed=SEED + (left_out == "seed")), Layout()
    about = json.loads((tmp_path / "c" / "meshwright.json").read_text())
    training = torch.load(tmp_path / "c" / "training.pt", weights_only=True)
    if left_out == "moments":
        about["optimizer"] = "Forgetful"
        setup = replace(setup, optimizer=Forgetful())
    elif left_out == "scheduler":
        training["scheduler"]["last_epoch"] = 0
        training["groups"][0]["lr"] = training["groups"][0]["initial_lr"]
    elif left_out == "step":
        about["step"] = 0
    (tmp_path / "c" / "meshwright.json").write_text(json.dumps(about))
    torch.save(training, tmp_path / "c" / "training.pt")
    losses = _losses(saved.run(layout, Course(setup, _batches(setup, AT), resume=tmp_path / "c")))
    assert any(abs(losses[k] - whole[k]) > 1e-4 * whole[k] for k in losses)


class Forgetful:
    """Makes an AdamW that is not told what it remembered."""

    def __call__(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = type("Forgetful", (torch.optim.AdamW,), {})(params, lr=1e-2, weight_decay=0.1)
        made.state = _NoState()
        return made


class _NoState(dict):  # type: ignore[type-arg]
    def update(self, *_: object, **__: object) -> None:
        """Forgets."""

    def __missing__(self, key: object) -> dict[str, object]:
        self[key] = {}
        return self[key]  # type: ignore[no-any-return]


def test_the_rate_goes_on_along_its_schedule_and_generators_where_they_stood(saved: Saved) -> None:
    folder, _, before = saved(Layout(dp=2))
    again = saved.resumed(Layout(tp=2), folder)
    for one, other in zip(before, again, strict=True):
        assert torch.equal(one.drawn, other.drawn)
        assert other.rates == pytest.approx(one.rates[AT:])
    assert not torch.equal(again[0].drawn, again[1].drawn)
    assert len(set(before[0].rates)) == AT + AFTER
    more = saved.resumed(Layout(dp=4, zero=3), folder)
    assert torch.equal(more[0].drawn, again[0].drawn)
    assert len({tuple(o.drawn.tolist()) for o in more}) == 4


@pytest.mark.parametrize("after", [Layout(dp=2, zero=3), SLOW_FOUR], ids=str)
def test_masters_are_whole_and_bf16_weights_their_rounding(saved: Saved, pools: Pools, after: Layout) -> None:
    """Under another plan bit by bit what was saved; so under the same plan the next losses are the same bits."""
    kind: dict[str, object] = {"dropout": 0.1, "dtype": "bfloat16"}
    before = Layout(dp=2, zero=1)
    folder, losses, _ = saved(before, **kind)
    graph, _, _ = _model(0.1, "bfloat16")
    whole = load_file(export_safetensors(folder, saved.folder / "bf16.safetensors"))
    assert whole.keys() == {p.name for p in graph.params()}
    assert any(not torch.equal(w.bfloat16().float(), w) for w in whole.values())
    payload = (_setup(after, **kind), folder, whole)  # type: ignore[arg-type]
    assert pools(after.ranks).run("execute.checkpoint_jobs:unequal_parts", payload) == [[]] * after.ranks
    same = _losses(saved.resumed(before, folder, **kind))
    assert same == {k: v for k, v in losses.items() if k >= AT}
    _goes_on(saved, before, after, tolerance=1e-2, **kind)


def test_one_process_goes_on_with_the_users_own_module(saved: Saved) -> None:
    for layout in (Layout(dp=2, zero=1), Layout(tp=2, pp=2)):
        folder, whole, _ = saved(layout, dropout=0.0)
        graph, real, batches = _model(0.0, "float32")
        one = OneProcess(graph, real, Values(SEED + 1), ADAMW, COSINE)
        found = one.resume(folder)
        assert (found.step, found.seed, found.ranks) == (AT, SEED, layout.ranks)
        for step in range(AT, AT + AFTER):
            assert one.step(batches[step]) == pytest.approx(whole[step], rel=1e-5)


def test_a_checkpoint_says_what_wrote_it_and_where_the_data_was(saved: Saved) -> None:
    folder, _, _ = saved(Layout(dp=2))
    about = checkpoint.info(folder)
    assert (about.step, about.seed, about.ranks, about.optimizer) == (AT, SEED, 2, "AdamW")
    assert about.data["document"] == 7 and int(about.data["offset"]) == AT - 1
    assert serial.load(folder / "plan.json") == _setup(Layout(dp=2)).plan


@pytest.mark.parametrize("out", [Layout(dp=2, zero=3), SLOW_FOUR], ids=str)
def test_weights_go_out_as_one_file_and_into_any_plan(saved: Saved, tmp_path: Path, out: Layout) -> None:
    _, real, batches = _model(0.1, "float32")
    file, folder = tmp_path / "weights.safetensors", tmp_path / "c"
    setup = _setup(out)
    saved.run(out, Course(setup, _batches(setup, 0), export=file, save={AT + AFTER: folder}))
    whole = load_file(file)
    again = load_file(export_safetensors(folder, tmp_path / "again.safetensors"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[n], again[n]) for n in whole)
    held = real.state_dict()
    assert all(held[name].shape == x.shape for name, x in whole.items())
    missing = real.load_state_dict(whole, strict=False)
    buffers = set(dict(real.named_buffers()))
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"} | buffers
    first, names = {0: batches[0]}, {name: name for name in whole}
    found = [
        _losses(saved.run(into, Course(replace(_setup(into), values=values), first)))
        for into in (Layout(), Layout(tp=2))
        for values in (Values(SEED, given=whole), Given(SEED, {}, Weights.open(file), names))
    ]
    assert all(losses == {0: pytest.approx(found[0][0], rel=1e-6)} for losses in found)
    narrow = export_safetensors(folder, tmp_path / "half.safetensors", torch.bfloat16)
    assert all(torch.equal(x, whole[name].bfloat16()) for name, x in load_file(narrow).items())
    assert {p.name for p in tmp_path.iterdir() if p.suffix == ".part"} == set()


def test_what_cannot_go_on_is_refused_in_one_sentence(saved: Saved, pools: Pools, tmp_path: Path) -> None:
    folder, _, _ = saved(Layout(dp=2))
    graph, real, _ = _model(0.1, "float32")

    def resume(place: Path, optimizer: MakeOptimizer = ADAMW, scheduler: MakeScheduler | None = COSINE) -> None:
        OneProcess(graph, real, Values(0), optimizer, scheduler).resume(place)

    with pytest.raises(InputError, match=r"written by AdamW, whose state SGD cannot go on from$"):
        resume(folder, SGD())
    with pytest.raises(InputError, match=r"its optimizer had 1 groups of parameters, this one has 2$"):
        resume(folder, lambda ps: torch.optim.AdamW([{"params": ps[:1]}, {"params": ps[1:]}]))
    with pytest.raises(InputError, match=r"scheduler CosineAnnealingLR: give the same one to go on$"):
        resume(folder, scheduler=None)
    with pytest.raises(InputError, match=r"CosineAnnealingLR, whose state ExponentialLR cannot go on from$"):
        resume(folder, scheduler=partial(ExponentialLR, gamma=0.5))
    shutil.copytree(folder, tmp_path / "cut")
    file = next((tmp_path / "cut").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cut: damaged: "):
        resume(tmp_path / "cut")
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"cut: damaged: \w+"):
        resume(tmp_path / "cut")
    (tmp_path / "cut" / "training.pt").write_bytes(b"no")
    with pytest.raises(InputError, match=r"training\.pt: damaged: "):
        resume(tmp_path / "cut")
    seal = tmp_path / "cut" / "meshwright.json"
    seal.write_text(seal.read_text()[:40])
    with pytest.raises(InputError, match=r"cut/meshwright\.json: damaged: not the facts"):
        resume(tmp_path / "cut")
    more = nn.ModuleDict({"more": nn.Linear(2, 2)})
    rule = torch.optim.AdamW(more.parameters())
    with pytest.raises(InputError, match=r"written for another model: it holds no more\.weight$"):
        checkpoint.load_module(more, rule, folder, ["more.weight"], COSINE(rule))
    plain, _, _ = saved(Layout(), optimizer=MOMENTUM, scheduler=None)
    with pytest.raises(InputError, match=r"written without a learning-rate scheduler$"):
        resume(plain, MOMENTUM, partial(LambdaLR, lr_lambda=lambda step: 1.0))


class Rows(torch.optim.SGD):
    """Keeps one number a row."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["rows"] = p.detach().flatten(1).sum(1) if p.dim() > 1 else torch.zeros(5)


def test_an_optimizer_whose_memory_no_plan_can_cut_is_refused(pools: Pools, tmp_path: Path) -> None:
    setup = _setup(Layout(), optimizer=partial(Rows, lr=0.1), scheduler=None)
    course = Course(setup, _batches(setup, AT + AFTER - 1), save={AT + AFTER: tmp_path / "c"})
    text = r"^Rows keeps a tensor of shape \(.*\) as rows of .*: what can be saved under a plan is one number, or one an element$"
    with pytest.raises(Unsupported, match=text):
        pools(1).run("execute.checkpoint_jobs:followed", course)
    assert not (tmp_path / "c").exists()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is what the weights were when it was asked for; its folder appears when it is complete."""
    _, _, batches = _model(0.1, "float32")
    trainer, may_write, written = Trainer(_setup(Layout()), 0, Groups()), threading.Event(), checkpoint.write

    def slowly(*work: Any) -> None:
        assert may_write.wait(60)
        written(*work)

    monkeypatch.setattr(checkpoint, "write", slowly)
    trainer.step(batches[0])
    then = {name: master.detach().clone() for (_, name), master in trainer.runtime.masters.items()}
    trainer.checkpoints.save(tmp_path / "c")
    trainer.step(batches[1])
    assert trainer.runtime.step == 2
    assert folders.whole(tmp_path / "c") is None and trainer.checkpoints.last is None
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.info(tmp_path / "c")
    may_write.set()
    assert trainer.checkpoints.wait() == tmp_path / "c"
    assert checkpoint.info(tmp_path / "c").step == 1
    whole = load_file(export_safetensors(tmp_path / "c", tmp_path / "x.safetensors"))
    assert all(torch.equal(whole[name], x) for name, x in then.items())
    assert any(not torch.equal(whole[name], m) for (_, name), m in trainer.runtime.masters.items())


def test_a_checkpoint_that_cannot_be_written_is_told_at_the_next_turn_and_training_can_go_on(tmp_path: Path) -> None:
    trainer = Trainer(_setup(Layout()), 0, Groups())
    (tmp_path / "file").write_text("")
    trainer.checkpoints.save(tmp_path / "file" / "c")
    with pytest.raises(ExecutionError, match=r"file/c: could not be written: .*(Not a directory|exists)"):
        trainer.checkpoints.wait()
    trainer.step(_model(0.1, "float32")[2][0])
    trainer.checkpoints.save(tmp_path / "c")
    assert trainer.checkpoints.wait() == tmp_path / "c"


SCHEDULERS: tuple[MakeScheduler, ...] = (
    partial(OneCycleLR, max_lr=0.1, total_steps=20),
    partial(MultiStepLR, milestones=[1, 3, 4], gamma=0.5),
    partial(CosineAnnealingWarmRestarts, T_0=2),
    lambda o: SequentialLR(o, [LinearLR(o, total_iters=3), ExponentialLR(o, 0.9)], milestones=[3]),
    lambda o: LambdaLR(o, lambda step: 1.0 / (1 + step)),
)


def test_schedulers_of_torch_go_on(tmp_path: Path) -> None:
    for k, scheduler in enumerate(SCHEDULERS):
        trainers = [Trainer(_setup(Layout(), scheduler=scheduler), 0, Groups()) for _ in range(2)]
        batches = _model(0.1, "float32")[2]

        def rates(trainer: Trainer, first: int, last: int) -> list[float]:
            found = []
            for step in range(first, last):
                trainer.step(batches[step])  # noqa: B023
                found.append(trainer.runtime.optimizer.param_groups[0]["lr"])
            return found

        rates(trainers[0], 0, AT)
        trainers[0].checkpoints.save(tmp_path / str(k))
        trainers[0].checkpoints.wait()
        trainers[1].resume(tmp_path / str(k))
        assert rates(trainers[1], AT, AT + AFTER) == rates(trainers[0], AT, AT + AFTER)


def test_a_position_that_would_not_load_again_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    trainer = Trainer(_setup(Layout()), 0, Groups())
    with pytest.raises(
        Unsupported, match=r"^the position in the data and the scheduler must consist of numbers, strings"
    ):
        trainer.checkpoints.save(tmp_path / "c", {"sampler": Forgetful()})
    assert not list(tmp_path.iterdir())
