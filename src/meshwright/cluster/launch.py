"""How a plan is started on several machines: torchrun's line for each, and a Slurm script."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .model import Cluster

PORT = 29400
"""torchrun's own default for rendezvous."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Machines and processes of each."""

    nodes: int
    per_node: int


def shape_of(cluster: Cluster, devices: int) -> Shape:
    """Machines that hold `devices` devices of a cluster.

    Raises:
        InputError: they do not fill whole machines.
    """
    per_node = min(cluster.node_size, devices)
    if devices % per_node:
        raise InputError(
            f"{devices} devices do not fill machines of {per_node}: torchrun starts equally many ranks on each"
        )
    return Shape(devices // per_node, per_node)


@dataclass(frozen=True, slots=True)
class Launch:
    """How one command is started under a plan."""

    shape: Shape
    command: tuple[str, ...]
    """A script and its arguments, or "-m", a module and its arguments."""
    name: str
    gpus: bool

    @property
    def line(self) -> str:
        """What is typed on every machine, the same on each; HOST is the name of any one of them."""
        return torchrun_line(self.shape, self.command)

    @property
    def slurm(self) -> str:
        """An sbatch script: one task a machine, which starts the machine's ranks.

        Options are those of https://slurm.schedmd.com/sbatch.html; account, partition and time limit are the user's.
        """
        resource = "gpus-per-node" if self.gpus else "cpus-per-task"
        lines = [
            "#!/bin/bash",
            f"#SBATCH --job-name={self.name}",
            f"#SBATCH --nodes={self.shape.nodes}",
            "#SBATCH --ntasks-per-node=1",
            f"#SBATCH --{resource}={self.shape.per_node}",
            "#SBATCH --exclusive",
            "#SBATCH --output=%x-%j.log",
            "# Yours to add: --account, --partition, --time",
            "set -e",
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"srun --kill-on-bad-exit=1 {torchrun_line(self.shape, self.command, host='$head')}",
        ]
        return "\n".join(lines) + "\n"

    def write_slurm(self, path: Path) -> None:
        """Raises InputError where the file cannot be written."""
        try:
            path.write_text(self.slurm, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}", where=str(path)) from error


def torchrun_line(shape: Shape, command: Sequence[str], *, host: str = "HOST") -> str:
    """torchrun's command for each machine. Several machines meet at HOST, any one of them."""
    words = ["torchrun", "--nnodes", str(shape.nodes), "--nproc-per-node", str(shape.per_node)]
    if shape.nodes > 1:
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{PORT}", "--rdzv-id", "meshwright"]
    return " ".join([*words, *map(shlex.quote, command)])
