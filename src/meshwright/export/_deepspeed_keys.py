"""Keys of DeepSpeed's JSON file (0.19.8: runtime/config.py, runtime/constants.py, runtime/zero/config.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TELLING = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization", "gradient_accumulation_steps",
    "zero_allow_untested_optimizer",
)  # fmt: skip
"""Keys that no other trainer's file has at its top."""

KNOWN = frozenset((
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "managed_gradient_accumulation",
    "steps_per_print", "dump_state", "disable_python_gc", "disable_allgather", "communication_data_type",
    "seq_parallel_communication_data_type", "prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op",
    "zero_optimization", "activation_checkpointing", "comms_logger", "tensorboard", "wandb", "csv_monitor", "comet",
    "monitor_config", "gradient_clipping", "fp16", "bf16", "bfloat16", "torch_autocast", "optimizer", "scheduler",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "flops_profiler", "wall_clock_breakdown",
    "memory_breakdown", "autotuning", "use_data_before_expert_parallelism", "hybrid_engine", "pipeline", "data_efficiency",
    "checkpoint", "data_types", "aio", "dataloader_drop_last", "log_level", "datastates_ckpt", "weight_quantization",
    "compile", "timers", "tensor_parallel", "expert_parallel", "sequence_parallel_size", "vocabulary_size",
))  # fmt: skip

ZERO = frozenset((
    "stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce",
    "allgather_partitions", "allgather_bucket_size", "overlap_comm", "compute_grad_norm", "load_from_fp32_weights",
    "elastic_checkpoint", "offload_param", "offload_optimizer", "zenflow", "sub_group_size", "cpu_offload_param",
    "cpu_offload_use_pin_memory", "cpu_offload", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance",
    "stage3_gather_16bit_weights_on_model_save", "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "stage3_gather_fp16_weights_on_model_save",
    "ignore_unused_parameters", "legacy_stage1", "round_robin_gradients", "parameter_alignment", "zero_hpz_partition_size",
    "zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients", "memory_efficient_linear",
    "pipeline_loading_checkpoint", "override_module_apply", "log_trace_cache_warnings", "enable_sanity_checks",
    "save_muon_momentum_buffer_in_memory", "leaf_module",
))  # fmt: skip

REMOVED = frozenset((
    "nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue", "sparse_attention",
    "elasticity", "graph_harvesting", "curriculum_learning", "progressive_layer_drop", "zero_optimization.mics_shard_size",
    "zero_optimization.mics_hierarchical_params_gather", "zero_optimization.zeropp_loco_param",
))  # fmt: skip
"""Refused by runtime/config.py itself."""

ASSUMED: Mapping[str, tuple[Any, str]] = {
    "zero_optimization.offload_optimizer": ({"device": "none"}, "optimizer state stays on the device"),
    "zero_optimization.offload_param": ({"device": "none"}, "weights stay on the device"),
    "zero_optimization.cpu_offload": (False, "optimizer state stays on the device"),
    "zero_optimization.cpu_offload_param": (False, "weights stay on the device"),
    "zero_optimization.zenflow": (None, "the optimizer runs after the backward"),
    "zero_optimization.zero_hpz_partition_size": (1, "no second copy of the weights in a group"),
    "zero_optimization.zero_quantized_weights": (False, "weights are gathered unquantized"),
    "zero_optimization.zero_quantized_nontrainable_weights": (False, "weights are kept unquantized"),
    "zero_optimization.zero_quantized_gradients": (False, "gradients are reduced unquantized"),
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": (False, "weights are gathered by all-gathers"),
    "tensor_parallel.tp_overlap_comm": (False, "tensor-parallel sums wait"),
    "communication_data_type": (None, "gradients are reduced as they are summed"),
    "fp16.fp16_master_weights_and_grads": (False, "master weights in float32"),
    "bf16.bf16_master_weights_and_grads": (False, "master weights in float32"),
    "bf16.bf16_optimizer_states": (False, "optimizer state in float32"),
    "compile.deepcompile": (False, "kernels as without DeepCompile"),
    "hybrid_engine.enabled": (False, "training only"),
    "weight_quantization": (None, "weights are not quantized"),
    "data_efficiency.enabled": (False, "all samples of one length"),
    "expert_parallel.comm_backend": ("comm", "tokens by all-to-all"),
}
"""Setting that changes speed or memory -> (its default, what is priced instead)."""
