"""llama-3.1-8b for accelerate 1.15.0: dp4 tp4 z3, as planned.

Not in a plan, yours to add: data set, learning rate, addresses of machines.
"""

import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import GradientAccumulationPlugin
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, ColwiseParallel

MICRO_BATCH = 1  # samples of one micro-batch on one replica: batch_size of the DataLoader
ACCUMULATION = 32  # micro-batches of a step on one replica
SAMPLES = 128  # of a step: 1 x 32 x 4 replicas
DTYPE = torch.float32  # of the weights as they are loaded


def accelerator():
    made = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=ACCUMULATION,
            sync_each_batch=True,
        ),
        parallelism_config=ParallelismConfig(
            dp_replicate_size=1,
            dp_shard_size=4,
            tp_size=4,
        ),
    )
    return made


def load(source, kind=AutoModelForCausalLM):
    """The model at `source`, each rank with its part."""
    # Scores stay cut over the vocabulary; torch's loss_parallel sums over it.
    ALL_PARALLEL_STYLES.register(
        "colwise_vocabulary_loss",
        ColwiseParallel(input_layouts=Replicate(), output_layouts=Shard(-1), use_local_output=False),
    )
    return kind.from_pretrained(
        source,
        dtype=DTYPE,
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


def micro_batch(accelerator, model, batch):
    """Inside of `with accelerator.accumulate(model):`, before optimizer.step() and zero_grad()."""
    with loss_parallel():
        loss = model(**batch).loss
        accelerator.backward(loss)
    return loss.detach().full_tensor()
