"""What ds_config.json cannot say, for DeepSpeed 0.19.8: written from a plan of llama-3.1-8b."""

import json
from pathlib import Path

from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

CONFIG = json.loads(Path(__file__).with_name("ds_config.json").read_text(encoding="utf-8"))


def ulysses(model):
    """For deepspeed.initialize(..., mpu=ulysses(model)); wrap the loader in UlyssesSPDataLoaderAdapter."""
    return UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation="sdpa",  # or a flash attention that is installed
        sequence_parallel_size=CONFIG["sequence_parallel_size"],
        micro_batch_size=CONFIG["train_micro_batch_size_per_gpu"],
        seq_length=64,
        seq_length_is_variable=False,
    )
