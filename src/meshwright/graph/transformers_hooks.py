"""Attention and experts of transformers models in a form that a plan can cut; registered under the library's own hooks."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError

ATTENTION = "meshwright"
"""Value of config._attn_implementation."""


def register_attention() -> str:
    """Registers our attention and returns its name for `config._attn_implementation`.

    The library's SDPA function keeps causality, grouped heads and position biases as flags. No mask function goes with
    it, so the library builds no mask: padding masks would be lost, and `capture` refuses them. A sliding window, which
    the library would put into the mask, is rebuilt here where it is shorter than the sequence.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    return ATTENTION


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query[batch, heads, queries, width] and so on -> [batch, queries, heads, width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    window = options.get("sliding_window")
    if attention_mask is None and isinstance(window, int) and window < key.shape[2]:
        causal = options.get("is_causal")
        attention_mask = _window(
            query.device,
            query.shape[2],
            key.shape[2],
            window,
            bool(getattr(module, "is_causal", True) if causal is None else causal),
        )
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return result


def _window(device: torch.device, queries: int, keys: int, window: int, causal: bool) -> torch.Tensor:
    """True where a query sees a key: itself and the window - 1 before, without causality as many after."""
    distance = torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    if causal:
        return (distance >= 0) & (distance < window)
    return distance.abs() < window


def register_experts(capacity: str | float = "no-drop", positions: int = 0) -> str:
    """Registers static mixture-of-experts and returns its name for `config._experts_implementation`.

    "no-drop": every expert has room for every token, so no token is ever dropped: each expert computes all tokens and
    the router's weights, zero for experts that were not chosen, combine them. Exact, with experts / top-k times the
    FLOPs of a dispatch. A number f: room for f · tokens · top-k / experts each; what comes later is dropped. It is given
    in groups of tokens (see dispatch.py) that fill a sequence of `positions`; 0: in one group.

    Raises:
        InputError: the capacity is neither "no-drop" nor a positive number.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if capacity == "no-drop":
        ALL_EXPERTS_FUNCTIONS.register("meshwright-no-drop", _all_tokens)
        return "meshwright-no-drop"
    if isinstance(capacity, str) or not capacity > 0:
        raise InputError(f'the expert capacity is {capacity!r}: it is "no-drop" or a positive factor such as 1.25')
    factor = float(capacity)

    def limited(self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return _dispatched(self, hidden, index, weights, factor, positions)

    name = f"meshwright-capacity-{factor:g}" + (f"-{positions}" if positions else "")
    ALL_EXPERTS_FUNCTIONS.register(name, limited)
    return name


def experts_note(implementation: str | None) -> str:
    """The sentence that plans say about an experts implementation of ours; "" for others."""
    if implementation == "meshwright-no-drop":
        return "experts have room for every token (no-drop capacity): each expert computes all tokens"
    if implementation and implementation.startswith("meshwright-capacity-"):
        factor = implementation.removeprefix("meshwright-capacity-").partition("-")[0]
        return f"experts have room for {factor} times their even share of tokens; tokens beyond that are dropped"
    return ""


def _all_tokens(self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """hidden[tokens, width], index and weights[tokens, k] -> [tokens, width]; every expert sees all tokens."""
    tokens, width = hidden.shape
    experts = self.num_experts
    chosen = index.unsqueeze(-1) == torch.arange(experts, device=hidden.device)
    share = (chosen.to(weights.dtype) * weights.unsqueeze(-1)).sum(1)
    results = _compute(self, hidden.unsqueeze(0).expand(experts, tokens, width))
    return (results * share.t().unsqueeze(-1).to(results.dtype)).sum(0).to(hidden.dtype)


def _compute(self: Any, x: torch.Tensor, share: torch.Tensor | None = None) -> torch.Tensor:
    """The experts' two layers on x[experts, rows, width]; `share`[experts, rows]: of each row in what its token becomes."""

    def product(a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.bmm(a, weight if self.is_transposed else weight.transpose(1, 2))

    gated = getattr(self, "has_gate", True)
    inner = product(x, self.gate_up_proj if gated else self.up_proj)
    if self.has_bias:
        inner = inner + (self.gate_up_proj_bias if gated else self.up_proj_bias).unsqueeze(1)
    inner = self._apply_gate(inner) if gated else self.act_fn(inner)
    weight = None if share is None else share.unsqueeze(-1).to(inner.dtype)
    # Before the second layer, which is linear: its result is then not kept for the gradient of the shares.
    outer: torch.Tensor = product(inner if weight is None else inner * weight, self.down_proj)
    if not self.has_bias:
        return outer
    bias: torch.Tensor = self.down_proj_bias.unsqueeze(1)
    return outer + (bias if weight is None else bias * weight)


def _dispatched(
    self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, factor: float, positions: int
) -> torch.Tensor:
    """Tokens go to rows of their experts in order of arrival; those that find no row are dropped."""
    from .dispatch import moe_combine, moe_dispatch, sizes_of

    chosen, experts = index.shape[1], self.num_experts
    tokens, rows = sizes_of(factor, chosen, experts, positions or index.shape[0])
    x, share = moe_dispatch(hidden, index, weights, experts, tokens, rows)
    summed: torch.Tensor = moe_combine(_compute(self, x, share), index, tokens, rows)
    return summed.to(hidden.dtype)
