"""How a measured step was run: machine, software, precision, recompute and memory, from its columns and sources.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from .columns import Columns, Refused
from .models import Shape

SMALL, NOISY = "small", "noisy"
"""Flags of rows that say little of large training: bound by the host; on a host that others shared."""
ADAPTERS = "adapters"
"""`Row.trains` where the weights stand still and only low-rank adapters learn."""


@cache
def sources() -> Mapping[str, Mapping[str, Any]]:
    """How each source was run (sources.toml)."""
    return tomllib.loads(resources.files(__package__).joinpath("sources.toml").read_text(encoding="utf-8"))


def refuse_kinds(row: Columns) -> None:
    """What no plan says.

    Raises:
        Refused: with the reason.
    """
    if row.mentions("LoRA"):
        raise Refused("low-rank adaptation")
    if row.mentions("SFT|packed"):
        raise Refused("fine-tuning on packed sequences of unknown lengths")
    if row.mentions("rowwise"):
        raise Refused("fp8 scaled by rows")
    if row.text("offload") not in ("", "none", "0"):
        raise Refused("activations offloaded to the host")


def precision_of(row: Columns) -> str:
    """dtype of the operands of matrix products."""
    name = row.text("precision")
    if "fp8" in name:
        return "float8_e4m3fn"
    if name in ("bf16", "fp16", "bf16-pure", "bf16-TE"):
        return "float16" if name == "fp16" else "bfloat16"
    raise Refused(f"precision {name or 'not stated'}")


def software_of(row: Columns, usual: str) -> str:
    """Generation of cost/constants/software.toml."""
    source = row.text("source")
    if source == "torchtitan" and row.mentions("torch.compile"):
        return "overlapped" if row.mentions("async TP") else "modern"
    if source == "jax-toolbox" and ("TE" in row.text("precision") or row.mentions("minimal_flash")):
        return "xla-flash"
    return usual


def attention_of(row: Columns) -> str:
    """Variant of attention ops that the source states: fused, unfused, or "" (as the software usually does)."""
    kernel = row.text("attention_kernel")
    return "unfused" if "unfused" in kernel else "fused" if kernel in ("flash", "fused") else ""


def recompute_of(row: Columns, known: Mapping[str, Any], software: str) -> str:
    """See `Row.recompute`."""
    how = row.text("recompute")
    if how in ("", "unknown"):
        how = known.get("recompute", "none")
    fused = software != "unfused"
    if how in ("none", "None", "selective-none", "minimal_flash"):
        return "none"
    if how == "full":
        return "full"
    if row.text("source") == "torchtitan" and how in ("selective", "selective-op"):
        return "alternate"
    if how == "selective":
        return "none" if fused else "attention"  # fused attention computes its scores again anyway
    if how.startswith("mlp"):
        return "mlp"
    raise Refused("recompute of some layers only")


def flags_of(row: Columns) -> tuple[str, ...]:
    """Which of `SMALL` and `NOISY` the row is."""
    found = [SMALL] if row.flag("small_model") else []
    return (*found, NOISY) if "noisy" in row.text("trust") else tuple(found)


def memory_kind_of(row: Columns) -> str:
    """What `mem_gib` counts: "allocated" and "reserved" by the framework's allocator, "nvidia-smi" (with the driver's
    context), or "unknown".
    """
    kind = row.text("mem_kind")
    for word in ("nvidia-smi", "reserved", "allocated"):
        if word in kind:
            return word
    return "unknown"


def seconds_of(row: Columns, model: Shape, devices: int, batch: int) -> float:
    """Measured, or from the source's TFLOP/s by the source's own formula where it published nothing else; 0 after running
    out of memory.

    Raises:
        Refused: neither.
    """
    if row.text("status").startswith("oom"):
        return 0.0
    if row.text("step_time_s"):
        return row.number("step_time_s")
    if row.text("source") == "megatron-core-h100" and row.text("model_tflops_per_dev"):
        h, s, layers = model.hidden, model.seq, model.layers
        vocab = row.number("vocab")
        flops = 72 * batch * s * layers * h * h * (1 + s / (6 * h) + vocab / (12 * layers * h))
        return flops / (row.number("model_tflops_per_dev") * 1e12 * devices)
    raise Refused("no step time")
