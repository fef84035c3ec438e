"""What DeepSpeed's JSON file cannot say: a pipeline's list of modules, Ulysses, checkpointing of layers; and the launch line."""

from __future__ import annotations

from math import ceil

from .setup import Setup

_HEAD = '''"""What {config} cannot say, for {called}: written from a plan of {name}."""

import json
from pathlib import Path

{imports}

CONFIG = json.loads(Path(__file__).with_name("{config}").read_text(encoding="utf-8"))
'''

_PLACES = '''

class Before(torch.nn.Sequential):
    """All before the first layer: one entry of the list."""


class After(torch.nn.Sequential):
    """All after the last layer: one entry of the list."""
'''

_PIPELINE = '''

def pipeline(before, layers, after, loss_fn):
    """Of lists of modules; for deepspeed.initialize(model=pipeline(...), config=CONFIG)."""
    wanted = CONFIG["pipeline"]
    module = PipelineModule(
        [Before(*before), *layers, After(*after)],
        num_stages=wanted["stages"],
        partition_method=wanted["partition"],
        activation_checkpoint_interval=wanted["activation_checkpoint_interval"],
        checkpointable_layers=sorted({type(layer).__name__ for layer in layers}),
        loss_fn=loss_fn,
    )
    held = [sum(0 < n <= len(layers) for n in range(a, b)) for a, b in zip(module.parts, module.parts[1:])]
    if held != wanted["layers"]:
        raise ValueError(f"stages of {held} layers, not of {wanted['layers']} as planned")
    return module
'''

_TIED = '''

def pipeline(before, layers, after, head, loss_fn):
    """Of lists of modules, the first of `before` the embedding, and head(before, hidden), which uses its weight again;
    for deepspeed.initialize(model=pipeline(...), config=CONFIG)."""
    wanted = CONFIG["pipeline"]
    module = PipelineModule(
        [
            TiedLayerSpec("embedding", Before, *before, tied_weight_attr="0.weight"),
            *layers,
            After(*after),
            TiedLayerSpec("embedding", Before, *before, forward_fn=head, tied_weight_attr="0.weight"),
        ],
        num_stages=wanted["stages"],
        partition_method=wanted["partition"],
        activation_checkpoint_interval=wanted["activation_checkpoint_interval"],
        checkpointable_layers=sorted({type(layer).__name__ for layer in layers}),
        loss_fn=loss_fn,
    )
    held = [sum(0 < n <= len(layers) for n in range(a, b)) for a, b in zip(module.parts, module.parts[1:])]
    if held != wanted["layers"]:
        raise ValueError(f"stages of {held} layers, not of {wanted['layers']} as planned")
    return module
'''

_ULYSSES = '''

def ulysses(model):
    """For deepspeed.initialize(..., mpu=ulysses(model)); wrap the loader in UlyssesSPDataLoaderAdapter."""
    return UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation="sdpa",  # or a flash attention that is installed
        sequence_parallel_size=CONFIG["sequence_parallel_size"],
        micro_batch_size=CONFIG["train_micro_batch_size_per_gpu"],
        seq_length=%d,
        seq_length_is_variable=False,
    )
'''

_AGAIN = '''

def recompute(model):
    """Every layer runs again in the backward; call it before deepspeed.initialize."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model
'''


def code_of(setup: Setup, called: str, config: str) -> str:
    """A Python file; "" where the JSON file says all."""
    p, imports, body = setup.point, [], ""
    if p.pp > 1:
        tied = setup.model.tied
        imports += ["import torch", f"from deepspeed.pipe import PipelineModule{', TiedLayerSpec' if tied else ''}"]
        body += _PLACES + (_TIED if tied else _PIPELINE)
    if p.cp > 1:
        imports.append("from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF")
        body += _ULYSSES % setup.model.seq
    if p.recompute == "full" and p.pp == 1:
        body += _AGAIN
    if not body:
        return ""
    head = _HEAD.format(config=config, called=called, name=setup.name or "a model", imports="\n".join(imports))
    return head.replace("\n\n\n\nCONFIG", "\n\nCONFIG") + body


def launch_of(setup: Setup, called: str, config: str, code: str) -> str:
    """The command line."""
    world, node = setup.world, setup.problem.cluster.node_size
    nodes, each = (1, world) if world <= node else (ceil(world / node), node)
    hosts = f"--num_nodes {nodes} --hostfile hostfile " if nodes > 1 else ""
    lines = [
        "#!/bin/sh",
        f"# {called}, {world} ranks. Not in a plan: model, data, optimizer and learning rate, checkpoint folder.",
    ]
    if code:
        lines.append(f"# train.py calls deepspeed.initialize with {config} and with what {code} makes.")
    else:
        lines.append(f"# train.py calls deepspeed.initialize with {config}.")
    return "\n".join(
        [*lines, f"deepspeed {hosts}--num_gpus {each} train.py --deepspeed --deepspeed_config {config}", ""]
    )
