"""Megatron-Bridge 0.6.2: mixtral-8x7b on 16 devices. Not in the plan: data, learning rate, checkpoints."""

import torch
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig


def config(recipe):  # the recipe of your model: there is none by its name
    cfg = recipe()
    cfg.model.seq_length = 32
    cfg.dataset.seq_length = 32
    cfg.dist.use_tp_pp_dp_mapping = False
    cfg.model.tensor_model_parallel_size = 2
    cfg.model.sequence_parallel = True
    cfg.model.pipeline_model_parallel_size = 1
    cfg.model.context_parallel_size = 1
    cfg.model.cp_comm_type = "p2p"
    cfg.model.expert_model_parallel_size = 8
    cfg.model.moe_token_dispatcher_type = "allgather"
    cfg.model.expert_tensor_parallel_size = 1
    cfg.ddp.num_distributed_optimizer_instances = 1
    cfg.ddp.use_distributed_optimizer = True
    cfg.optimizer.use_distributed_optimizer = True
    cfg.ddp.use_megatron_fsdp = True
    cfg.dist.use_megatron_fsdp = True
    cfg.dist.use_torch_fsdp2 = False
    cfg.ddp.overlap_grad_reduce = True
    cfg.ddp.overlap_param_gather = True
    cfg.ddp.data_parallel_sharding_strategy = "optim_grads_params"
    cfg.comm_overlap = None
    cfg.checkpoint.ckpt_format = "fsdp_dtensor"
    cfg.model.pipeline_model_parallel_layout = None
    cfg.model.account_for_embedding_in_pipeline_split = False
    cfg.model.account_for_loss_in_pipeline_split = False
    cfg.model.num_layers_in_first_pipeline_stage = None
    cfg.model.num_layers_in_last_pipeline_stage = None
    cfg.model.virtual_pipeline_model_parallel_size = None
    cfg.model.overlap_p2p_comm = False
    cfg.model.batch_p2p_comm = True
    cfg.train.micro_batch_size = 1
    cfg.train.global_batch_size = 64
    cfg.model.recompute_granularity = "selective"
    cfg.model.recompute_method = None
    cfg.model.recompute_num_layers = None
    cfg.model.recompute_modules = ['core_attn']
    cfg.ddp.megatron_fsdp_main_grads_dtype = torch.float32
    cfg.ddp.megatron_fsdp_grad_comm_dtype = torch.float32
    cfg.mixed_precision = MixedPrecisionConfig(bf16=True, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, autocast_enabled=False, grad_reduce_in_fp32=True)
    cfg.optimizer.use_precision_aware_optimizer = False
    cfg.optimizer.optimizer = "adam"
    return cfg
