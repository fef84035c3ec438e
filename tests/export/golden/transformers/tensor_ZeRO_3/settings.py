"""llama-3.1-8b for transformers 5.24.0: dp4 tp4 z3, as planned.

A step has 128 samples: 1 x 32 micro-batches x 4 replicas.
Not in a plan, yours to add: data set, learning rate, output folder.
"""

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, ColwiseParallel


def load(source, kind=AutoModelForCausalLM):
    """The model at `source`, each rank with its part."""
    # Scores stay cut over the vocabulary; torch's loss_parallel sums over it.
    ALL_PARALLEL_STYLES.register(
        "colwise_vocabulary_loss",
        ColwiseParallel(input_layouts=Replicate(), output_layouts=Shard(-1), use_local_output=False),
    )
    return kind.from_pretrained(
        source,
        dtype=torch.float32,
        distributed_config=DistributedConfig(
            tp_size=4,
            tp_plan={
                "model.embed_tokens": "embedding_rowwise",
                "model.layers.*.self_attn.q_proj": "colwise",
                "model.layers.*.self_attn.k_proj": "colwise",
                "model.layers.*.self_attn.v_proj": "colwise",
                "model.layers.*.self_attn.o_proj": "rowwise",
                "model.layers.*.mlp.gate_proj": "colwise",
                "model.layers.*.mlp.up_proj": "colwise",
                "model.layers.*.mlp.down_proj": "rowwise",
                "lm_head": "colwise_vocabulary_loss",
            },
            fsdp_size=4,
            dp_replicate_size=1,
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
        gradient_accumulation_steps=32,
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


class VocabularyTrainer(Trainer):
    """Trains with scores that stay cut over the vocabulary."""

    def training_step(self, *inputs, **options):
        with loss_parallel():
            loss = super().training_step(*inputs, **options)
        return loss.full_tensor() if isinstance(loss, DTensor) else loss
