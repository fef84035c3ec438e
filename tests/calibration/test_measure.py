"""This machine measured: what the profile holds, and that an interrupted measurement leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from meshwright.calibration import measure as measuring
from meshwright.calibration.profile import Local, Profile, load, save
from meshwright.calibration.stack import OF_SOFTWARE, guessed, learn_stack
from meshwright.calibration.torch_runs import TINY, torch_steps
from meshwright.cli.entry import run
from meshwright.cluster.model import DeviceType
from meshwright.cost.constants import family
from meshwright.simulate import simulate


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure", stopped)
    assert run(["calibrate", "-o", str(tmp_path / "local.toml"), "-q"]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="measures ranks on cores")
def test_this_machine_becomes_a_profile(tmp_path: Path) -> None:
    seen: set[str] = set()
    profile = measuring.measure(ranks=2, quick=True, say=lambda what, done, total: seen.add(what))
    assert seen == {"kernels", "collectives", "own steps"}
    save(profile, tmp_path / "local.toml")
    found = load(tmp_path / "local.toml")
    assert found.machine is not None and found.machine.ranks == 2 and found.machine.cores == os.cpu_count()
    assert found.local is not None and found.local.device.peak["float32"] > 1e9
    assert found.local.bandwidth > 1e7 and found.local.cluster(2).levels[0].bandwidth == found.local.bandwidth
    constants = found.family_table()["cpu"]
    assert 0 < constants.gemm_32 <= 1 and constants != family("cpu")
    own = [m for name, m in found.measured.items() if name.startswith("own step")]
    assert len(own) == 6 and all(abs(m.predicted / m.seconds - 1) < 0.5 for m in own)


def test_whole_steps_in_torch_are_problems_with_seconds() -> None:
    """The loop that times a GPU, on a CPU: a wider model takes longer, and its step is priced."""
    cpu = DeviceType("CPU", "cpu", 8e9, {"bfloat16": 1e11, "float32": 1e11}, 2e10, family="cpu")
    profile = Profile("local", "eager", local=Local(cpu, 1, 1))
    steps = torch_steps(profile, torch.device("cpu"), "eager", False, TINY)
    assert [s.problem.recipe.samples for s in steps] == [small.batch for small in TINY]
    assert all(s.seconds > 0 and simulate(s.problem, s.plan).step_seconds > 0 for s in steps)
    learnt = learn_stack(steps, name="x", software="eager", base=profile, prior=guessed(0.5, OF_SOFTWARE), check=False)
    assert set(learnt.factors) == {"products", "fusion", "transfers", "host", "fixed", "stragglers"}
    before, after = (np.abs(np.log(x / [s.seconds for s in steps])).max() for x in (learnt.before, learnt.after))
    assert after < before
