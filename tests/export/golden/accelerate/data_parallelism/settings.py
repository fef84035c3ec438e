"""llama-3.1-8b for accelerate 1.15.0: dp16, as planned.

Not in a plan, yours to add: data set, learning rate, addresses of machines.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

MICRO_BATCH = 1  # samples of one micro-batch on one replica: batch_size of the DataLoader
ACCUMULATION = 8  # micro-batches of a step on one replica
SAMPLES = 128  # of a step: 1 x 8 x 16 replicas
DTYPE = torch.float32  # of the weights as they are loaded


def accelerator():
    made = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=ACCUMULATION,
            sync_each_batch=False,
        ),
    )
    return made


def micro_batch(accelerator, model, batch):
    """Inside of `with accelerator.accumulate(model):`, before optimizer.step() and zero_grad()."""
    loss = model(**batch).loss
    accelerator.backward(loss)
    return loss.detach()
