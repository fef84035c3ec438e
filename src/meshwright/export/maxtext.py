"""MaxText: a YAML file over its base.yml, and the command with the rules that say which axes cut what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, nextafter
from typing import Any, ClassVar

import yaml

from ..layouts.again import FIRST
from ..plan.problem import Recipe
from ._maxtext_conditions import CONDITIONS, hardware
from ._maxtext_names import MESH, OWN, POLICY, SIZE_OF, axis_of, mesh_axes, model_name, order_of
from ._maxtext_read import read, recognises
from .base import Exporter, Read
from .model import Model, parts_of
from .said import Condition, Said
from .setup import Setup

SETTINGS, RULES = "maxtext.yml", "logical_axis_rules"
WEIGHTS = ("embed", "embed_attn", "embed_moe", "embed_router", "embed_vocab", "q_lora", "kv_lora")
"""Logical axes of weights that base.yml cuts over fsdp, context and expert."""
FEATURES = ("activation_embed", "activation_embed_attn", "activation_embed_moe", "norm")
"""Logical axes of features that base.yml cuts over tensor between products."""


class MaxText(Exporter):
    """Meshes of data, FSDP, tensor, context and expert parallelism; a circular pipeline."""

    name: ClassVar[str] = "maxtext"
    title: ClassVar[str] = "MaxText"
    package: ClassVar[str] = "maxtext"
    versions: ClassVar[tuple[str, ...]] = ("0.2.5",)
    source: ClassVar[str] = (
        "maxtext 0.2.5: configs/{base.yml,types.py,pyconfig.py}, layers/{pipeline,attention_op,nnx_decoders}.py, utils"
    )
    order: ClassVar[tuple[str, ...]] = OWN
    takes: ClassVar[str] = "a YAML file over configs/base.yml, or a command with key=value"

    least_again: ClassVar[str] = "full"

    @classmethod
    def recognises(cls, text: str) -> bool:
        return recognises(text)

    def said(self, setup: Setup) -> Iterator[Said]:
        yield _model(setup)
        yield _devices(setup)
        yield from _data(setup)
        yield from _tensor(setup)
        yield from _context(setup)
        yield from _experts(setup)
        yield from _pipeline(setup)
        yield from _batch(setup)
        yield _recompute(setup)
        yield _precision(setup.problem.recipe)
        kind = setup.problem.recipe.optimizer
        decay: dict[str, Any] = {"adam_weight_decay": 0.0} if kind == "adam" else {}
        yield Said("optimizer", {"opt_type": "sgd" if kind == "sgd" else "adamw", **decay})

    def conditions(self) -> Sequence[Condition]:
        return CONDITIONS

    def files(self, setup: Setup) -> Mapping[str, str]:
        said = list(self.said(setup))
        options = {key: value for s in said for key, value in s.options.items() if key != RULES}
        rules = [[name, axes] for s in said for name, axes in s.options.get(RULES, {}).items()]
        head = (
            f"# {self.called}, {setup.world} devices. Not in a plan: run_name, base_output_directory, {self.left_out}.\n"
            "base_config: base.yml\n"
        )
        body = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, width=120)
        return {SETTINGS: head + body, "launch.sh": self._launch(rules)}

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        return read(self.called, files, model, world)

    def _launch(self, rules: list[list[Any]]) -> str:
        lines = [
            "#!/bin/sh",
            "# On every host. Rules in a file would replace all of base.yml; in the command they replace their own.",
        ]
        command = f"python3 -m maxtext.trainers.pre_train.train {SETTINGS} run_name=planned"
        if rules:
            text = yaml.safe_dump(rules, default_flow_style=True, width=inf).strip()
            command += f' \\\n  "{RULES}={text}"'
        return "\n".join([*lines, command, ""])


def _model(setup: Setup) -> Said:
    options: dict[str, Any] = {"hardware": hardware(setup)}
    if not setup.model.decoder:
        why = "MaxText builds decoders: one stack of layers with attention, between an embedding and a head; this model is none"
        return Said("model", options, "refused", why)
    options["max_target_length"] = setup.model.seq
    name = model_name(setup.name)
    if name:
        return Said("model", {"model_name": name, **options})
    return Said("model", options, why="model_name, or base_num_decoder_layers and the like, are the user's to set")


def _devices(setup: Setup) -> Said:
    options: dict[str, Any] = {"num_slices": 1}
    options |= {f"dcn_{SIZE_OF.get(a, a)}_parallelism": 1 for a in MESH}
    order, axes = order_of(setup), axis_of(setup)
    if order is None:
        why = "MaxText lays devices out along the axes of its mesh, in any order (mesh_axes), and the plan's lie along none"
        return Said("devices", options, "refused", why)
    return Said("devices", {"mesh_axes": mesh_axes([axes[w] for w in order]), **options})


# ---- data parallelism, ZeRO


def _data(setup: Setup) -> Iterator[Said]:
    p = setup.point
    data, fsdp = (p.replicate, p.dp // p.replicate) if p.zero == 3 else (p.dp, 1)
    sizes = {"data": data, "fsdp": fsdp, "fsdp_transpose": 1}
    yield Said("dp", {f"ici_{axis}_parallelism": n for axis, n in sizes.items()})
    yield _zero(setup)
    if p.replicate > 1 and p.zero in (1, 2):
        why = f"MaxText cuts optimizer state over all {p.dp} ranks of data, not within groups of {p.dp // p.replicate}"
        yield Said("replicate", level="refused", why=why, runs_as={"replicate": 1})
    else:
        yield Said("replicate", why="data × fsdp" if p.zero == 3 else "weights are whole")
    if p.zero == 3 and not p.reshard:
        why = "MaxText gathers weights again in the backward: XLA keeps what is cut"
        yield Said("reshard", level="close", why=why, runs_as={"reshard": True})
    else:
        yield Said("reshard", why="XLA gathers weights where they are used")


def _zero(setup: Setup) -> Said:
    p = setup.point
    other = p.cp * p.ep > 1
    options: dict[str, Any] = {"shard_optimizer_over_data": p.zero == 1}
    if p.zero < 3 and other:
        options[RULES] = {name: ["fsdp", "fsdp_transpose"] for name in WEIGHTS}
    if p.zero == 2:
        why = "MaxText cuts gradients only where it cuts weights (fsdp); use ZeRO 1 or 3"
        return Said("zero", options, "refused", why, {"zero": 3, "replicate": 1})
    if p.zero == 1 and other:
        why = "MaxText cuts optimizer state over data alone, not over context and expert too; use ZeRO 3"
        return Said("zero", options, "refused", why, {"zero": 3, "replicate": 1})
    return Said("zero", options)


# ---- tensor, context, experts


def _tensor(setup: Setup) -> Iterator[Said]:
    p = setup.point
    options: dict[str, Any] = {
        "ici_tensor_parallelism": 1 if p.sequence else p.tp,
        "ici_tensor_sequence_parallelism": p.tp if p.sequence else 1,
    }
    whole: dict[str, Any] = {RULES: {name: [] for name in FEATURES}} if p.tp > 1 and not p.sequence else {}
    yield Said("tp", options)
    yield Said("sequence", whole, why="between products features are whole, positions cut" if p.sequence else "")


def _context(setup: Setup) -> Iterator[Said]:
    p = setup.point
    options: dict[str, Any] = {"ici_context_parallelism": p.cp, "ici_context_usp_ulysses_parallelism": 1}
    if p.cp == 1:
        yield Said("cp", options)
        yield Said("context", why="no context parallelism")
        return
    if p.context == "halo":
        why = f"MaxText cuts sequences, not rows of images; use cp 1 with dp {p.dp * p.cp}"
        yield Said("cp", options, "refused", why, {"cp": 1, "dp": p.dp * p.cp})
        yield Said("context", why="see cp")
        return
    yield Said("cp", options)
    ulysses = p.context == "ulysses"
    how: dict[str, Any] = {
        "context_parallel_strategy": "ulysses" if ulysses else "all_gather",
        "context_parallel_load_balance": False,
        "packing": False,
        "attention": "flash" if hardware(setup) == "tpu" else "cudnn_flash_te",
    }
    if ulysses:
        how |= {"use_tokamax_splash": True, "use_jax_splash": False}
    yield Said("context", how)


def _experts(setup: Setup) -> Iterator[Said]:
    p = setup.point
    yield Said("ep", {"ici_expert_parallelism": p.ep})
    if p.whole_experts:
        why = f"MaxText cuts each expert over tensor {p.tp} instead of dealing whole ones over it"
        yield Said("whole_experts", {}, "close", why, {"whole_experts": False})
    else:
        yield Said("whole_experts", why="experts are cut over tensor")


# ---- pipeline, batch


def _pipeline(setup: Setup) -> Iterator[Said]:
    p = setup.point
    yield _stages(setup)
    loop = "bfs" if p.chunks > 1 else "gpipe"
    if p.pp == 1:
        yield Said("pp", {"ici_pipeline_parallelism": 1})
        yield Said("chunks", why="no pipeline")
        if p.schedule == "1f1b":
            yield Said("schedule", why="one micro-batch after the other (gradient_accumulation_steps)")
        else:
            why = f"MaxText accumulates one micro-batch after the other, not in the order {p.schedule}"
            yield Said("schedule", level="refused", why=why, runs_as={"schedule": "1f1b"})
        return
    per_stage = len(setup.model.layers) // (p.pp * p.chunks)
    why = (
        f"MaxText's circular pipeline runs all forwards, then all backwards ({loop}), and computes embedding and head on the ranks of "
        "all stages together"
    )
    yield Said("pp", {"ici_pipeline_parallelism": p.pp, "num_layers_per_pipeline_stage": per_stage}, "close", why)
    yield Said("chunks", {"num_pipeline_repeats": p.chunks, "pipeline_parallel_layers": len(setup.model.layers)})
    if p.schedule == loop:
        yield Said("schedule", why="its own loop")
    elif p.schedule in ("1f1b", "interleaved"):
        why = f"MaxText's loop keeps the activations of every micro-batch until all forwards are done ({loop}), not those of {p.schedule}"
        yield Said("schedule", {}, "close", why, {"schedule": loop})
    else:
        why = f"MaxText has one loop, which runs as {loop}, and no schedule {p.schedule}"
        yield Said("schedule", {}, "refused", why, {"schedule": loop})


def _stages(setup: Setup) -> Said:
    p, layers = setup.point, len(setup.model.layers)
    stages = p.pp * p.chunks
    held = [len(s.layers) for s in setup.shares]
    if stages == 1 or len(set(held)) == 1:
        return Said("stages", {"scan_layers": True})
    why = f"MaxText deals layers evenly over stages, not {'-'.join(map(str, held))}"
    if layers % stages:
        return Said("stages", {"scan_layers": True}, "refused", why)
    try:
        even = {"parts": parts_of(setup.expert, (layers // stages,) * stages)}
    except ValueError:  # a stage would end inside of what the plan keeps together
        even = {}
    return Said("stages", {"scan_layers": True}, "refused", f"{why}; use {layers // stages} each", even)


def _batch(setup: Setup) -> Iterator[Said]:
    p, m = setup.point, setup.layout.micro_batches
    at_once = setup.layout.samples if p.pp > 1 else setup.replicas * p.micro_batch
    yield Said("micro_batch", {"per_device_batch_size": a_device(at_once, setup.world)})
    steps: dict[str, Any] = {"gradient_accumulation_steps": 1 if p.pp > 1 else m}
    yield Said("micro_batches", steps | ({"num_pipeline_microbatches": m} if p.pp > 1 else {}))
    yield Said("samples", why="devices × per_device_batch_size × gradient_accumulation_steps")


def a_device(samples: int, world: int) -> float:
    """per_device_batch_size: MaxText multiplies it with the devices and rounds down, so not a hair too small."""
    value = samples / world
    while int(world * value) < samples:
        value = nextafter(value, inf)
    return value


# ---- recompute, precision


def _recompute(setup: Setup) -> Said:
    again = setup.point.recompute
    policy = POLICY.get(again, "")
    if again == "full":
        return Said("recompute", {"remat_policy": policy})
    if again == "light":
        why = (
            "MaxText's policy minimal_with_context keeps products and attention by name; what else XLA keeps is its own"
        )
        return Said("recompute", {"remat_policy": policy}, "close", why)
    if policy:
        why = "MaxText's policy minimal runs light ops again beside attention"
        return Said("recompute", {"remat_policy": policy}, "close", why, {"recompute": "attention"})
    if again.startswith(FIRST):
        why = "MaxText recomputes in every layer alike, not in the first layers of a stage; use full"
        return Said("recompute", {"remat_policy": "full"}, "refused", why, {"recompute": "full"})
    if again == "none":
        why = "MaxText has no policy that recomputes nothing; the least is minimal_with_context (light)"
    else:
        why = f'MaxText has no policy for "{again}"; the nearest is minimal_with_context (light)'
    return Said("recompute", {"remat_policy": "minimal_with_context"}, "refused", why, {"recompute": "light"})


def _precision(recipe: Recipe) -> Said:
    options = {"dtype": recipe.compute_dtype, "weight_dtype": recipe.param_dtype, "grad_dtype": recipe.grad_dtype}
    if recipe.matmul_dtype or recipe.kept_dtype:
        why = f"MaxText's settings of 8-bit products are not mapped: the plan has {recipe.matmul_dtype or recipe.kept_dtype}"
        return Said("precision", options, "refused", why)
    return Said("precision", options)
