"""Whatever kills a run, all ranks end, one sentence says how to go on, and another plan goes on to the same losses."""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from execute import fault_jobs
from execute.layouts import Layout
from execute.tiny import RULE, SEQ, losses_here, tiny_plan, tiny_source
from meshwright.errors import ExecutionError
from meshwright.execute import StepReport, train
from meshwright.execute.ranks import pool as pool_module
from meshwright.execute.saved import folders
from meshwright.execute.training import training as module
from meshwright.graph.source import ModelSource

STEPS, EVERY = 12, 2
WITHIN = 30.0
QUICK = 1
SEEDS = [pytest.param(s, marks=[pytest.mark.slow] if s >= QUICK else []) for s in range(20)]
AFTER = (Layout(tp=2), Layout(pp=2), Layout(dp=2, zero=3))
"""Layouts that go on, where that is not one rank in this process."""
MARK = "MESHWRIGHT_TEST_MARK"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return tiny_source(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def truth(source: ModelSource) -> dict[int, float]:
    """Of a run that nothing disturbs."""
    return losses_here(source, STEPS + 3)


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process that was started meanwhile, nor one that it started, is there afterwards."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv(MARK, mark)
    yield
    deadline = time.monotonic() + 5
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def _marked(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                environment = (process / "environ").read_bytes()
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{MARK}={mark}".encode() in environment and command:
                found.append(command.decode(errors="replace").replace("\0", " "))
    return found


class Run:
    """A run in this process's own pool, whose ranks faults are sent to."""

    def __init__(self, source: ModelSource, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source, self.folder = source, folder
        self.pools: list[pool_module.Pool] = []
        self.reports: list[StepReport] = []
        original = pool_module.Pool

        def made(*args: object, **options: object) -> pool_module.Pool:
            self.pools.append(original(*args, **options))  # type: ignore[arg-type]
            return self.pools[-1]

        monkeypatch.setattr(module, "Pool", made)

    def fails(self, layout: Layout, fault: Callable[[StepReport], None], resume: Path | None = None) -> str:
        """The sentence that it ends with."""
        with pytest.raises(ExecutionError) as caught:
            self.goes(layout, STEPS, fault, resume)
        assert caught.value.exit_code == 1
        return caught.value.message

    def goes(
        self,
        layout: Layout,
        steps: int,
        fault: Callable[[StepReport], None] = lambda r: None,
        resume: Path | None = None,
    ) -> dict[int, float]:
        def told(report: StepReport) -> None:
            self.reports.append(report)
            fault(report)

        result = train(
            tiny_plan(self.source, layout), self.source, steps=steps, seq=SEQ, optimizer=RULE, folder=self.folder,
            save_every=EVERY, resume=resume, on_step=told, timeout=60,
        )  # fmt: skip
        return {r.step: r.loss for r in result.steps}


@pytest.fixture
def run(source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(source, tmp_path / "run", monkeypatch)


def _check_folders(folder: Path) -> list[int]:
    """Steps of the checkpoints; each that has its name is whole."""
    found = [f for f in folder.glob("step-*") if not f.name.endswith((".part", ".old"))]
    assert all((f / folders.SEAL).is_file() and (f / ".metadata").is_file() for f in found)
    return sorted(int(f.name.removeprefix("step-")) for f in found)


def _until_whole(checkpoint: Path) -> None:
    """A checkpoint is written beside the steps, and these are short."""
    deadline = time.monotonic() + WITHIN
    while folders.whole(checkpoint) is None and time.monotonic() < deadline:
        time.sleep(0.05)


def _goes_on(run: Run, text: str, truth: dict[int, float], seed: int) -> int:
    """The step of the checkpoint that the sentence names, after going on from it."""
    match = re.search(r"; go on with --resume (\S+/step-(\d+)) \(loads under any plan\)$", text)
    assert match, text
    where, step = Path(match[1]), int(match[2])
    here = seed < QUICK
    losses = losses_here(run.source, 3, where) if here else run.goes(AFTER[seed % 3], 3, resume=where)
    assert losses == {k: pytest.approx(truth[k], rel=1e-5) for k in range(step + 1, step + 4)}
    return step


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rank_killed_at_a_random_moment_loses_only_the_steps_since_the_last_checkpoint(
    run: Run, truth: dict[int, float], seed: int
) -> None:
    chance = random.Random(seed)
    victim, at, died = chance.randrange(2), chance.randrange(5, 10), []  # the second save has begun: the first is whole

    def kill() -> None:
        died.append(time.monotonic())
        os.kill(run.pools[0].processes()[victim], signal.SIGKILL)

    def fault(report: StepReport) -> None:
        if report.step == at:
            threading.Timer(chance.random() * 2 * max(report.seconds), kill).start()

    text = run.fails(Layout(dp=2, zero=seed % 4), fault)
    assert time.monotonic() - died[0] < WITHIN
    last = run.reports[-1].step
    assert text.startswith(
        f"rank {victim} was killed by signal 9 at step {last + 1}; the other was stopped; go on with "
    )
    newest = last - last % EVERY
    surely_whole = newest - EVERY * (1 + (last == newest))  # a step is reported before its save begins
    assert surely_whole <= _goes_on(run, text, truth, seed) <= newest
    _check_folders(run.folder)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_save_interrupted_at_a_random_point_leaves_the_one_before(
    run: Run, truth: dict[int, float], seed: int
) -> None:
    """Rank 0 makes folders, renames and seals; the others write their parts."""
    chance = random.Random(100 + seed)
    victim = seed % 2
    point = chance.randrange(60) if victim == 0 else chance.randrange(7)

    def fault(report: StepReport) -> None:
        if report.step == 2 * EVERY + 1:  # the second has begun, so the first is complete
            run.pools[0].run("execute.fault_jobs:armed", (victim, point))

    text = run.fails(Layout(dp=2, zero=1), fault)
    assert text.startswith(f"rank {victim} was killed by signal 9 at step ")
    _goes_on(run, text, truth, seed)
    before = _check_folders(run.folder)
    losses = run.goes(Layout(dp=2), 2, resume=folders.whole(run.folder / f"step-{before[-1]}"))
    assert losses == {k: pytest.approx(truth[k], rel=1e-5) for k in losses}
    assert before[-1] + 2 in _check_folders(run.folder)
    assert [f.name for f in run.folder.iterdir() if not f.name.removeprefix("step-").isdigit()] == []


@pytest.mark.usefixtures("nothing_left")
def test_a_loss_that_is_no_number_ends_the_run_and_names_step_and_rank(run: Run, truth: dict[int, float]) -> None:
    names: list[str] = []

    def fault(report: StepReport) -> None:
        if report.step == 3:
            _until_whole(run.folder / f"step-{EVERY}")
            names.extend(run.pools[0].run("execute.fault_jobs:poisoned", 1))

    text = run.fails(Layout(dp=2), fault)
    assert text.startswith(f"the loss is nan at step 4, which rank 1 made first (parameter {names[1]}); go on with ")
    assert _goes_on(run, text, truth, 0) == 2


LATE = """
import os, time
if os.environ.get("RANK") == "1" and "MASTER_ADDR" not in os.environ:
    time.sleep({seconds})
"""


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_rank_that_starts_late_is_waited_for_and_one_that_never_comes_is_named(
    run: Run, truth: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE.format(seconds=4))
    monkeypatch.syspath_prepend(tmp_path)
    assert run.goes(Layout(dp=2), 1) == {1: pytest.approx(truth[1], rel=1e-5)}
    (tmp_path / "sitecustomize.py").write_text(LATE.format(seconds=600))
    monkeypatch.setattr(pool_module, "START_SECONDS", 1.0)
    began = time.monotonic()
    text = run.fails(Layout(dp=2), lambda report: None)
    assert re.fullmatch(r"(ranks 0, 1|rank 1) did not start within 1 s", text)
    assert time.monotonic() - began < WITHIN


# ------------------------------------------------------------------ torchrun


def _torchrun(options: list[str], source: ModelSource, folder: Path, fault: str, seed: int) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1",
        "MESHWRIGHT_DEVICE": "cpu",
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", "2", fault_jobs.__file__]
    return subprocess.Popen(
        [*command, source.spec, str(folder), fault, str(seed)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _said(text: str) -> dict[int, float]:
    return {int(w[1]): float(w[2]) for w in (line.split() for line in text.splitlines()) if w[:1] == ["LOSS"]}


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", range(20))
def test_under_torchrun_too_a_killed_rank_ends_all_and_rank_0_says_how_to_go_on(
    run: Run, truth: dict[int, float], tmp_path: Path, seed: int
) -> None:
    process = _torchrun(["--standalone"], run.source, run.folder, "kill", seed)
    out, errors = process.communicate(timeout=240)
    ended = time.time()
    assert process.returncode == 1
    assert ended - float((run.folder / "died").read_text()) < WITHIN
    losses = _said(out)
    assert losses == {k: pytest.approx(truth[k], rel=1e-5) for k in losses}
    sentences = [line for line in errors.splitlines() if line.startswith("meshwright: ")]
    victim = random.Random(seed).randrange(2)
    if victim == 0:  # the rank that speaks for all was killed: torchrun names it, the folder says the rest
        assert "Signal 9 (SIGKILL)" in errors and sentences == []
        text = f"; go on with --resume {run.folder / f'step-{_check_folders(run.folder)[-1]}'} (loads under any plan)"
    else:
        assert len(sentences) == 1, errors[-3000:]
        text = sentences[0]
        assert re.match(
            rf"meshwright: another rank ended at step {max(losses) + 1}, so this one was stopped; go on", text
        )
    _goes_on(run, text, truth, seed)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_under_torchrun_a_rank_that_starts_late_is_waited_for(run: Run, truth: dict[int, float]) -> None:
    process = _torchrun(["--standalone"], run.source, run.folder, "late", 0)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    assert _said(out) == {k: pytest.approx(truth[k], rel=1e-5) for k in range(1, STEPS + 1)}


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_port_in_use_ends_torchrun_and_a_rank_by_itself_with_its_number(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        process = _torchrun(
            ["--master-addr", "127.0.0.1", "--master-port", str(port)], run.source, run.folder, "none", 0
        )
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1 and time.monotonic() - began < WITHIN + 30
        assert "EADDRINUSE" in errors
        meeting = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        alone = subprocess.run(
            [sys.executable, fault_jobs.__file__, run.source.spec, str(run.folder), "none", "0"],
            env={**os.environ, **meeting, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "MESHWRIGHT_DEVICE": "cpu"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert alone.returncode == 1
        text = f"meshwright: port {port} of 127.0.0.1 is in use: give another one (torchrun: --master-port; else MASTER_PORT)"
        assert alone.stderr.splitlines()[-1] == text
