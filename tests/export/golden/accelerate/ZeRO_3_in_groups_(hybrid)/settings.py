"""llama-3.1-8b for accelerate 1.15.0: dp16 z3/8, as planned.

Not in a plan, yours to add: data set, learning rate, addresses of machines.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy

MICRO_BATCH = 1  # samples of one micro-batch on one replica: batch_size of the DataLoader
ACCUMULATION = 8  # micro-batches of a step on one replica
SAMPLES = 128  # of a step: 1 x 8 x 16 replicas
DTYPE = torch.float32  # of the weights as they are loaded


def accelerator():
    made = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=ACCUMULATION,
            sync_each_batch=True,
        ),
    )
    # Read when the model is prepared; the launcher's own would sum gradients in the type of computing.
    made.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16,
        output_dtype=torch.bfloat16,
        reduce_dtype=torch.float32,
    )
    return made


def micro_batch(accelerator, model, batch):
    """Inside of `with accelerator.accumulate(model):`, before optimizer.step() and zero_grad()."""
    # Copies of what is cut are summed once a step.
    model.set_requires_all_reduce(accelerator.sync_gradients)
    loss = model(**batch).loss
    accelerator.backward(loss)
    return loss.detach()
