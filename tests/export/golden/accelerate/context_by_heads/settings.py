"""llama-3.1-8b for accelerate 1.15.0: dp4 cp4+ul, as planned.

Not in a plan, yours to add: data set, learning rate, addresses of machines.
"""

import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig, GradientAccumulationPlugin
from transformers.integrations.deepspeed import deepspeed_sp_compute_loss

MICRO_BATCH = 1  # samples of one micro-batch on one replica: batch_size of the DataLoader
ACCUMULATION = 32  # micro-batches of a step on one replica
SAMPLES = 128  # of a step: 1 x 32 x 4 replicas
DTYPE = torch.float32  # of the weights as they are loaded


def accelerator():
    made = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=ACCUMULATION,
            sync_each_batch=False,
        ),
        parallelism_config=ParallelismConfig(
            dp_shard_size=4,
            sp_size=4,
            sp_backend="deepspeed",
            sp_handler=DeepSpeedSequenceParallelConfig(
                sp_seq_length_is_variable=False,
                sp_seq_length=64,
                sp_attn_implementation="sdpa",
            ),
        ),
    )
    return made


def micro_batch(accelerator, model, batch):
    """Inside of `with accelerator.accumulate(model):`, before optimizer.step() and zero_grad()."""
    loss = deepspeed_sp_compute_loss(accelerator, model, batch, False, accelerator.parallelism_config)
    accelerator.backward(loss)
    return loss.detach()
