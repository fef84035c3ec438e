"""The configuration objects of accelerate and transformers, given what is exported; list of cases -> list of answers.

{"kind": "yaml", "text"}            the launcher's reading: its environment for the processes
{"kind": "parallelism", "sizes"}    ParallelismConfig
{"kind": "distributed", "config"}   DistributedConfig; with "model" its rules laid on a model of that configuration, on no device
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from typing import Any


def answer(case: dict[str, Any]) -> Any:
    if case["kind"] == "yaml":
        return of_yaml(case["text"])
    if case["kind"] == "parallelism":
        from accelerate import ParallelismConfig

        made = ParallelismConfig(**case["sizes"])
        return {"total": made.total_size, "order": list(made._get_mesh()[0])}
    return of_distributed(case["config"], case.get("model"))


def of_yaml(text: str) -> dict[str, str]:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        arguments = launch_command_parser().parse_args(["--config_file", file.name, "train.py"])
        arguments, _, _ = _validate_launch_command(arguments)
    found = prepare_multi_gpu_env(arguments)
    names = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
    return {k: str(v) for k, v in found.items() if k.startswith(names)}


def of_distributed(config: dict[str, Any], model: dict[str, Any] | None) -> dict[str, Any]:
    import torch
    import transformers
    from transformers.distributed import DistributedConfig
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, ColwiseParallel

    made = DistributedConfig(**config)
    found: dict[str, Any] = {"dp": made.dp_size, "experts": made.efsdp_size if made.ep_size > 1 else 0}
    if model is None:
        return found
    ALL_PARALLEL_STYLES.register("colwise_vocabulary_loss", ColwiseParallel())
    settings = transformers.AutoConfig.for_model(**model)
    with torch.device("meta"):
        module = getattr(transformers, model["architectures"][0])(settings)
    tensor, experts, sharded = module._resolve_parallel_plans(made)
    wrapped = [name for name, _ in module.named_modules() if name in sharded]
    covered = {name for name, _ in module.named_parameters() for w in wrapped if name.startswith(f"{w}.")}
    if made.tp_size > 1:
        for name, style in tensor.items():  # what install_forward asks of a module
            if name in dict(module.named_modules()) and style in ("colwise", "rowwise"):
                owner = module.get_submodule(name)
                if not hasattr(owner, "out_features"):
                    raise ValueError(f"{type(owner).__name__} has no `out_features`: {style} shards linear layers.")
    loose = [name for name, _ in module.named_parameters() if name not in covered]
    return {**found, "tensor": tensor, "experts_rules": experts, "sharded": sharded, "loose": loose}


def main() -> None:
    logging.disable(logging.CRITICAL)
    found = []
    for case in json.load(sys.stdin):
        try:
            found.append({"is": answer(case)})
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
