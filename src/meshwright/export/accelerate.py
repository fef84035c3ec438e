"""accelerate: FSDP2 with `parallelism_config`, in its YAML, and what its YAML has no key for, in Python.

Read in 1.15.0: parallelism_config.py, accelerator.py, state.py, utils/{dataclasses,fsdp_utils}.py, commands/launch.py. How it runs a plan:
ddp           one copy of the weights a process (MULTI_GPU)
fsdp          FSDP2 over dp_shard × cp, copies over dp_replicate
tensor        transformers cuts and shards the model as it loads it, accelerate is told the sizes: its own FSDP2 preparation of a cut
              model imports a name that transformers 5.24.0 no longer has
ulysses       DeepSpeed, on heads: the launcher refuses parallelism_config without FSDP2, so that the sizes stand in the script
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._words import count
from ._accelerate_files import PREFIX, Way, way_of, written
from ._accelerate_read import read
from ._hf import KEPT, PRECISIONS, conditions, devices, folded, pipeline, recompute, sequence
from ._hf_modules import sharding_rules, tensor_rules
from ._words import divisors_near
from .base import Exporter, Read
from .model import Model
from .said import Condition, Said
from .setup import Setup


class Accelerate(Exporter):
    name = "accelerate"
    title = "accelerate"
    package = "accelerate"
    versions = ("1.15.0",)
    source = "huggingface/accelerate, the released package"
    order = ("dpr", "dp", "cp", "tp")
    takes = "its YAML, with or without the script's calls"
    left_out = "data set, learning rate, addresses of machines"

    @classmethod
    def recognises(cls, text: str) -> bool:
        return (
            any(line.startswith(("distributed_type:", "compute_environment:")) for line in text.splitlines())
            or "Accelerator(" in text
        )

    def said(self, setup: Setup) -> Iterator[Said]:
        p, way = setup.point, way_of(setup)
        nearest = folded(
            setup, *(["pp", "ep", "cp"] if p.cp > 1 and (p.tp > 1 or p.context == "halo") else ["pp", "ep"])
        )
        yield Said(
            "model",
            why="any torch module; layers that FSDP wraps are its _no_split_modules unless you name their class",
        )
        yield devices(setup, self.called, "dp_replicate, dp_shard, cp, tp", nearest)
        yield from pipeline(setup, self.called, "", nearest)
        yield from self._stored(setup, way)
        yield Said("dp", _sizes(setup, way))
        yield Said("tp", self._tensor(setup) if way == "tensor" else {}, why="" if way == "tensor" else "tp 1")
        yield sequence(setup, self.called)
        yield from self._context(setup, way, nearest)
        yield from self._experts(setup, nearest)
        yield Said("micro_batch", {"script.MICRO_BATCH": p.micro_batch})
        yield Said("micro_batches", _accumulation(setup, way))
        yield Said("samples", {"script.SAMPLES": setup.layout.samples})
        on = "fsdp_config.fsdp_activation_checkpointing" if way == "fsdp" else "script.activation_checkpointing"
        yield recompute(setup, self.called, {on: False}, {on: True})
        yield self._precision(setup, way)
        yield Said("optimizer", why=f"the user's code: {setup.problem.recipe.optimizer}")

    def conditions(self) -> Sequence[Condition]:
        return (
            *conditions(),
            Condition("shards beside copies", _shards),
            Condition("positions over context", _positions),
            Condition("heads over Ulysses", _ulysses_heads),
        )

    def files(self, setup: Setup) -> Mapping[str, str]:
        options = {key: value for s in self.said(setup) for key, value in s.options.items()}
        return written(setup, options, self.called, self.left_out)

    def read(self, files: Mapping[str, str], model: Model, world: int) -> Read:
        return read(files, model, world)

    def _stored(self, setup: Setup, way: Way) -> Iterator[Said]:
        """zero, replicate, reshard."""
        p = setup.point
        tied = "; a tied table is kept from its forward to its backward in any case" if setup.model.tied else ""
        plain = {"zero": 0, "reshard": True, "replicate": 1}
        if way == "ulysses":
            yield Said("zero", {"deepspeed.zero_optimization.stage": p.zero})
            kept = p.zero == 3 and not p.reshard
            yield (
                Said("reshard", level="refused", why=f"{self.called} with DeepSpeed gathers weights again for the backward", runs_as={"reshard": True})
                if kept
                else Said("reshard", why="DeepSpeed gathers weights again for the backward", runs_as={} if p.reshard else {"reshard": True})
            )  # fmt: skip
            yield (
                Said("replicate", why="one group")
                if p.replicate == 1
                else Said("replicate", level="refused", runs_as={"replicate": 1}, why=f"{self.called} with DeepSpeed cuts over all replicas: the plan has {p.replicate} copies of what it cuts")
            )  # fmt: skip
            return
        if way == "ddp" or (setup.replicas == 1 and p.cp == 1):
            options: dict[str, Any] = {}
            if way == "ddp":
                options["distributed_type"] = "MULTI_GPU" if setup.world > 1 else "NO"
            yield Said("zero", options, why="one copy of the weights a process", runs_as=plain)
            yield Said("replicate", why="whole copies")
            yield Said("reshard", why="whole weights stay")
            return
        options = {"distributed_type": "FSDP", "fsdp_config.fsdp_version": 2} if way == "fsdp" else {}
        if p.zero == 3:
            yield Said("zero", options)
        elif p.zero == 2:
            yield Said(
                "zero", options, "close", runs_as=KEPT,
                why=f"{self.called} gathers weights every micro-batch and keeps them to its backward (fsdp_reshard_after_forward: "
                "false), where z2 gathers once a step",
            )  # fmt: skip
        elif p.zero == 1:
            yield Said(
                "zero", options, "refused", runs_as=KEPT,
                why=f"{self.called} cannot cut the optimizer's state alone (z1): FSDP2 cuts gradients and weights too; use z3, or z0",
            )  # fmt: skip
        else:
            beside = f"cp {p.cp}" if way == "fsdp" else f"tp {p.tp} and dp {setup.replicas}"
            yield Said(
                "zero", options, "refused", runs_as={"zero": 3},
                why=f"{self.called} has no whole copies of weights (z0) with {beside}: FSDP2 cuts them; use z3",
            )  # fmt: skip
        yield Said("replicate", why="dp_replicate_size: see dp")
        keep = p.zero in (1, 2) or not p.reshard
        yield Said(
            "reshard",
            {"fsdp_config.fsdp_reshard_after_forward": not keep} if way == "fsdp" else {},
            why=f"as the plan has it{tied}",
        )

    def _tensor(self, setup: Setup) -> dict[str, Any]:
        """What transformers is told."""
        p = setup.point
        found: dict[str, Any] = {
            "DistributedConfig.tp_size": p.tp,
            "DistributedConfig.tp_plan": tensor_rules(setup).rules,
        }
        if setup.replicas > 1:
            sizes = {
                "dp_replicate_size": p.replicate,
                "fsdp_size": setup.replicas // p.replicate,
                "fsdp_plan": sharding_rules(setup),
            }
            found |= {f"DistributedConfig.{key}": value for key, value in sizes.items()}
        return found | {"distributed_type": "MULTI_GPU"}

    def _context(self, setup: Setup, way: Way, nearest: Mapping[str, Any]) -> Iterator[Said]:
        p = setup.point
        if p.cp == 1:
            yield Said("cp", why="cp 1")
            yield Said("context", why="cp 1")
        elif way == "tensor" or p.context == "halo":
            why = f"{self.called} has no cp beside tp: its FSDP2 preparation of a cut model imports a name that transformers 5.24.0 no longer has"
            if p.context == "halo":
                why = f"{self.called} cuts positions of text over cp, not rows of images (halo)"
            for word in ("cp", "context"):
                yield Said(word, level="refused", why=why, runs_as=nearest)
        elif way == "ulysses":
            yield Said(
                "cp",
                {
                    "ParallelismConfig.sp_size": p.cp,
                    "ParallelismConfig.sp_backend": "deepspeed",
                    "distributed_type": "DEEPSPEED",
                },
            )
            yield Said("context", {"DeepSpeedSequenceParallelConfig.sp_seq_length_is_variable": False, "DeepSpeedSequenceParallelConfig.sp_seq_length": setup.model.seq, "DeepSpeedSequenceParallelConfig.sp_attn_implementation": "sdpa"})  # fmt: skip
        else:
            yield Said("cp", {f"{PREFIX}cp_size": p.cp, f"{PREFIX}cp_backend": "torch"})
            yield Said(
                "context",
                {f"{PREFIX}cp_comm_strategy": "allgather"},
                why="each member has positions of the head and of the tail, which evens out causal attention",
            )

    def _experts(self, setup: Setup, nearest: Mapping[str, Any]) -> Iterator[Said]:
        p = setup.point
        if p.ep > 1 or (p.whole_experts and p.tp > 1):
            have = f"ep {p.ep}" if p.ep > 1 else f"experts over tp {p.tp}"
            why = f"{self.called} has no expert parallelism: the plan has {have}; transformers has it"
            yield Said("ep", level="refused", why=why, runs_as=nearest)
            yield Said("whole_experts", level="refused", why=why, runs_as={"whole_experts": False})
            return
        yield Said("ep", why="ep 1")
        yield Said("whole_experts", why="experts are cut inside, as tp_plan says" if p.tp > 1 else "tp 1")

    def _precision(self, setup: Setup, way: Way) -> Said:
        """Mixed: float32 weights, cast for computing, gradients summed in the type that the plan has for them."""
        r = setup.problem.recipe
        mixed = r.param_dtype != r.compute_dtype
        options: dict[str, Any] = {
            "mixed_precision": PRECISIONS.get(r.compute_dtype, "no") if mixed else "no",
            "script.dtype": r.param_dtype,
        }
        why = ""
        if r.matmul_dtype not in ("", r.compute_dtype):
            why = f"{self.called} has fp8 in a section of its own kernels' library: the plan has products in {r.matmul_dtype}"
        elif r.compute_dtype not in PRECISIONS or (mixed and r.param_dtype != "float32"):
            why = f"{self.called} computes in bf16 or fp16 with float32 weights, or in the weights' own type: the plan computes in {r.compute_dtype} with {r.param_dtype} weights"
        if why:
            return Said("precision", options, "refused", why)
        if way == "fsdp" and mixed:
            options["MixedPrecisionPolicy.param_dtype"] = options["MixedPrecisionPolicy.output_dtype"] = r.compute_dtype
            options["MixedPrecisionPolicy.reduce_dtype"] = r.grad_dtype
        elif way == "ulysses":
            options["deepspeed.communication_data_type"] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[
                r.grad_dtype
            ]
        elif way == "tensor" and mixed and setup.replicas > 1:
            if r.compute_dtype != "bfloat16":
                return Said(
                    "precision",
                    options,
                    "refused",
                    f"{self.called} beside tp computes in bfloat16 or in the weights' own type, not in {r.compute_dtype}",
                )
            options |= {
                "mixed_precision": "no",
                "DistributedConfig.fsdp_cpu_offload": False,
                "DistributedConfig.fsdp_mixed_precision": True,
            }
        summed = "float32" if mixed else r.param_dtype
        if way in ("ddp", "tensor") and r.grad_dtype != summed:
            return Said(
                "precision", options, "close", f"{self.called} sums gradients in {summed} here, not in {r.grad_dtype}"
            )
        return Said("precision", options)


def _sizes(setup: Setup, way: Way) -> dict[str, Any]:
    p = setup.point
    shards = setup.replicas // p.replicate
    if way == "ddp":
        return {"num_processes": setup.world}
    if way == "ulysses":
        return {"ParallelismConfig.dp_shard_size": setup.replicas}
    prefix = PREFIX if way == "fsdp" else "ParallelismConfig."
    found = {f"{prefix}dp_replicate_size": p.replicate, f"{prefix}dp_shard_size": shards}
    return found | ({f"{prefix}tp_size": p.tp} if way == "tensor" else {})


def _accumulation(setup: Setup, way: Way) -> dict[str, Any]:
    """FSDP2 would keep whole gradients between micro-batches: they are cut after each. Copies are summed once a step, as planned."""
    name = "GradientAccumulationPlugin"
    return {
        f"{name}.num_steps": setup.layout.micro_batches,
        f"{name}.sync_each_batch": way in ("fsdp", "tensor") and setup.point.zero > 0,
    }


def _shards(s: Setup) -> str:
    """ParallelismConfig.__post_init__."""
    p = s.point
    if (p.tp == 1 and p.cp == 1) or p.replicate == 1 or s.replicas > p.replicate:
        return ""
    beside = f"tp {p.tp}" if p.tp > 1 else f"cp {p.cp}"
    return (
        f"dp_shard_size above 1 beside dp_replicate_size {p.replicate} and {beside}: the plan has none; use replicate 1"
    )


def _positions(s: Setup) -> str:
    """torch deals each member a part of the head and one of the tail; DeepSpeed one part."""
    p, n = s.point, s.model.seq
    each = p.cp if p.context == "ulysses" else 2 * p.cp
    if p.cp == 1 or n % each == 0:
        return ""
    return f"positions in a multiple of {'' if p.context == 'ulysses' else '2 × '}cp {p.cp}: {count(n)} are not; use {count(-(-n // each) * each)}"


def _ulysses_heads(s: Setup) -> str:
    p, heads, kv = s.point, s.model.heads, s.model.kv_heads
    if p.cp == 1 or p.context != "ulysses":
        return ""
    if heads % p.cp:
        return f"sp to divide the {heads} heads: {p.cp} does not; use {divisors_near(heads, p.cp)}"
    if kv and kv % p.cp and p.cp % kv:
        return f"sp to divide the {kv} key-value heads, or they sp: {p.cp} and {kv} do neither; use {divisors_near(kv, p.cp)}"
    return ""
