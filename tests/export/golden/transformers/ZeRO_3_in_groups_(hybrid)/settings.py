"""llama-3.1-8b for transformers 5.24.0: dp16 z3/8, as planned.

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
            fsdp_size=8,
            dp_replicate_size=2,
            fsdp_plan={
                "model.embed_tokens": "free_full_weight",
                "model.layers.*": "free_full_weight",
                "model.norm": "free_full_weight",
                "lm_head": "free_full_weight",
            },
            fsdp_cpu_offload=False,
            fsdp_mixed_precision=True,
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
                "sync_each_batch": False,
            },
        },
        **own,
    )
