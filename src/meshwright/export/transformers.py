"""transformers: `DistributedConfig` for from_pretrained and `TrainingArguments` for its Trainer.

Read in 5.24.0: distributed/{configuration_utils,mixin,fsdp,tensor_parallel,expert_parallel}.py, trainer.py, training_args.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..cluster.launch import shape_of, torchrun_line
from ._hf import PRECISIONS, conditions, devices, folded, is_ours, pipeline, recompute, sequence
from ._hf_command import is_command
from ._hf_modules import expert_rules, sharding_rules, tensor_rules
from ._hf_python import read_scripts
from ._hf_text import Name, call, group, loads, script, style_imports, uses_vocabulary_loss
from ._words import divisors_near
from .base import Exporter, Read
from .model import Model
from .said import Condition, Said
from .setup import Setup

OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}
KEPT = {"zero": 3, "reshard": False}
"""As z2 runs on FSDP2: weights rest cut and are gathered once a micro-batch."""


class Transformers(Exporter):
    name = "transformers"
    title = "transformers"
    package = "transformers"
    versions = ("5.24.0",)
    source = "huggingface/transformers, the released package"
    order = ("pp", "dpr", "dp", "ep", "tp")
    takes = "a Python script with DistributedConfig or TrainingArguments, a command line with the latter's options"
    left_out = "data set, learning rate, output folder"

    @classmethod
    def recognises(cls, text: str) -> bool:
        script = any(f"{name}(" in text for name in ("DistributedConfig", "TrainingArguments"))
        return (script and "Accelerator(" not in text) or is_command(text)

    def said(self, setup: Setup) -> Iterator[Said]:
        p = setup.point
        nearest = folded(setup, "pp", "cp")
        yield self._model(setup)
        yield devices(setup, self.called, "pp, dp_replicate, fsdp (experts inside), tp", nearest)
        yield from pipeline(setup, self.called, " (its pp_size is for generation)", nearest)
        yield from self._stored(setup)
        yield Said("dp", why="dp_replicate_size × fsdp_size: see replicate and zero")
        rules = {"DistributedConfig.tp_plan": tensor_rules(setup).rules} if p.tp > 1 else {}
        yield Said("tp", {"DistributedConfig.tp_size": p.tp, **rules})
        yield sequence(setup, self.called)
        yield from self._context(setup, nearest)
        yield from self._experts(setup)
        yield Said("micro_batch", {"TrainingArguments.per_device_train_batch_size": setup.point.micro_batch})
        yield Said(
            "micro_batches",
            {"TrainingArguments.gradient_accumulation_steps": setup.layout.micro_batches, **_every(setup)},
        )
        yield Said("samples", why="per_device_train_batch_size × gradient_accumulation_steps × replicas")
        on = "TrainingArguments.activation_checkpointing"
        yield recompute(setup, self.called, {on: False}, {on: True})
        yield self._precision(setup)
        yield self._optimizer(setup)

    def conditions(self) -> Sequence[Condition]:
        return (*conditions(), Condition("experts over members", _experts))

    def files(self, setup: Setup) -> Mapping[str, str]:
        options = {key: value for s in self.said(setup) for key, value in s.options.items()}
        p, m = setup.point, setup.layout.micro_batches
        batch = f"A step has {setup.layout.samples} samples: {p.micro_batch} x {m} micro-batches x {setup.replicas} replicas."
        config = group(options, "DistributedConfig")
        head = [f"{setup.name or 'A model'} for {self.called}: {p.words()}, as planned.", "", batch]
        head += [f"Not in a plan, yours to add: {self.left_out}."]
        parallel = len(config) > 1 or p.tp > 1
        names = ["AutoModelForCausalLM"] if parallel else []
        names += ["Trainer"] if uses_vocabulary_loss(config) else []
        imports = [f"from transformers import {', '.join([*names, 'TrainingArguments'])}"]
        if parallel:
            imports += [
                "import torch",
                "from transformers.distributed import DistributedConfig",
                *style_imports(config),
            ]
        if uses_vocabulary_loss(config):
            imports.append("from torch.distributed.tensor import DTensor")
        arguments = group(options, "TrainingArguments")
        text = script(
            head, imports,
            loads(options, f"torch.{options['from_pretrained.dtype']}") if parallel else [],
            _arguments(arguments),
            _trainer() if uses_vocabulary_loss(config) else [],
        )  # fmt: skip
        line = torchrun_line(shape_of(setup.problem.cluster, setup.world), ("train.py",))
        launch = "\n".join(["#!/bin/sh", "# train.py is your script, which imports settings.py.", line]) + "\n"
        return {"settings.py": text, "launch.sh": launch}

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        return read_scripts(files, model, world)

    def _model(self, setup: Setup) -> Said:
        if is_ours(setup):
            return Said(
                "model", level="refused",
                why=f"{self.called} cannot build {setup.name}, a module of ours: use --to accelerate, which takes any module",
            )  # fmt: skip
        return Said("model", why="from_pretrained loads it")

    def _stored(self, setup: Setup) -> Iterator[Said]:
        """replicate, zero, reshard: FSDP2 over fsdp_size, whole copies over dp_replicate_size."""
        p = setup.point
        shards = p.dp // p.replicate * p.ep
        if setup.replicas == 1:
            yield Said("zero", why="one replica: nothing to cut", runs_as={"zero": 0, "reshard": True})
            yield Said("replicate", why="one replica", runs_as={"replicate": 1})
            yield Said("reshard", why="one replica")
            return
        if p.ep == 1 and (p.zero == 0 or shards == 1):
            yield Said(
                "zero", {**_shape(p.dp, 1), **_groups(setup)}, "close", runs_as={"zero": 0, "reshard": True, "replicate": 1},
                why="FSDP2 with groups of one takes the place of DDP: the same sums, but layer by layer, through buffers of a layer",
            )  # fmt: skip
            yield Said("replicate", why="dp_replicate_size: see zero")
            yield Said("reshard", why="whole weights stay")
            return
        cut = {**_shape(p.replicate, shards), **_groups(setup)}
        if p.zero == 3:
            yield Said("zero", cut)
        elif p.zero == 2:
            yield Said(
                "zero", cut, "close", runs_as=KEPT,
                why=f"{self.called} gathers weights every micro-batch and keeps them to its backward (keep_full_weight), where "
                "z2 gathers once a step",
            )  # fmt: skip
        elif p.zero == 1:
            yield Said(
                "zero", cut, "refused", runs_as=KEPT,
                why=f"{self.called} cannot cut the optimizer's state alone (z1): FSDP2 cuts gradients and weights too; use z3",
            )  # fmt: skip
        else:
            yield Said(
                "zero", cut, "refused", runs_as={"zero": 3},
                why=f"{self.called} has ep {p.ep} inside of fsdp_size, which cuts all weights: the plan has whole ones (z0); use z3",
            )  # fmt: skip
        yield Said("replicate", why="dp_replicate_size: see zero")
        tied = " (a tied table is kept from its forward to its backward in any case)" if setup.model.tied else ""
        yield Said("reshard", why=f"fsdp_plan: see zero{tied}")

    def _context(self, setup: Setup, nearest: Mapping[str, Any]) -> Iterator[Said]:
        if setup.point.cp == 1:
            yield Said("cp", why="cp 1")
            yield Said("context", why="cp 1")
            return
        why = f"{self.called} has no context parallelism: the plan has cp {setup.point.cp}; accelerate has it"
        for word in ("cp", "context"):
            yield Said(word, level="refused", why=why, runs_as=nearest)

    def _experts(self, setup: Setup) -> Iterator[Said]:
        p = setup.point
        size = p.ep * (p.tp if p.whole_experts else 1)
        options: dict[str, Any] = {}
        if size > 1:
            options["DistributedConfig.ep_size"] = p.ep * p.tp
            options["DistributedConfig.ep_plan"] = expert_rules(setup)
            options["DistributedConfig.ep_implementation"] = "all_to_all"
        yield Said("ep", options, why="tokens go to their experts and back by all-to-all" if size > 1 else "ep 1")
        if p.ep > 1 and p.tp > 1 and not p.whole_experts:
            yield Said(
                "whole_experts", level="refused", runs_as={"whole_experts": True},
                why=f"{self.called} gives each member of ep × tp whole experts: the plan cuts each expert over tp {p.tp}",
            )  # fmt: skip
        else:
            yield Said(
                "whole_experts", why="ep_size counts tp" if size > 1 else "experts are cut inside, as tp_plan says"
            )

    def _precision(self, setup: Setup) -> Said:
        r = setup.problem.recipe
        options: dict[str, Any] = {"TrainingArguments.bf16": False, "TrainingArguments.fp16": False}
        options["from_pretrained.dtype"] = r.param_dtype
        sharded = setup.replicas > 1
        why = ""
        if sharded:
            options["DistributedConfig.fsdp_cpu_offload"] = False
            options["DistributedConfig.fsdp_mixed_precision"] = False
        if r.matmul_dtype not in ("", r.compute_dtype):
            why = f"{self.called} computes products in {r.compute_dtype} like the rest: the plan has them in {r.matmul_dtype}"
        elif r.param_dtype == r.compute_dtype:
            pass
        elif r.param_dtype == "float32" and r.compute_dtype in PRECISIONS and not sharded:
            options[f"TrainingArguments.{PRECISIONS[r.compute_dtype]}"] = True
        elif (r.param_dtype, r.compute_dtype) == ("float32", "bfloat16"):
            options["DistributedConfig.fsdp_mixed_precision"] = True
        else:
            why = (
                f"{self.called} computes in bfloat16 with float32 weights, or in the weights' own type: the plan computes in "
                f"{r.compute_dtype} with {r.param_dtype} weights"
            )
        if why:
            return Said("precision", options, "refused", why)
        wanted = "float32" if r.param_dtype != r.compute_dtype else r.param_dtype
        if r.grad_dtype != wanted:
            return Said(
                "precision", options, "close", f"{self.called} sums gradients in {wanted}, not in {r.grad_dtype}"
            )
        return Said("precision", options)

    def _optimizer(self, setup: Setup) -> Said:
        name = OPTIMIZERS.get(setup.problem.recipe.optimizer, "")
        if not name:
            return Said(
                "optimizer", why=f"the user's code: Trainer(optimizers=…) with {setup.problem.recipe.optimizer}"
            )
        return Said("optimizer", {"TrainingArguments.optim": name})


def _shape(replicate: int, shards: int) -> dict[str, Any]:
    return {"DistributedConfig.dp_replicate_size": replicate, "DistributedConfig.fsdp_size": shards}


def _groups(setup: Setup) -> dict[str, Any]:
    return {"DistributedConfig.fsdp_plan": sharding_rules(setup)}


def _every(setup: Setup) -> dict[str, Any]:
    """Gradients that rest cut are summed every micro-batch (else whole ones are kept between micro-batches); over copies once a
    step, as both the plan and the library have it."""
    p = setup.point
    every = setup.replicas > 1 and p.replicate == 1 and p.zero == 3
    settings = {"gradient_accumulation_kwargs": {"sync_each_batch": every}}
    return {"TrainingArguments.accelerator_config": settings}


def _experts(s: Setup) -> str:
    size, n = s.point.ep * (s.point.tp if s.point.whole_experts else 1), s.model.experts
    if size == 1 or (n and n % size == 0):
        return ""
    return f"ep to divide the {n} experts: {size} does not; use {divisors_near(n, size) if n else 1}"


def _arguments(arguments: Mapping[str, Any]) -> list[str]:
    return [
        "def arguments(**own):",
        '    """`own`: what is not in a plan, as output_dir and learning_rate."""',
        "    return " + call("TrainingArguments", {**arguments, "**own": Name("")}, 4).replace("**own=,", "**own,"),
    ]


def _trainer() -> list[str]:
    return [
        "class VocabularyTrainer(Trainer):",
        '    """Trains with scores that stay cut over the vocabulary."""',
        "",
        "    def training_step(self, *inputs, **options):",
        "        with loss_parallel():",
        "            loss = super().training_step(*inputs, **options)",
        "        return loss.full_tensor() if isinstance(loss, DTensor) else loss",
    ]
