"""Megatron-Bridge 0.6.2: llama-3.1-8b on 8 devices. Not in the plan: data, learning rate, checkpoints."""

import torch
from megatron.bridge.recipes.llama.llama3 import llama31_8b_pretrain_config as recipe
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig


def config():
    cfg = recipe()
    cfg.model.seq_length = 32
    cfg.dataset.seq_length = 32
    cfg.dist.use_tp_pp_dp_mapping = False
    cfg.model.tensor_model_parallel_size = 2
    cfg.model.sequence_parallel = True
    cfg.model.pipeline_model_parallel_size = 2
    cfg.model.context_parallel_size = 1
    cfg.model.cp_comm_type = "p2p"
    cfg.model.expert_model_parallel_size = 1
    cfg.model.expert_tensor_parallel_size = None
    cfg.ddp.num_distributed_optimizer_instances = 1
    cfg.ddp.use_distributed_optimizer = True
    cfg.optimizer.use_distributed_optimizer = True
    cfg.ddp.use_megatron_fsdp = False
    cfg.dist.use_megatron_fsdp = False
    cfg.dist.use_torch_fsdp2 = False
    cfg.ddp.overlap_grad_reduce = True
    cfg.ddp.overlap_param_gather = True
    cfg.ddp.data_parallel_sharding_strategy = "no_shard"
    cfg.comm_overlap = None
    cfg.checkpoint.ckpt_format = "torch_dist"
    cfg.model.pipeline_model_parallel_layout = "E|tt|t|tL"
    cfg.model.account_for_embedding_in_pipeline_split = False
    cfg.model.account_for_loss_in_pipeline_split = False
    cfg.model.num_layers_in_first_pipeline_stage = None
    cfg.model.num_layers_in_last_pipeline_stage = None
    cfg.model.virtual_pipeline_model_parallel_size = 2
    cfg.model.overlap_p2p_comm = True
    cfg.model.batch_p2p_comm = False
    cfg.train.micro_batch_size = 1
    cfg.train.global_batch_size = 64
    cfg.model.recompute_granularity = "full"
    cfg.model.recompute_method = "block"
    cfg.model.recompute_num_layers = 1
    cfg.model.recompute_modules = None
    cfg.mixed_precision = MixedPrecisionConfig(bf16=True, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, autocast_enabled=False, grad_reduce_in_fp32=True)
    cfg.optimizer.use_precision_aware_optimizer = False
    cfg.optimizer.optimizer = "adam"
    return cfg


if __name__ == "__main__":
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    pretrain(config(), forward_step)
