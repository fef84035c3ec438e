"""Starts ranks with exported settings as their own launchers would, without devices; {"folder", "case", "files", "ranks"} -> losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def accelerate_environment(yaml: str) -> dict[str, str]:
    """What `accelerate launch --config_file` sets for its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", yaml, "train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    found = prepare_multi_gpu_env(arguments)
    return {k: str(v) for k, v in found.items() if k.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_"))}


def main(payload: dict[str, Any]) -> list[float]:
    folder = Path(payload["folder"])
    for name, text in payload["files"].items():
        (folder / name).write_text(text)
    (folder / "case.json").write_text(json.dumps(payload["case"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    if payload["case"]["target"] == "accelerate":
        environment |= accelerate_environment(str(folder / "accelerate.yaml")) | {"ACCELERATE_USE_CPU": "true"}
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(payload["ranks"])]
    script = Path(__file__).with_name("hf_rank.py")
    done = subprocess.run(
        [sys.executable, *ranks, str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("[rank")] or done.stderr.splitlines()
        sys.exit("\n".join(told[-40:]))
    return list(json.loads((folder / "losses.json").read_text()))


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
