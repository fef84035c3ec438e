"""How a measured step was run: machine, software, precision, recompute and memory, from its columns and sources.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any, Literal

from ..cost.constants import Attention, generation
from ..layouts.again import MODULES
from . import layouts
from .columns import Columns, Refused
from .machines import MIXED
from .models import Shape
from .moe import Sparse

SMALL, NOISY = "small", "noisy"
"""Flags of rows that say little of large training: bound by the host; on a shared host, a device short of power, or
nodes of several kinds."""
LEARNED = "learned"
"""Flag of rows of experts whose router chose by what it had learned, instead of evenly."""
UNSTATED = "unstated"
"""Flag of rows that do not say in which precision they computed."""
MUTE = frozenset({SMALL, NOISY, LEARNED})
"""Flags of rows that teach no constant."""
ASIDE = MUTE | {UNSTATED}
"""Flags of rows that stand in strata of their own."""
AGAIN = frozenset(MODULES) - {"core_attn"}
"""Words of Megatron-LM's recompute_modules that change what is kept: a fused attention computes its scores again anyway."""
LEARNED_SKEW = 1.5
"""Tokens of the busiest device over the mean under learned routing: Qwen3-30B on 16 H100, equal degrees, 30.3 s against
20.1 s evenly (megatron-bridge-cards). As it is read from such rows, they are no test of it (`ASIDE`)."""


@cache
def sources() -> Mapping[str, Mapping[str, Any]]:
    """How each source was run (sources.toml)."""
    return tomllib.loads(resources.files(__package__).joinpath("sources.toml").read_text(encoding="utf-8"))


def refuse_kinds(row: Columns) -> None:
    """What no plan says.

    Raises:
        Refused: with the reason.
    """
    if row.mentions("(?<!q_)(?<!kv_)LoRA") and "lora_rank" not in row.settings:
        raise Refused("low-rank adaptation of unknown rank")
    if row.mentions("SFT|packed") and "lora_rank" not in row.settings:
        raise Refused("fine-tuning on packed sequences of unknown lengths")
    if row.settings.get("dist_opt_instances", "1") != "1":
        raise Refused("several copies of the optimizer's state")
    if row.text("offload") not in ("", "none", "0"):
        raise Refused("activations offloaded to the host")


PRECISIONS = {
    "bf16": "bfloat16", "bf16-pure": "bfloat16", "bf16-TE": "bfloat16", "fp16": "float16", "fp32": "float32",
    "tf32": "tfloat32", "fp8": "float8_e4m3fn", "fp8-TE": "float8_e4m3fn", "fp8-cs": "float8_e4m3fn",
    "fp8-current-scaling": "float8_e4m3fn", "fp8-blockwise": "float8_e4m3fn", "mxfp8": "float8_e4m3fn", "nvfp4": "float4",
}  # fmt: skip
SCALINGS = {
    "fp8-cs": "current",
    "fp8-current-scaling": "current",
    "fp8-blockwise": "block",
    "mxfp8": "block",
    "nvfp4": "block",
}


def experts_of(row: Columns, dp: int, tp: int) -> tuple[int, bool]:
    """Replicas that share experts, and whether tensor parallelism cuts experts as these do (a tensor degree of 1 inside
    each): Megatron's expert degree counts both.

    Raises:
        Refused: groups of experts that are no part of the replicas.
    """
    ep = row.whole("ep", 1)
    whole = tp > 1 and ep > 1 and row.whole("etp", 1) == 1
    if whole and ep % tp:
        raise Refused("experts over a part of a tensor-parallel group")
    if row.whole("etp", tp) not in (1, tp):
        raise Refused("experts cut inside in another tensor degree")
    ep //= tp if whole else 1
    if dp % ep:
        raise Refused("experts over context-parallel members")
    return ep, whole


def precision_of(row: Columns, known: Mapping[str, Any]) -> str:
    """dtype of the operands of matrix products.

    Raises:
        Refused: not stated, or unknown.
    """
    name = row.text("precision")
    if name in ("", "unknown"):
        name = known.get("precision", "")
    if name not in PRECISIONS:
        raise Refused(f"precision {name or 'not stated'}")
    return PRECISIONS[name]


def grad_of(row: Columns, known: Mapping[str, Any]) -> str:
    """dtype of accumulated gradients: 16 bits where weights and optimizer have no more."""
    if row.text("precision") == "bf16-pure":
        return "bfloat16"
    found: str = known.get("grads", {}).get(row.text("precision"), known.get("grad", "bfloat16"))
    return found


def kept_of(row: Columns, known: Mapping[str, Any]) -> str:
    """See `Row.kept`: TransformerEngine, which the sources that say so used, keeps operands as it multiplied them; 4-bit
    ones with their transposes in no less than 8 bits.
    """
    narrow = precision_of(row, known) in ("float8_e4m3fn", "float4")
    return "float8_e4m3fn" if narrow and known.get("engine") == "transformer-engine" else ""


def engine_of(row: Columns, known: Mapping[str, Any]) -> Literal["", "torch", "transformer-engine"]:
    """See `Row.engine`; Megatron-LM's tests name theirs where it is not the usual one."""
    if row.text("source") == "megatron-ci":
        return "torch" if row.settings.get("impl") == "local" else "transformer-engine"
    found: Literal["", "transformer-engine"] = known.get("engine", "")
    return found


def scaling_of(row: Columns, known: Mapping[str, Any]) -> str:
    """See `Row.scaling`."""
    name = row.text("precision")
    if not name.startswith(("fp8", "mxfp8", "nvfp4")):
        return ""
    return "row" if row.mentions("rowwise") else SCALINGS.get(name, known.get("scaling", "delayed"))


def refuse_rings(row: Columns, model: Shape, cuts: int) -> None:
    """Context parallelism is said as all-to-alls over heads, cut in `cuts` parts (tensor and context parallel). Most sources
    pass keys and values round a ring and deal the sequence from both ends: the same work for everyone, as here; gathering
    neighbouring queries, which plans can say too, is not.

    Raises:
        Refused: more parts than heads.
    """
    if row.number("cp", 1) > 1 and model.heads % cuts:
        raise Refused("a ring of context parallelism over more parts than heads")


def software_of(row: Columns, usual: str) -> str:
    """Generation of cost/constants/software.toml."""
    source = row.text("source")
    if source == "torchtitan" and row.mentions("torch.compile"):
        return "overlapped" if row.mentions("async TP") else "modern"
    graphs = row.settings.get("cuda_graph", "") + row.settings.get("cuda_graph_scope", "")
    if "full_iteration" in graphs or (source == "megatron-bridge" and _graphed(row)):
        return "graphed"
    return usual


def _graphed(row: Columns) -> bool:
    """Recipes of Megatron-Bridge 26.06 and later for Blackwell run an iteration as one CUDA graph (its model cards)."""
    release = re.search(r"(\d\d\.\d\d)(\.\d\d)? NeMo Container", row.text("loc"))
    return release is not None and release[1] >= "26.06" and row.text("accel").startswith(("B", "GB"))


def attention_of(row: Columns, known: Mapping[str, Any], software: str) -> Attention | Literal[""]:
    """See `Row.attention`. XLA alone fuses none; TransformerEngine takes the fastest kernel that it finds."""
    kernel, source = row.text("attention_kernel"), row.text("source")
    if source == "jax-toolbox":
        fused = row.text("precision").endswith("TE") or row.text("recompute") == "minimal_flash"
        return "modern" if fused else "unfused"
    if source == "mist":
        kernel = "unfused" if row.mentions("no flash attention") else "flash"
    kernel = kernel or known.get("attention", "")
    if "unfused" in kernel:
        return "unfused"
    if row.flag("fp8_attention"):
        return "modern-8"
    if engine_of(row, known) == "transformer-engine" and generation(software).attention != "first":
        return "modern"
    return "flash" if kernel in ("flash", "fused") else ""


def recompute_of(row: Columns, known: Mapping[str, Any], software: str) -> str:
    """See `Row.recompute`."""
    how = row.text("recompute")
    place = f"{row.text('model')} {row.text('accel').partition('-')[0]}"
    if modules := row.settings.get("recompute_modules") or known.get("recompute_modules", {}).get(place):
        return "".join(f"{word}+" for word in sorted(modules.strip("[]").split()) if word in AGAIN) or "none"
    if how in ("", "unknown"):
        how = known.get("recompute", "none")
    if re.fullmatch(r"[0 ]+", how):
        return "none"
    fused = generation(software).attention != "unfused"
    if how in ("none", "None", "selective-none", "minimal_flash"):
        return "none"
    if how == "full":
        return "full"
    if row.text("source").startswith("torchtitan") and how in ("selective", "selective-op"):
        return "alternate"
    if how == "selective":
        return "none" if fused else "attention"  # fused attention computes its scores again anyway
    if how.startswith("mlp"):
        return "mlp"
    raise Refused("recompute of some layers only")


def flags_of(row: Columns) -> tuple[str, ...]:
    """Which of `ASIDE` the row is."""
    found = [SMALL] if row.flag("small_model") else []
    mixed = row.text("accel") in MIXED
    found += [NOISY] if mixed or "noisy" in row.text("trust") or "power-limited" in row.text("note") else []
    found += [LEARNED] if row.settings.get("force_balance") == "0" else []
    found += [UNSTATED] if row.text("precision") in ("", "unknown") else []
    return tuple(found)


def memory_kind_of(row: Columns) -> str:
    """What `mem_gib` counts: "allocated" and "reserved" by the framework's allocator, "nvidia-smi" (with the driver's
    context), or "unknown".
    """
    kind = row.text("mem_kind")
    for word in ("nvidia-smi", "reserved", "allocated"):
        if word in kind:
            return word
    return "unknown"


def chunks_of(row: Columns, known: Mapping[str, Any], model: Shape, pp: int) -> int:
    """Chunks of the model on each pipeline rank; see `most_chunks` in sources.toml."""
    if pp == 1:
        return 1
    most, odd = known.get("most_chunks", 1), model.layers % pp
    usual = 1 if odd else max(n for n in range(1, most + 1) if model.layers // pp % n == 0)
    return max(1, row.whole("vpp", usual))


def layers_of(row: Columns, model: Shape, stages: int) -> tuple[int, ...]:
    """Blocks of each stage where the source deals them unevenly; () = evenly.

    Sources count differently: Mist names blocks; Sailor counts embedding and head as a layer each; AMP gives boundaries in
    a list of modules whose first three and last three are no blocks. Megatron-LM has a language for it (layouts.py).
    """
    other = row.text("other")
    if found := re.findall(r"\blayers=(\d+)", other):
        layers = tuple(map(int, found))
    elif found := re.findall(r"layers per stage \[([\d, ]+)\]", other):
        counted = [int(n) for n in found[0].split(",")]
        counted[0] -= 1
        counted[-1] -= 1
        layers = tuple(counted)
    elif found := re.findall(r"module indices: \[([\d, ]+)\]", other):
        ends = [min(max(int(n) - 3, 0), model.layers) for n in found[0].split(",")]
        layers = tuple(b - a for a, b in pairwise(ends))
    elif text := row.settings.get("layout") or row.settings.get("pipeline_model_parallel_layout"):
        layers = layouts.stated(text)
    elif first := row.settings.get("first_stage_layers"):
        layers = layouts.with_ends(model.layers, stages, int(first), int(row.settings["last_stage_layers"]))
    elif row.flag("embedding_counts_as_layer") and row.flag("loss_counts_as_layer"):
        layers = layouts.with_counted_ends(model.layers, stages)
    elif isinstance(model, Sparse) and model.later and stages > 1:
        return layouts.lighter_last(model.layers, stages)
    elif model.layers < stages:
        raise Refused("more stages than layers")
    else:
        return ()
    if len(layers) != stages or sum(layers) != model.layers:
        raise Refused("layers of the stages do not add up")
    if min(layers[1:-1], default=1) < 1:
        raise Refused("a stage between others without a block")
    return layers


def seconds_of(row: Columns, known: Mapping[str, Any], model: Shape, peak: float) -> float:
    """Measured, or from the FLOP/s that a source claims, counted as it counts, where it published nothing else; 0 after
    running out of memory.

    Args:
        peak: FLOP/s of a device in 16 bits, which `mfu` is a share of.

    Raises:
        Refused: neither.
    """
    if row.text("status").startswith("oom"):
        return 0.0
    if row.text("step_time_s"):
        return row.number("step_time_s")
    if known.get("counts") != "whole attention":
        raise Refused("no step time")
    rate = row.number("model_tflops_per_dev", 0.0) * 1e12 or row.number("mfu", 0.0) * peak
    if not rate:
        raise Refused("no step time")
    return row.whole("gbs") * (model.flops + model.masked_flops) / (rate * row.whole("devices"))
