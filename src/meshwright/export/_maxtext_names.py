"""Names of MaxText 0.2.5: mesh axes, remat policies, models, settings (configs/base.yml, configs/types.py, configs/models)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import permutations

from ._words import plain_name
from .setup import Setup

MESH = (
    "diloco", "stage", "data", "fsdp", "fsdp_transpose", "context", "context_usp_ulysses", "context_autoregressive", "tensor",
    "tensor_sequence", "expert", "autoregressive",
)  # fmt: skip
"""Axes of its mesh, outer first; where there is a pipeline it puts stage before data itself."""
SIZE_OF = {"stage": "pipeline"}
"""Axis -> as it is called in ici_…_parallelism, where that is another word."""
OWN = ("pp", "dpr", "dp", "cp", "tp", "ep")
"""Its order in words of `Point.mesh`."""

POLICY: Mapping[str, str] = {
    "full": "full",
    "light": "minimal_with_context",
    "attention": "minimal",
    "core_attn+": "minimal",
}
"""What runs again -> remat_policy."""
AGAIN: Mapping[str, str] = {
    "full": "full",
    "minimal": "attention",
    "minimal_with_context": "light",
    "minimal_flash": "light",
}
"""remat_policy -> what runs again."""
NEAREST_AGAIN: Mapping[str, str] = {
    "save_dot_with_context_except_mlp": "light", "save_dot_except_mlp": "full", "save_dot_except_mlpwi": "attention",
    "save_qkv_proj": "full", "save_out_proj": "full", "qkv_proj_offloaded": "full", "minimal_offloaded": "attention", "custom": "full",
    "minimal_with_quantization": "attention", "minimal_with_context_and_quantization": "light",
}  # fmt: skip
"""Policies of which only the nearest is priced."""

MODELS = (
    "deepseek2-16b", "deepseek2-236b", "deepseek3-671b", "deepseek3.2-671b", "gemma-2b", "gemma-7b", "gemma2-2b", "gemma2-9b",
    "gemma2-27b", "gemma3-4b", "gemma3-12b", "gemma3-27b", "gpt-oss-20b", "gpt-oss-120b", "gpt3-6b", "gpt3-22b", "gpt3-175b",
    "kimi-k2-1t", "llama2-7b", "llama2-13b", "llama2-70b", "llama3-8b", "llama3-70b", "llama3-405b", "llama3.1-8b", "llama3.1-70b",
    "llama3.1-405b", "llama3.3-70b", "llama4-17b-16e", "llama4-17b-128e", "mistral-7b", "mixtral-8x7b", "mixtral-8x22b", "olmo3-7b",
    "olmo3-32b", "qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-14b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b",
    "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b", "qwen3-480b-a35b", "qwen3-next-80b-a3b",
)  # fmt: skip
"""Language models that it has settings of."""

ASSUMED: Mapping[str, tuple[object, str]] = {
    "quantization": ("", "products in the precision that was asked for (--precision)"),
    "optimizer_memory_host_offload": (False, "optimizer state stays on the device"),
    "parameter_memory_host_offload": (False, "weights stay on the device"),
    "pipeline_delay_activation_forwarding": (False, "activations are handed over at once"),
    "pipeline_fsdp_ag_once": (False, "weights are gathered for each micro-batch"),
    "pipeline_fsdp_ag_per_repeat": (False, "weights are gathered for each micro-batch"),
    "use_ring_of_experts": (False, "tokens by all-to-all"),
    "capacity_factor": (-1.0, "no token is dropped"),
    "shard_exp_on_fsdp": (False, "experts are cut over expert, their width over fsdp"),
    "custom_mesh_and_rule": ("", "the mesh and rules of base.yml"),
    "override_logical_axis_rules": (False, "rules of base.yml where no other are given"),
    "num_vocab_tiling": (1, "the logits of all positions at once"),
    "dense_fsdp_use_two_stage_all_gather": (False, "weights by one all-gather"),
    "moe_fsdp_use_two_stage_all_gather": (False, "weights by one all-gather"),
    "enable_diloco": (False, "gradients are summed each step"),
    "use_batch_split_schedule": (False, "micro-batches are not split further"),
}
"""Setting that changes speed or memory -> (its default, what is priced instead)."""


@cache
def options() -> frozenset[str]:
    """Names of all its settings."""
    text = (files(__package__) / "_maxtext_options.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


ALIASES: Mapping[str, str] = {"deepseek-v3": "deepseek3-671b", "qwen3-235b": "qwen3-235b-a22b"}
"""Our name -> its own, where they differ in more than what stands between their parts."""


def model_name(name: str) -> str:
    """As MaxText calls a model; "" where it has no settings of it."""
    return ALIASES.get(name, "") or next((m for m in MODELS if plain_name(m) == plain_name(name)), "")


def our_name(model: str) -> str:
    """As we call a model of MaxText's."""
    return next((ours for ours, theirs in ALIASES.items() if theirs == model), model)


def axis_of(setup: Setup) -> dict[str, str]:
    """Word of `Point.mesh` -> axis that holds it, of those with several members."""
    p = setup.point
    names = {"pp": "stage", "cp": "context", "ep": "expert", "tp": "tensor_sequence" if p.sequence else "tensor"}
    names |= {"dpr": "data", "dp": "fsdp" if p.zero == 3 else "data"}
    return {word: names[word] for word in OWN if setup.sizes[word] > 1}


def order_of(setup: Setup) -> tuple[str, ...] | None:
    """Words of the axes, outer first, along which the plan's devices are in order; its own where they are."""
    words = tuple(axis_of(setup))
    split = {"dpr", "dp"} <= set(words) and setup.point.zero < 3  # both on one axis: side by side
    for order in (words, *permutations(words)):
        if (not split or order.index("dp") == order.index("dpr") + 1) and setup.in_order(order):
            return order
    return None


def mesh_axes(names: Sequence[str]) -> list[str]:
    """All axes, those named in this order, in the places that they have together."""
    left = list(dict.fromkeys(names))
    return [left.pop(0) if axis in names else axis for axis in MESH]
