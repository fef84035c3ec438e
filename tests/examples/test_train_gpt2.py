"""The example trains the GPT-2 of transformers to the same losses on one device, on four ranks, and under two agents."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "examples" / "train_gpt2.py")
TINY = [
    "--layers",
    "2",
    "--width",
    "32",
    "--heads",
    "4",
    "--seq",
    "32",
    "--batch",
    "8",
    "--steps",
    "8",
    "--dropout",
    "0",
]
TINY += ["--lr", "0.01"]
STEP = re.compile(r"step +(\d+)  loss ([\d.]+)")
SECONDS = 300


def environment(**more: str) -> dict[str, str]:
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    return {**kept, "OMP_NUM_THREADS": "1", "MESHWRIGHT_DEVICE": "cpu", **more}


def losses(output: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in STEP.findall(output)}


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *words]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ran(command: list[str], cwd: Path, **more: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of the script as one plain process."""
    return losses(ran([sys.executable, SCRIPT, *TINY], tmp_path_factory.mktemp("alone")))


def test_the_loss_falls(alone: dict[int, float]) -> None:
    assert list(alone) == list(range(1, 9))
    assert alone[8] < alone[1] - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("fix", ["", "dp=2,tp=2", "tp=2,pp=2", "dp=4"])
def test_four_ranks_under_torchrun_have_the_losses_of_one_process(
    fix: str, alone: dict[int, float], tmp_path: Path
) -> None:
    given = ["--fix", fix] if fix else []
    output = ran(torchrun("--standalone", "--nproc-per-node", "4", SCRIPT, *TINY, *given), tmp_path)
    assert losses(output) == pytest.approx(alone, rel=1e-4)
    assert "They part most where" in output


@pytest.mark.slow
def test_what_four_ranks_began_two_go_on_with(alone: dict[int, float], tmp_path: Path) -> None:
    half = [*TINY, "--steps", "4", "--checkpoint", "ckpt"]
    first = ran(torchrun("--standalone", "--nproc-per-node", "4", SCRIPT, *half, "--fix", "dp=2,pp=2"), tmp_path)
    second = ran(torchrun("--standalone", "--nproc-per-node", "2", SCRIPT, *half, "--fix", "tp=2"), tmp_path)
    assert losses(first) | losses(second) == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_two_agents_on_two_addresses_have_the_losses_of_one(alone: dict[int, float], tmp_path: Path) -> None:
    """Each agent is what torchrun is on one of two machines: an address of its own, one rendezvous for both."""
    port = free_port()
    agents = []
    for host in ("127.0.0.1", "127.0.0.2"):
        command = torchrun(
            "--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
            "--rdzv-id", "two-agents", "--local-addr", host, SCRIPT, *TINY, "--fix", "dp=2,tp=2",
        )  # fmt: skip
        agents.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment(GLOO_SOCKET_IFNAME="lo"), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        said = [agent.communicate(timeout=SECONDS) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    both = [losses(out) for out, _ in said if losses(out)]
    assert len(both) == 1  # rank 0 speaks, whichever agent has it
    assert both[0] == pytest.approx(alone, rel=1e-4)
