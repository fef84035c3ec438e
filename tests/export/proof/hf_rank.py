"""One rank of a run with exported settings, started by torchrun or accelerate's launcher; rank 0 writes the losses.

The folder (argument 1) holds settings.py as it was exported, case.json and the weights. A model and a loop are what a user adds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
sys.path.insert(0, str(FOLDER))
CASE = json.loads((FOLDER / "case.json").read_text())


def without_devices() -> None:
    """FSDP and sizes in accelerate are for devices of its own: ranks without any are called devices, on the CPU."""
    from accelerate.state import DistributedType, PartialState

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def with_accelerate() -> list[float]:
    import torch
    import torch.distributed as dist

    if CASE["as_devices"]:
        without_devices()
    import settings
    import transformers

    accelerator = settings.accelerator()
    if hasattr(settings, "load"):
        model = settings.load(CASE["weights"])
    else:
        kind = getattr(transformers, CASE["class"])
        model = kind.from_pretrained(CASE["weights"], dtype=settings.DTYPE)
    model = settings.checkpointed(model.train()) if hasattr(settings, "checkpointed") else model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=CASE["rate"])
    model, optimizer = accelerator.prepare(model, optimizer)
    rank, each = dist.get_rank() // CASE["members"], settings.MICRO_BATCH
    losses = []
    for step in CASE["steps"]:
        total = 0.0
        for batch in step:
            mine = {k: torch.tensor(rows)[rank * each : (rank + 1) * each] for k, rows in batch.items()}
            with accelerator.accumulate(model):
                total += float(settings.micro_batch(accelerator, model, mine)) / len(step)
                optimizer.step()
                optimizer.zero_grad()
        losses.append(total)
    found = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(found)
    return (found / dist.get_world_size()).tolist()


def with_trainer() -> list[float]:
    import settings
    from transformers import Trainer

    model = settings.load(CASE["weights"]).train()
    arguments = settings.arguments(
        output_dir=str(FOLDER / "out"), use_cpu=True, ddp_backend="gloo", learning_rate=CASE["rate"], lr_scheduler_type="constant",
        max_grad_norm=0.0, max_steps=len(CASE["steps"]), logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
        train_sampling_strategy="sequential", dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    if CASE["as_devices"]:
        without_devices()
    rows = [{k: values[i] for k, values in batch.items()} for step in CASE["steps"] for batch in step for i in range(len(next(iter(batch.values()))))]  # fmt: skip
    trainer = getattr(settings, "VocabularyTrainer", Trainer)(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    found = with_accelerate() if CASE["target"] == "accelerate" else with_trainer()
    import torch.distributed

    if torch.distributed.get_rank() == 0:
        (FOLDER / "losses.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
