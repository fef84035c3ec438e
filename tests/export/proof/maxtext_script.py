"""Runs in MaxText's environment: settings in, what its own configuration makes of them out.

A case is {"files": {name: text}, "command": ["key=value", …]}; an answer {"error": …} or the mesh and the figures derived.
"""

import json
import sys
import tempfile
from pathlib import Path

from jax.experimental import mesh_utils
from maxtext.configs import pyconfig
from maxtext.utils import max_utils

FIGURES = (
    "global_batch_size_to_train_on",
    "micro_batch_size_to_train_on",
    "gradient_accumulation_steps",
    "num_pipeline_microbatches",
    "num_pipeline_repeats",
    "num_layers_per_pipeline_stage",
    "pipeline_parallel_layers",
    "remat_policy",
    "context_parallel_strategy",
    "context_parallel_load_balance",
    "shard_optimizer_over_data",
    "dtype",
    "grad_dtype",
    "max_target_length",
)


def answer(case: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in case["files"].items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        sys.modules.setdefault("unittest", sys)  # so that an error is raised, not the end of the program
        try:
            config = pyconfig.initialize_pydantic(["", f"{folder}/maxtext.yml", *case["command"]])
            devices = case["devices"]
            sizes = max_utils.fill_unspecified_mesh_axes(list(config.ici_parallelism), devices, "ICI")
        except (Exception, SystemExit) as error:
            return {"error": f"{type(error).__name__}: {error}"}
    mesh = mesh_utils.create_device_mesh(sizes)
    found = {key: getattr(config, key) for key in FIGURES}
    rules = {}
    for name, axes in config.logical_axis_rules:
        rules.setdefault(name, []).append(axes)
    return {
        **json.loads(json.dumps(found, default=lambda x: getattr(x, "value", str(x)))),
        "axes": list(config.mesh_axes),
        "shape": list(mesh.shape),
        "ids": [d.id for d in mesh.ravel()],
        "rules": rules,
    }


if __name__ == "__main__":
    cases = json.load(sys.stdin)
    found = [answer(case) for case in cases]
    print()
    print(json.dumps(found, default=str))
