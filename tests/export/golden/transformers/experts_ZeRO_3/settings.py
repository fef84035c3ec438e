"""mixtral-8x7b for transformers 5.24.0: dp4 ep4 z3, as planned.

A step has 128 samples: 1 x 8 micro-batches x 16 replicas.
Not in a plan, yours to add: data set, learning rate, output folder.
"""

import torch
from transformers import AutoModelForCausalLM, TrainingArguments
from transformers.distributed import DistributedConfig


def load(source, kind=AutoModelForCausalLM):
    """The model at `source`, each rank with its part."""
    return kind.from_pretrained(
        source,
        dtype=torch.float32,
        distributed_config=DistributedConfig(
            tp_size=1,
            fsdp_size=16,
            dp_replicate_size=1,
            fsdp_plan={
                "model.embed_tokens": "free_full_weight",
                "model.layers.*": "free_full_weight",
                "model.norm": "free_full_weight",
                "lm_head": "free_full_weight",
            },
            fsdp_cpu_offload=False,
            fsdp_mixed_precision=True,
            ep_size=4,
            ep_plan={
                "model.layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
                "model.layers.*.mlp.experts": "ep_dispatch_experts",
                "model.layers.*.mlp.experts.down_proj": "grouped_gemm",
            },
            ep_implementation="all_to_all",
        ),
    )


def arguments(**own):
    """`own`: what is not in a plan, as output_dir and learning_rate."""
    return TrainingArguments(
        per_device_train_batch_size=1,
        optim="adamw_torch",
        gradient_accumulation_steps=8,
        bf16=False,
        fp16=False,
        activation_checkpointing=False,
        accelerator_config={
            "gradient_accumulation_kwargs": {
                "sync_each_batch": True,
            },
        },
        **own,
    )
