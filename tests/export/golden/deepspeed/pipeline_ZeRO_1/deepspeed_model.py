"""What ds_config.json cannot say, for DeepSpeed 0.19.8: written from a plan of llama-3.1-8b."""

import json
from pathlib import Path

import torch
from deepspeed.pipe import PipelineModule

CONFIG = json.loads(Path(__file__).with_name("ds_config.json").read_text(encoding="utf-8"))


class Before(torch.nn.Sequential):
    """All before the first layer: one entry of the list."""


class After(torch.nn.Sequential):
    """All after the last layer: one entry of the list."""


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
