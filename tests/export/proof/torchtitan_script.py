"""Run in an environment with torchtitan: load recipes as its launcher does, check them as its trainer does, split into stages."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torchtitan.config import ConfigManager
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import pipeline_parallel as pp


def loaded(files: dict[str, str], options: list[str]) -> Any:
    """The config that `torchtitan.train --module recipe --config train` has."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        sys.path.insert(0, folder)
        sys.modules.pop("recipe", None)
        try:
            return ConfigManager().parse_args(["--module", "recipe", "--config", "train", *options])
        finally:
            sys.path.remove(folder)


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """What torchtitan makes of one case, or its error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config = loaded(case["files"], case.get("options", []))
        dims = ParallelDims.from_config(config.parallelism, case["world"])
        config.model_spec.model.update_from_config(config=config)
        with torch.device("meta"):
            names = [n for n, _ in config.model_spec.model.build().named_children()]
        p, t = config.parallelism, config.training
        lists = p.module_fqns_per_model_part
        stages: list[Any] = []
        if p.pipeline_parallel_degree > 1:
            stages = [
                pp._get_pp_rank_to_stage_indices_mapping(
                    r, p.pipeline_parallel_degree, p.pipeline_parallel_schedule, len(lists)
                )
                for r in range(p.pipeline_parallel_degree)
            ]
        policy = config.activation_checkpoint
        return {
            "dims": [dims.pp, dims.dp_replicate, dims.dp_shard, dims.cp, dims.tp, dims.ep],
            "stages": stages,
            "parts": lists,
            "children": names,
            "layers": len(config.model_spec.model.layers),
            "batch": [t.local_batch_size, t.global_batch_size, p.pipeline_parallel_microbatch_size, t.seq_len],
            "policy": None if policy is None else type(policy).__qualname__,
            "dealt": dealt(case.get("dealt", [])),
        }
    except SystemExit:  # its reader of options draws a box around what is wrong
        return {"error": " ".join(word for word in said.getvalue().split() if word not in "│╭╮╰╯─")}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def dealt(cases: list[list[int]]) -> list[Any]:
    """Layers of each stage as torchtitan deals them, or none where it refuses."""
    found: list[Any] = []
    for layers, stages, first, last in cases:
        try:
            parts = pp._generate_llm_fqn_per_model_part(stages, layers, first, last)
        except ValueError:
            found.append(None)
            continue
        found.append([sum(name.startswith("layers.") for name in part) for part in parts])
    return found


def bases(names: dict[str, str]) -> dict[str, Any]:
    """What recipes of its own set: name -> section and field -> value, of those that load here."""
    import dataclasses
    import importlib

    from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig

    found = {}
    for name, module in names.items():
        try:
            config = getattr(importlib.import_module(f"torchtitan.models.{module}.config_registry"), name)()
        except ImportError:
            continue
        own = {"training": TrainingConfig(), "parallelism": ParallelismConfig(), "compile": CompileConfig()}
        values = {
            f"{section}.{f.name}": getattr(getattr(config, section), f.name)
            for section, default in own.items()
            for f in dataclasses.fields(default)
        }
        policy = config.activation_checkpoint
        values["activation_checkpoint"] = (
            "none" if policy is None else type(policy).__qualname__.partition("AC")[0].lower()
        )
        found[name] = values
    defaults = {
        f"{section}.{f.name}": getattr(default, f.name)
        for section, default in own.items()
        for f in dataclasses.fields(default)
    }
    return {"bases": found, "defaults": defaults}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asked = json.load(sys.stdin)
    print(json.dumps(bases(asked["bases"]) if "bases" in asked else [answer(case) for case in asked["cases"]]))
