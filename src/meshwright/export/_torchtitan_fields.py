"""Settings of torchtitan that a plan says, or that change what it costs; and what its own recipes start from.

Sources: 0.3.0 config/configs.py; main config/{parallelism,training,compile}.py at 15e2431 and f204eb6; before 0.3.0
config/job_config.py (TOML, flags).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RELEASE, MAIN = "0.3.0", "main"


@dataclass(frozen=True, slots=True)
class Field:
    """One setting."""

    default: object
    versions: tuple[str, ...] = (RELEASE, MAIN)
    """Generations that have it."""
    assumed: str = ""
    """Of one that changes speed or memory and that no plan says: what is assumed instead of another value than the default."""


FIELDS: Mapping[str, Field] = {
    "training.local_batch_size": Field(8, (RELEASE,)),
    "training.global_batch_size": Field(-1, (RELEASE,)),
    "training.seq_len": Field(2048, (RELEASE,)),
    "training.num_tokens_per_microbatch_per_dp_rank": Field(16384, (MAIN,)),
    "training.num_tokens_per_train_step": Field(-1, (MAIN,)),
    "training.max_context_length": Field(2048, (MAIN,)),
    "training.max_norm": Field(1.0),
    "training.steps": Field(10000),
    "training.enable_cpu_offload": Field(False, assumed="parameters, gradients and optimizer states on the devices"),
    "training.disable_cuda_graphs": Field(False),
    "training.dtype": Field("float32"),
    "training.mixed_precision_param": Field("bfloat16"),
    "training.mixed_precision_reduce": Field("float32"),
    "training.gc_freq": Field(50),
    "training.gc_debug": Field(False),
    "parallelism.data_parallel_replicate_degree": Field(1),
    "parallelism.data_parallel_shard_degree": Field(-1),
    "parallelism.fsdp_reshard_after_forward": Field("default"),
    "parallelism.fsdp_defer_gradient_reduction": Field(False, (MAIN,)),
    "parallelism.enable_fsdp_symm_mem": Field(False, (RELEASE,), "collectives of NCCL without symmetric memory"),
    "parallelism.fsdp_symm_mem_scope": Field(None, (MAIN,), "collectives of NCCL without symmetric memory"),
    "parallelism.tensor_parallel_degree": Field(1),
    "parallelism.enable_sequence_parallel": Field(True),
    "parallelism.spmd_backend": Field("spmd_types", (RELEASE,), "collectives of spmd_types"),
    "parallelism.pipeline_parallel_degree": Field(1),
    "parallelism.module_fqns_per_model_part": Field(None, (RELEASE,)),
    "parallelism.pipeline_parallel_module_fqns_per_model_part": Field(None, (MAIN,)),
    "parallelism.pipeline_parallel_first_stage_less_layers": Field(1),
    "parallelism.pipeline_parallel_last_stage_less_layers": Field(1),
    "parallelism.pipeline_parallel_layers_per_stage": Field(None),
    "parallelism.pipeline_parallel_schedule": Field("1F1B"),
    "parallelism.pipeline_parallel_schedule_csv": Field(""),
    "parallelism.pipeline_parallel_microbatch_size": Field(1, (RELEASE,)),
    "parallelism.num_pp_microbatches": Field(1, (MAIN,)),
    "parallelism.pipeline_parallel_max_outstanding_sends": Field(None, (MAIN,), "sends that wait for nothing"),
    "parallelism.pp_max_unsharded_active_stages": Field(None, (MAIN,), "all stages of a rank stay gathered through a step"),
    "parallelism.pp_num_unshard_lookahead_factor": Field("auto", (MAIN,)),
    "parallelism.context_parallel_degree": Field(1),
    "parallelism.context_parallel_load_balancer": Field("headtail"),
    "parallelism.context_parallel_ptrr_mask_key": Field(None, (RELEASE,)),
    "parallelism.expert_parallel_degree": Field(1),
    "parallelism.save_parallelism_file": Field(None, (MAIN,)),
    "compile.enable": Field(False, (RELEASE,)),
    "compile.enable_async_tensor_parallel": Field(False, assumed="collectives of tensor parallelism beside no product"),
    "compile.components": Field(["model", "loss"]),
    "compile.backend": Field("inductor"),
    "activation_checkpoint": Field("selective"),
}  # fmt: skip
"""Section and field -> setting. activation_checkpoint: none, selective, full, memory_budget or region."""

OTHER_SECTIONS = (
    "model", "optimizer", "lr_scheduler", "metrics", "profiler", "profiling", "tokenizer", "dataloader", "checkpoint", "comm", "debug",
    "validator", "validation", "override", "loss", "experimental", "job", "fault_tolerance", "float8", "mx", "quantize",
    "memory_estimation", "model_converters", "model_spec", "hf_assets_path", "dump_folder",
)  # fmt: skip
"""Say nothing of placement or order."""
EIGHT_BITS = ("float8", "mx", "quantize", "model_converters")
"""Of these, sections that change the width of products."""

RENAMED: Mapping[str, str] = {
    "training.batch_size": "training.local_batch_size",
    "training.data_parallel_replicate_degree": "parallelism.data_parallel_replicate_degree",
    "training.data_parallel_shard_degree": "parallelism.data_parallel_shard_degree",
    "training.tensor_parallel_degree": "parallelism.tensor_parallel_degree",
    "training.fsdp_reshard_after_forward": "parallelism.fsdp_reshard_after_forward",
    "training.compile": "compile.enable",
    "experimental.pipeline_parallel_degree": "parallelism.pipeline_parallel_degree",
    "experimental.pipeline_parallel_schedule": "parallelism.pipeline_parallel_schedule",
    "experimental.pipeline_parallel_schedule_csv": "parallelism.pipeline_parallel_schedule_csv",
    "experimental.context_parallel_degree": "parallelism.context_parallel_degree",
    "experimental.enable_async_tensor_parallel": "compile.enable_async_tensor_parallel",
    "parallelism.enable_async_tensor_parallel": "compile.enable_async_tensor_parallel",
    "activation_checkpoint.mode": "activation_checkpoint",
}
"""Names of releases before 0.3.0 -> today's."""

GONE: Mapping[str, str] = {
    "parallelism.pipeline_parallel_split_points": "list the modules of every stage in module_fqns_per_model_part instead",
    "experimental.pipeline_parallel_split_points": "list the modules of every stage in module_fqns_per_model_part instead",
    "experimental.pipeline_parallel_microbatches": "give pipeline_parallel_microbatch_size instead",
    "parallelism.pipeline_parallel_microbatches": "give pipeline_parallel_microbatch_size instead",
}
"""Names that nothing stands for any more -> what to write."""
HARMLESS = (
    "parallelism.disable_loss_parallel",
    "parallelism.expert_tensor_parallel_degree",
    "training.deterministic",
    "training.seed",
)
"""Older names of what no plan says."""


@dataclass(frozen=True, slots=True)
class Base:
    """A recipe of torchtitan's own."""

    module: str
    """In torchtitan.models."""
    flavor: str
    settings: Mapping[str, object]


def _base(module: str, flavor: str, again: str, batch: int, seq: int, **other: object) -> Base:
    first = {"activation_checkpoint": again, "training.local_batch_size": batch, "training.seq_len": seq}
    return Base(module, flavor, first | {k.replace("__", "."): v for k, v in other.items()})


_LOOPED: Mapping[str, object] = {"parallelism__pipeline_parallel_schedule": "Interleaved1F1B"}
_EXPERTS: Mapping[str, object] = {
    **_LOOPED,
    "training__disable_cuda_graphs": True,
    "compile__enable": True,
    "compile__components": ["loss"],
}

BASES: Mapping[str, Base] = {
    "llama3_debugmodel": _base("llama3", "debugmodel", "selective", 8, 2048, **_LOOPED),
    "llama3_8b": _base("llama3", "8B", "selective", 1, 8192),
    "llama3_70b": _base("llama3", "70B", "full", 8, 8192, parallelism__tensor_parallel_degree=8),
    "llama3_405b": _base(
        "llama3", "405B", "full", 2, 8192, parallelism__tensor_parallel_degree=8, compile__enable=True,
        compile__enable_async_tensor_parallel=True,
    ),
    "deepseek_v3_debugmodel": _base("deepseek_v3", "debugmodel", "selective", 8, 2048),
    "deepseek_v3_16b": _base("deepseek_v3", "16B", "selective", 4, 4096, **_EXPERTS, parallelism__expert_parallel_degree=8),
    "deepseek_v3_671b": _base("deepseek_v3", "671B", "selective", 4, 4096, **_EXPERTS, parallelism__expert_parallel_degree=2),
    "qwen3_debugmodel": _base("qwen3", "debugmodel", "selective", 8, 2048),
    "qwen3_0_6b": _base("qwen3", "0.6B", "selective", 4, 4096),
    "qwen3_1_7b": _base("qwen3", "1.7B", "selective", 4, 4096),
    "qwen3_14b": _base("qwen3", "14B", "full", 4, 4096),
    "qwen3_32b": _base("qwen3", "32B", "full", 2, 4096),
    "qwen3_30b_a3b": _base("qwen3", "30B-A3B", "full", 2, 4096),
    "gpt_oss_20b": _base("gpt_oss", "20b", "full", 1, 8192),
    "gpt_oss_120b": _base("gpt_oss", "120b", "full", 1, 8192),
}  # fmt: skip
"""Function in the module's config_registry of 0.3.0 -> what it sets other than the defaults."""


@dataclass(frozen=True, slots=True)
class Own:
    """A model of ours that torchtitan has."""

    base: str
    """The recipe whose data, learning rate and checkpoints stay."""
    flavor: str
    """Of the module's model_registry."""
    layers: int

    @property
    def module(self) -> str:
        return BASES[self.base].module


OWN: Mapping[str, Own] = {
    "llama-3.1-8b": Own("llama3_8b", "8B", 32),
    "llama-3.1-70b": Own("llama3_70b", "70B", 80),
    "llama-3.1-405b": Own("llama3_405b", "405B", 126),
    "deepseek-v3": Own("deepseek_v3_671b", "671B", 61),
    "qwen3-235b": Own("qwen3_30b_a3b", "235B-A22B", 94),
}
BEFORE, AFTER = ("tok_embeddings",), ("norm", "lm_head")
"""Modules of its decoders before and after layers.0 …"""
