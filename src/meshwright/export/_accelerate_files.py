"""What is written for accelerate: its YAML, what its YAML has no key for in Python, the line that starts it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from ..cluster.launch import PORT, shape_of
from . import _yaml
from ._hf import groups
from ._hf_text import Name, call, constants, group, loads, script, style_imports, uses_vocabulary_loss
from .setup import Setup

Way: TypeAlias = Literal["ddp", "fsdp", "tensor", "ulysses"]
PREFIX = "parallelism_config.parallelism_config_"
DEEPSPEED = "deepspeed.json"


def way_of(setup: Setup) -> Way:
    """How accelerate runs a plan."""
    p = setup.point
    if p.tp > 1:
        return "tensor"
    if p.cp > 1 and p.context == "ulysses":
        return "ulysses"
    return "fsdp" if p.cp > 1 or (p.zero and groups(setup) > 1) else "ddp"


def written(setup: Setup, options: Mapping[str, Any], called: str, left_out: str) -> dict[str, str]:
    """Files by name."""
    way, machines = way_of(setup), shape_of(setup.problem.cluster, setup.world).nodes
    what = f"{setup.name or 'A model'} for {called}: {setup.point.words()}, as planned."
    found = {
        "accelerate.yaml": _settings(setup, options, way, machines, what),
        "settings.py": _script(setup, options, way, [what, "", f"Not in a plan, yours to add: {left_out}."]),
        "launch.sh": _launch(machines),
    }
    if way == "ulysses":
        found[DEEPSPEED] = json.dumps(_deepspeed(setup, options), indent=2) + "\n"
    return found


def _launch(machines: int) -> str:
    lines = ["#!/bin/sh", "# train.py is your script, which imports settings.py."]
    command = "accelerate launch --config_file accelerate.yaml"
    if machines > 1:
        lines.append(f"# On machine K of 0 to {machines - 1}: launch.sh K ADDRESS-OF-MACHINE-0")
        command += f' --machine_rank "$1" --main_process_ip "$2" --main_process_port {PORT}'
    return "\n".join([*lines, f"{command} train.py"]) + "\n"


def _settings(setup: Setup, options: Mapping[str, Any], way: Way, machines: int, what: str) -> str:
    settings: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": options["distributed_type"], "num_machines": machines,
        "num_processes": setup.world, "machine_rank": 0, "rdzv_backend": "static", "main_training_function": "main",
        "mixed_precision": options["mixed_precision"], "use_cpu": False,
    }  # fmt: skip
    settings |= {key: value for key, value in options.items() if key.startswith("fsdp_config.")}
    head = [f"# {what} Started by launch.sh, beside settings.py."]
    if way == "fsdp":
        wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "activation_checkpointing_offload": False, "offload_params": False}  # fmt: skip
        settings |= {f"fsdp_config.fsdp_{key}": value for key, value in wrap.items()}
        sizes = {f"{PREFIX}{name}_size": 1 for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")}
        settings |= sizes | {key: value for key, value in options.items() if key.startswith(PREFIX)}
        if setup.model.stacks:
            layers = ", ".join(f"{stack}.*" for stack in setup.model.stacks)
            head += ["# FSDP wraps the classes that the model names in _no_split_modules. Unless that is the class of"]
            head += [f"# {layers}, add to fsdp_config: fsdp_transformer_layer_cls_to_wrap: NAME-OF-THE-CLASS"]
    elif way == "ulysses":
        settings["deepspeed_config.deepspeed_config_file"] = DEEPSPEED
        settings["deepspeed_config.zero3_init_flag"] = setup.point.zero == 3
    return "\n".join(head) + "\n" + _yaml.written(settings)


def _deepspeed(setup: Setup, options: Mapping[str, Any]) -> dict[str, Any]:
    p, m, precision = setup.point, setup.layout.micro_batches, str(options["mixed_precision"])
    return {
        "train_batch_size": setup.layout.samples, "train_micro_batch_size_per_gpu": p.micro_batch, "gradient_accumulation_steps": m,
        "zero_optimization": {"stage": p.zero}, "bf16": {"enabled": precision == "bf16"}, "fp16": {"enabled": precision == "fp16"},
        "communication_data_type": options["deepspeed.communication_data_type"],
    }  # fmt: skip


def _script(setup: Setup, options: Mapping[str, Any], way: Way, head: list[str]) -> str:
    p, config = setup.point, group(options, "DistributedConfig")
    imports = [
        "import torch",
        "from accelerate import Accelerator",
        "from accelerate.utils import GradientAccumulationPlugin",
    ]
    plugin = {**group(options, "GradientAccumulationPlugin"), "num_steps": Name("ACCUMULATION")}
    arguments = {"gradient_accumulation_plugin": Name(call("GradientAccumulationPlugin", plugin, 8))}
    if parallel := group(options, "ParallelismConfig"):
        imports.append("from accelerate import ParallelismConfig")
        if handler := group(options, "DeepSpeedSequenceParallelConfig"):
            imports.append("from accelerate.utils import DeepSpeedSequenceParallelConfig")
            parallel["sp_handler"] = Name(call("DeepSpeedSequenceParallelConfig", handler, 12))
        arguments["parallelism_config"] = Name(call("ParallelismConfig", parallel, 8))
    body = ["def accelerator():", "    " + call("made = Accelerator", arguments, 4)]
    if policy := group(options, "MixedPrecisionPolicy"):
        imports.append("from torch.distributed.fsdp import MixedPrecisionPolicy")
        types = {key: Name(f"torch.{value}") for key, value in policy.items()}
        body += [
            "    # Read when the model is prepared; the launcher's own would sum gradients in the type of computing."
        ]
        body += ["    made.state.fsdp_plugin.mixed_precision_policy = " + call("MixedPrecisionPolicy", types, 4)]
    m, dtype = setup.layout.micro_batches, str(options["script.dtype"])
    parts = [constants(p.micro_batch, m, setup.layout.samples, setup.replicas, dtype), [*body, "    return made"]]
    if config:
        imports += [
            "from transformers import AutoModelForCausalLM",
            "from transformers.distributed import DistributedConfig",
        ]
        imports += style_imports(config)
        parts.append(loads(options, "DTYPE"))
    if way == "ulysses":
        imports.append("from transformers.integrations.deepspeed import deepspeed_sp_compute_loss")
    copies = p.replicate > 1 and way in ("fsdp", "tensor")
    parts.append(_micro_batch(way, p.cp, uses_vocabulary_loss(config), copies))
    if options.get("script.activation_checkpointing"):
        parts.append(_checkpointing())
    return script(head, imports, *parts)


def _micro_batch(way: Way, cp: int, cut_loss: bool, copies: bool) -> list[str]:
    """Forward and backward of a micro-batch; `copies`: of what is cut, which are summed once a step."""
    body = ["loss = model(**batch).loss", "accelerator.backward(loss)"]
    last = "return loss.detach()"
    if way == "ulysses":
        parallel = "accelerator.parallelism_config"
        body[0] = f"loss = deepspeed_sp_compute_loss(accelerator, model, batch, False, {parallel})"
    elif cp > 1:
        body = _context(cp)
    elif cut_loss:
        body = ["with loss_parallel():", *(f"    {line}" for line in body)]
        last = "return loss.detach().full_tensor()"
    if copies:
        body = ["# Copies of what is cut are summed once a step.", "model.set_requires_all_reduce(accelerator.sync_gradients)", *body]  # fmt: skip
    return [
        "def micro_batch(accelerator, model, batch):",
        '    """Inside of `with accelerator.accumulate(model):`, before optimizer.step() and zero_grad()."""',
        *(f"    {line}" for line in [*body, last]),
    ]


def _context(cp: int) -> list[str]:
    """Positions are dealt to the members when the block begins; the mean is over all of them. Needs sdpa attention."""
    return [
        'ids, labels = batch["input_ids"], batch["labels"]',
        "following = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous()",
        "positions = torch.arange(ids.size(1), device=ids.device).expand(ids.size(0), -1).contiguous()",
        f"each = (following != -100).sum() / {cp}  # the mean over members is the mean over all positions",
        "buffers = [ids, labels, following, positions]",
        "with accelerator.maybe_context_parallel(",
        "    buffers=buffers, buffer_seq_dims=[1] * len(buffers), no_restore_buffers=set(buffers)",
        "):",
        "    loss = model(",
        "        input_ids=ids, labels=labels, shift_labels=following, position_ids=positions, num_items_in_batch=each",
        "    ).loss",
        "    accelerator.backward(loss)",
    ]


def _checkpointing() -> list[str]:
    return [
        "def checkpointed(model):",
        '    """Every layer runs again before its backward. Call it before accelerator.prepare()."""',
        '    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})',
        "    return model",
    ]
